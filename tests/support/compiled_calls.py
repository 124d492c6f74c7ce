"""torch.compile over attention, as a program: `python -m tests.support.compiled_calls DEVICE
BACKEND IMPL`.

It compares gradients of a call compiled whole with those of the call itself, and counts the graphs
for several grids, and of a layer for several timesteps.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any

import torch
from tests.support.interpreter import patch_language_once
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from freqformer.attention import FreqAttention, frequency_attention
from freqformer.config import FreqFormerConfig
from freqformer.grid import Grid
from freqformer.ops.parameters import AttentionParameters
from freqformer.plan import AttentionPlan, build_plan

CONFIG = FreqFormerConfig(
    tile=(2, 4, 3), mid_tiles=2, window=(1, 1, 2), summary_tokens=2, compression=16
)
IMPL: Any = "triton"
GRIDS = (Grid(3, 4, 6), Grid(4, 8, 5), Grid(5, 5, 9), Grid(6, 3, 7), Grid(2, 9, 10))
LAYER_GRIDS = (Grid(2, 4, 6), Grid(3, 4, 3))
"""Two tiles each: a layer's call has many launches."""


def attend(
    grid: Grid,
    plan: AttentionPlan,
    tensors: list[Tensor],
    learned: list[Tensor],
    bands: Tensor,
    head_parts: int = 1,
) -> Tensor:
    parameters = None
    if learned:
        queries, offsets, query_norm, key_norm = learned
        parameters = AttentionParameters(queries, offsets, query_norm=query_norm, key_norm=key_norm)
    return frequency_attention(
        *tensors,
        grid=grid,
        allocation=bands,
        config=CONFIG,
        parameters=parameters,
        plan=plan,
        impl=IMPL,
        head_parts=head_parts,
    )


def check_gradients(device: str, backend: str) -> None:
    """Output and gradients of one call, compiled and not, bit for bit; so with heads in parts."""
    grid, heads, head_dim = Grid(3, 4, 6), 3, 16
    plan = build_plan(grid, CONFIG, num_heads=heads, head_dim=head_dim, learned_summaries=True)
    tensors, learned = (
        [torch.randn(shape, device=device).requires_grad_() for shape in shapes]
        for shapes in (
            [(1, grid.num_tokens, heads, head_dim)] * 3,
            [(heads, 2, head_dim), (heads, 3), (head_dim,), (head_dim,)],
        )
    )
    bands, grad_out = torch.tensor([0, 1, 2], device=device), torch.randn_like(tensors[0])
    results = []
    for call in (attend, torch.compile(attend, backend=backend, fullgraph=True)):
        out = call(grid, plan, tensors, learned, bands)
        results.append((out, *torch.autograd.grad(out, tensors + learned, grad_out)))
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))
    with torch.no_grad():
        whole = attend(grid, plan, tensors, learned, bands)
        parts = torch.compile(attend, backend=backend, fullgraph=True)
        assert torch.equal(parts(grid, plan, tensors, learned, bands, head_parts=2), whole)
    print("same bits")


def count_graphs(device: str, backend: str) -> None:
    """Graphs for five grids: one for the first as it is, and one for any."""
    counter = CompileCounterWithBackend(backend)
    compiled, bands = (
        torch.compile(attend, backend=counter, fullgraph=True),
        torch.tensor([2], device=device),
    )
    for grid in GRIDS:
        plan = build_plan(grid, CONFIG, num_heads=1, head_dim=16)
        tensors = [
            torch.randn(1, grid.num_tokens, 1, 16, device=device).requires_grad_() for _ in range(3)
        ]
        assert torch.equal(
            compiled(grid, plan, tensors, [], bands), attend(grid, plan, tensors, [], bands)
        )
    print(counter.frame_count, "graphs")


def count_layer_graphs(device: str, backend: str) -> None:
    """Graphs of a layer whose router chooses or weighs, and that finds its plan by the grid: one
    for each of two grids."""
    counters = []
    options: tuple[dict[str, Any], ...] = ({"routing": "hard"}, {"routing": "soft"})
    for given in options:
        layer = FreqAttention(32, 2, replace(CONFIG, **given)).to(device)
        if layer.gates is not None:
            torch.nn.init.normal_(layer.gates.bias)
        layer.set_impl(IMPL)
        counters.append(CompileCounterWithBackend(backend))
        compiled = torch.compile(layer, backend=counters[-1], fullgraph=True)
        for grid in LAYER_GRIDS:
            hidden_states = torch.randn(1, grid.num_tokens, 32, device=device)
            for noise in (0.1, 0.9):
                inputs = (hidden_states * noise, grid, torch.tensor([noise], device=device))
                torch.testing.assert_close(compiled(*inputs), layer(*inputs))
    print(*(counter.frame_count for counter in counters), "layer graphs")


def check_bands(device: str, backend: str) -> None:
    """A band that is none is refused when a graph runs, where that costs no wait; see
    `frequency_attention`."""
    grid = GRIDS[0]
    plan = build_plan(grid, CONFIG, num_heads=1, head_dim=16)
    tensors = [torch.randn(1, grid.num_tokens, 1, 16, device=device) for _ in range(3)]
    compiled = torch.compile(attend, backend=backend, fullgraph=True)
    try:
        compiled(grid, plan, tensors, [], torch.tensor([7], device=device))
    except ValueError as error:
        print("refused" if "bands 0 to 3 are allowed" in str(error) else error)


if __name__ == "__main__":
    given = sys.argv[1:3]
    IMPL = sys.argv[3]
    if IMPL == "triton":
        patch_language_once()
    check_gradients(*given)
    count_graphs(*given)
    count_layer_graphs(*given)
    if IMPL != "triton":
        check_bands(*given)
