"""The live router on a GPU: the reference's logits, and a CUDA graph of a layer that chooses."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from freqformer.attention import FreqAttention
from freqformer.config import FreqFormerConfig
from freqformer.grid import Grid
from freqformer.routing import RoutingNetwork, branch_weights
from freqformer.routing.table import bands_at

pytest.importorskip("triton")

from tests.support.numerics import nan_filled_allocations

from freqformer.ops.routing import reference
from freqformer.ops.routing.triton import launch, table

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]
HALF, SINGLE, BRAIN = torch.float16, torch.float32, torch.bfloat16


@pytest.mark.parametrize(
    "dtypes", [(BRAIN, BRAIN), (HALF, HALF), (SINGLE, SINGLE), (BRAIN, SINGLE)], ids=str
)
@pytest.mark.parametrize(
    ("grid", "tile"),
    [(Grid(9, 17, 25), None), (Grid(16, 32, 32), None), (Grid(5, 7, 9), (2, 2, 4))],
)
@pytest.mark.parametrize(("heads", "head_dim"), [(3, 128), (5, 64), (2, 16), (2, 256)])
def test_logits_are_the_references(grid, tile, dtypes, heads, head_dim) -> None:
    draw = torch.Generator("cuda").manual_seed(0)
    tokens = (2, grid.num_tokens)
    query, key = (
        torch.randn(*tokens, heads, head_dim, device="cuda", generator=draw).to(dtypes[0]).cumsum(1)
        for _ in range(2)
    )
    hidden = torch.randn(*tokens, heads * head_dim, device="cuda", generator=draw) + 3
    hidden[..., ::7] *= 30
    norms = tuple(torch.rand(head_dim, device="cuda", generator=draw) + 0.5 for _ in range(2))
    inputs = (
        (query, key, hidden.to(dtypes[1])),
        norms,
        1e-6,
        grid,
        FreqFormerConfig(tile=tile),
        "raster",
    )
    network, timestep = (
        RoutingNetwork(heads, prior="noise_level").cuda(),
        torch.tensor([0.1, 0.8], device="cuda"),
    )
    expected = reference.statistics(*inputs)
    with nan_filled_allocations():
        statistics = launch.statistics(*inputs)
        logits, bands = launch.score(network, timestep, inputs)
    # A sum in another order may round a normalised query to its neighbour, which is a change of
    # 2^-8 of one number.
    torch.testing.assert_close(statistics, expected, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(logits, network(statistics, timestep), rtol=1e-4, atol=1e-4)
    assert torch.equal(bands, logits.argmax(-1))
    again = launch.score(network, timestep, inputs)
    assert torch.equal(again[0], logits)


@pytest.mark.parametrize("heads", [1, 5, 24])
def test_weights_by_the_timestep_alone_are_the_networks(heads) -> None:
    network, timestep = (
        RoutingNetwork(heads, prior="none", statistics=False).cuda(),
        torch.rand(3, device="cuda"),
    )
    with nan_filled_allocations(), torch.no_grad():
        logits, _ = launch.score(network, timestep, None)
        torch.testing.assert_close(logits, network(None, timestep), rtol=1e-4, atol=1e-4)
    assert (logits[0] - logits[1]).abs().max() > 1e-4


@pytest.mark.parametrize("heads", [1, 5, 24])
def test_weights_of_branches_are_the_logits_of_two_bands(heads) -> None:
    network = RoutingNetwork(heads, statistics=False).cuda()
    timestep, own = torch.rand(3, device="cuda"), [head % 3 for head in range(heads)]
    with nan_filled_allocations():
        logits, weights = launch.weigh(network, timestep, None, torch.tensor(own, device="cuda"))
    assert torch.equal(logits, launch.score(network, timestep, None)[0])
    assert torch.equal(weights, branch_weights(logits, own))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_table_is_looked_up_as_pytorch_does(dtype) -> None:
    bands = torch.randint(0, 4, (10, 24), device="cuda")
    timestep = torch.cat([torch.arange(11) / 10, torch.rand(1000)]).to("cuda", dtype)
    with nan_filled_allocations():
        found = table.look_up(bands, timestep)
    assert torch.equal(found, bands_at(bands, timestep))


def make_layer() -> tuple[FreqAttention, Grid]:
    config = replace(FreqFormerConfig.paper(), mid_tiles=4, summary_tokens=9)
    return FreqAttention(4 * 64, 4, config).to("cuda", torch.bfloat16), Grid(9, 17, 25)


@torch.no_grad()
def test_a_cuda_graph_holds_a_layer_that_chooses() -> None:
    layer, grid = make_layer()
    hidden = torch.randn(2, grid.num_tokens, layer.dim, device="cuda", dtype=torch.bfloat16)
    timestep = torch.tensor([0.2, 0.9], device="cuda")
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        layer(hidden, grid, timestep)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):  # which fails where anything waits for the device
        captured = layer(hidden, grid, timestep)
    chosen, seen = layer.allocation_used, set()
    for noise in (0.0, 0.4, 1.0):
        timestep.copy_(torch.tensor([noise, 1 - noise]))
        hidden.normal_()
        graph.replay()
        assert chosen is not None
        wanted = layer(hidden, grid, timestep)
        assert torch.equal(layer.allocation_used, chosen)
        assert torch.equal(captured, wanted)
        seen.add(tuple(chosen.flatten().tolist()))
    assert len(seen) > 1
