"""The whole model on a GPU: one CUDA graph holds a step with frozen routing; training in bfloat16,
compiled and not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from tests.support.layers import record_fields
from torch._dynamo.testing import CompileCounterWithBackend

pytest.importorskip("diffusers")

from freqformer import FreqFormerTransformer3DModel
from freqformer.config import Band, FreqFormerConfig
from freqformer.routing import RoutingTable

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]
VIDEO = (2, 3, 9, 44, 60)
"""9 x 11 x 15 tokens: ragged on every axis."""


def make_model(
    text_dim: int | None = None, mid_pattern: str = "topk", routing: str = "hard"
) -> FreqFormerTransformer3DModel:
    """Two layers in bfloat16 with a table whose bands differ between layers and timesteps."""
    torch.manual_seed(0)
    frequency = FreqFormerConfig(
        mid_tiles=4, summary_tokens=9, tile=(4, 4, 8), mid_pattern=mid_pattern
    )  # type: ignore[arg-type]
    model = FreqFormerTransformer3DModel(
        num_layers=2,
        num_attention_heads=4,
        cross_attention_dim=text_dim,
        frequency=replace(frequency, **record_fields({"routing": routing})),
    )
    for parameter in model.parameters():  # what starts at zero would hide the attention
        parameter.data += 0.05 * torch.randn_like(parameter)
    bands = torch.tensor([[[0, 0, 1, 2], [0, 1, 2, 2]], [[2, 2, 1, 1], [Band.DENSE, 2, 2, 0]]])
    model.set_routing_table(RoutingTable(bands, torch.full_like(bands, 4), frequency))
    return model.to("cuda", torch.bfloat16).eval()


@torch.no_grad()
@pytest.mark.parametrize(
    ("text_dim", "routing"),
    [(None, "hard"), (32, "hard"), (None, "soft"), (None, "timestep")],
)
def test_a_cuda_graph_holds_a_step_with_frozen_bands(text_dim: int | None, routing: str) -> None:
    model = make_model(text_dim, routing=routing)
    draw = torch.Generator("cuda").manual_seed(1)

    def inputs(noise: float) -> list[torch.Tensor]:
        video = torch.randn(VIDEO, generator=draw, device="cuda", dtype=torch.bfloat16)
        text = torch.randn(2, 7, 32, generator=draw, device="cuda", dtype=torch.bfloat16)
        timestep = torch.tensor([noise, 1000 - noise], device="cuda")
        return [video, timestep] if text_dim is None else [video, timestep, text]

    static = inputs(500.0)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        model(*static)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = model(*static).sample
    for noise in (30.0, 970.0, 400.0):  # the table's two buckets, either way round
        fresh = inputs(noise)
        for held, given in zip(static, fresh, strict=True):
            held.copy_(given)
        graph.replay()
        wanted = model(*fresh).sample
        assert captured.isfinite().all()
        assert torch.equal(captured, wanted)


@torch.no_grad()
@pytest.mark.parametrize("routing", ["hard", "soft"])
def test_it_runs_the_fused_plan_and_agrees_with_eager(routing: str) -> None:
    # A choice of tiles may fall otherwise by a rounding.
    model = make_model(mid_pattern="axial", routing=routing).float()
    draw = torch.Generator("cuda").manual_seed(2)
    video, timestep = (
        torch.randn(VIDEO, generator=draw, device="cuda"),
        torch.tensor([100.0, 900.0], device="cuda"),
    )
    fused = model(video, timestep).sample
    model.set_impl("eager")
    eager = model(video, timestep).sample
    assert not torch.equal(fused, eager)
    torch.testing.assert_close(fused, eager, rtol=1e-3, atol=1e-3)


@pytest.mark.filterwarnings("default")  # of the compiler's own code
@pytest.mark.parametrize(
    ("routing", "low_branch"), [("hard", False), ("hard", True), ("soft", True)]
)
def test_training_in_bfloat16_with_checkpointed_and_compiled_blocks(
    routing: str, low_branch: bool
) -> None:
    """Routers learn too. The loss and every gradient are finite, and compiled blocks are compiled
    once for three steps."""
    video = torch.randn(VIDEO, generator=torch.Generator("cuda").manual_seed(3), device="cuda")
    losses = []
    for compiled in (False, True):
        torch.manual_seed(0)
        plain = FreqFormerConfig(mid_tiles=4, summary_tokens=9, tile=(4, 4, 8))
        fields = record_fields({"routing": routing, "low_branch": low_branch})
        model: Any = FreqFormerTransformer3DModel(
            num_layers=2, num_attention_heads=4, frequency=replace(plain, **fields)
        )
        model.to("cuda").train()
        model.set_impl("triton")  # an error where it can't run
        model.set_router_training("sampled" if routing == "hard" else "off")
        model.enable_gradient_checkpointing()
        counter = CompileCounterWithBackend("inductor")
        if compiled:
            model.compile_repeated_blocks(fullgraph=True, dynamic=False, backend=counter)
        optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
        torch.manual_seed(1)
        graphs = []
        for timestep in (900.0, 500.0, 100.0):
            with torch.autocast("cuda", torch.bfloat16):
                sample = model(video, torch.full((2,), timestep, device="cuda")).sample
            loss = (sample.float() - video).square().mean()
            loss.backward()
            graphs.append(counter.frame_count)
            assert all(
                p.grad is not None and bool(p.grad.isfinite().all()) for p in model.parameters()
            )
            optimizer.step()
            optimizer.zero_grad()
            losses.append(float(loss.detach()))
        assert graphs[0] == graphs[-1] > 0 or not compiled
    assert losses[3:] == pytest.approx(losses[:3], rel=0.02)
