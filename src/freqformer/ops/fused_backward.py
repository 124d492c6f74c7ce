"""Gradients of the fused pipeline: its launches in reverse, over what the prologue computes once more.

Beside its inputs and output a call keeps the low tokens' outputs, the log-sum-exp of every query, what rounding took from
the outputs, and the choice of tiles.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from freqformer.config import Band
from freqformer.ops.block_sparse.tables import launch_tables
from freqformer.ops.block_sparse.triton import AttentionBuffers, MidLists, RowBands
from freqformer.ops.block_sparse.triton_backward import attend_backward
from freqformer.ops.fused import FusedCall, contiguous, run
from freqformer.ops.merge.backward_tables import collapse_tables
from freqformer.ops.merge.triton_backward import merge_low_backward
from freqformer.ops.parameters import AttentionParameters
from freqformer.ops.prologue.tables import prologue_tables
from freqformer.ops.prologue.triton import prepare_rows
from freqformer.ops.prologue.triton_backward import prepare_rows_backward


class FusedAttention(torch.autograd.Function):
    """`fused.run` with gradients of query, key, value and what is learned."""

    @staticmethod
    def forward(ctx: Any, call: FusedCall, parameters: AttentionParameters, *tensors: Tensor | None) -> Tensor:
        query, key, value, *learned = tensors
        assert query is not None
        assert key is not None
        assert value is not None
        outputs = run((query, key, value), _with(parameters, learned), call, backward=True)
        mid = (None, None, None) if outputs.mid is None else (outputs.mid.lists, outputs.mid.lengths, outputs.mid.bias)
        ctx.call, ctx.parameters = call, replace(parameters, **dict.fromkeys(_LEARNED))
        ctx.save_for_backward(*tensors, outputs.out, outputs.low_out, outputs.lse, outputs.remainder, *mid)
        return outputs.out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        query, key, value, *learned, out, low_out, lse, remainder, lists, lengths, bias = ctx.saved_tensors
        learned, call = _with(ctx.parameters, learned), ctx.call
        plan, grad_out = call.plan, grads[0].contiguous()
        launch, tables = launch_tables(plan, query.device), prologue_tables(plan, query.device, query.dtype)
        rows = prepare_rows(
            (query, key, value), call.bands, tables, launch.band_blocks, parameters=learned, token_order=call.token_order
        )
        grad_low_out = low_out
        if Band.LOW in call.present:
            collapse = collapse_tables(plan, query.device, query.dtype, call.token_order)
            grad_low_out = merge_low_backward(grad_out, rows.bands, collapse, plan.num_low_tokens)
        attention = attend_backward(
            (grad_out, grad_low_out),
            (out, low_out, lse, remainder),
            AttentionBuffers(rows.query, rows.key, rows.value),
            RowBands(rows.bands, rows.order),
            launch,
            mid=None if lists is None else MidLists(lists, lengths, bias),
            summary_offsets=contiguous(learned.summary_offsets),
            text_mask=contiguous(call.text_mask),
            token_order=call.token_order,
        )
        prologue = prepare_rows_backward(
            (attention.query, attention.key, attention.value),
            (query, key, value),
            rows.bands,
            (rows.key, rows.value, rows.pool_lse),
            tables,
            parameters=learned,
            token_order=call.token_order,
        )
        return (
            *(None, None),
            *prologue.tensors,
            prologue.summary_queries,
            attention.summary_offsets,
            prologue.gains,
            prologue.query_norm,
            prologue.key_norm,
        )


_LEARNED = ("summary_queries", "summary_offsets", "gains", "query_norm", "key_norm")


def _with(parameters: AttentionParameters, learned: list[Tensor | None]) -> AttentionParameters:
    return replace(parameters, **dict(zip(_LEARNED, learned, strict=True)))
