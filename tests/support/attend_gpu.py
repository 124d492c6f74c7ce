"""What every launch of the attention must do on a GPU, whichever kernel it runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any
from unittest import mock

import torch
from tests.support.attend_cases import AttendCase, check_case

from freqformer.ops.block_sparse.records import AttentionOutputs
from freqformer.ops.block_sparse.triton import launch
from freqformer.plan import AttentionPlan

Attend = Callable[..., AttentionOutputs]
"""As `launch.attend`."""
CANARY = -5.0
AROUND = 4096
"""Numbers before and behind every output that must stay as they are."""


def check_nothing_else_is_written(
    attend: Attend, cases: Iterable[tuple[AttendCase, dict[str, Any]]], *, backward: bool = False
) -> None:
    """Raise AssertionError where a launch writes beside its outputs, or wrong results."""
    made: list[tuple[torch.Tensor, int]] = []

    def guarded(query: torch.Tensor, *shape: int, dtype: torch.dtype | None = None) -> torch.Tensor:
        size = torch.Size(shape).numel()
        memory = torch.full(
            (size + 2 * AROUND,), CANARY, dtype=dtype or query.dtype, device=query.device
        )
        made.append((memory, size))
        return memory[AROUND : AROUND + size].view(shape)

    def outputs(query: torch.Tensor, plan: AttentionPlan, backward: bool) -> AttentionOutputs:
        rows, queries, _ = query.shape
        head_dim = plan.head_dim
        low, heads = plan.num_low_tokens, plan.num_heads
        width = 2 if query.dtype == torch.float32 else head_dim
        return AttentionOutputs(
            out=guarded(query, rows // heads, queries - low, heads, head_dim),
            low_out=guarded(query, rows, low, head_dim),
            lse=guarded(query, rows, queries, dtype=torch.float32),
            rounding_residual=guarded(query, rows, queries, width) if backward else None,
        )

    with mock.patch.object(launch, "empty_outputs", outputs):
        for case, told in cases:
            check_case(case, attend(**case.arguments, backward=backward), told)
    assert made
    for memory, size in made:
        assert bool((memory[:AROUND] == CANARY).all())
        assert bool((memory[AROUND + size :] == CANARY).all())


def check_a_graph_replays(attend: Attend, case: AttendCase, told: dict[str, Any]) -> None:
    """Raise AssertionError unless a captured launch reads what is there at its replay."""
    attend(**case.arguments)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = attend(**case.arguments)
    graph.replay()
    check_case(case, got, told)
    case.buffers.key[:, :4].neg_()  # new keys in the same memory
    graph.replay()
    check_case(case, got, told)
