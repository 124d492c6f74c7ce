"""Block-sparse attention of every head of every band in one Triton launch, forward: the host side.

Shape legend: B batch, H heads, R = B * H rows (row = sample * H + head), N video tokens, X text
tokens, M low tokens, T tiles, L longest list, C cells, D head_dim, W channels of a row of the
buffers (`buffers.buffer_width`), S rows of the key buffer (`buffers.key_layout`).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from freqformer.buffers import buffer_width, text_parts
from freqformer.ops.architectures import architecture
from freqformer.ops.block_sparse.records import (
    AttentionBuffers,
    AttentionOutputs,
    MidLists,
    RowBands,
)
from freqformer.ops.block_sparse.tables import LaunchTables
from freqformer.ops.block_sparse.triton.blocks import Biases, Blocks, Lists, Rows, Tiles
from freqformer.ops.block_sparse.triton.forward import Outputs, attention_kernel
from freqformer.ops.block_sparse.triton.join import TextParts, join_text_kernel
from freqformer.plan import AttentionPlan

JOIN_ROWS = 16
"""Text queries that one program joins."""
LOG2_E = 1.4426950408889634


def attend(
    buffers: AttentionBuffers,
    rows: RowBands,
    tables: LaunchTables,
    *,
    mid: MidLists | None,
    summary_offsets: Tensor | None,
    text_mask: Tensor | None,
    token_order: str,
    backward: bool = False,
) -> AttentionOutputs:
    """Attention of all rows, one launch (and a small second one that joins the parts of text
    queries, if there is text and no backward).

    Args:
        buffers: queries, keys and values.
        rows: bands of the rows.
        tables: static lists, biases and offsets of the plan on this device, `launch_tables(plan,
            device)`.
        mid: the top-k choice; None where the plan's MID lists are static (`tables.mid_lists`, or
            every tile).
        summary_offsets: learned offsets of the low, mid and high summaries, float (B, H, 3); None
            is zero.
        text_mask: bool (B, X), True where a text token may be seen; None sees all.
        token_order: order of the video tokens in `out`, `raster` or `tile`.
        backward: whether gradients will be asked for, which need one more output.
    """
    plan = tables.plan
    slots = plan.layout.slots
    query = buffers.query
    num_rows, key_rows, _ = buffers.key.shape
    num_text = plan.num_text_tokens
    lists = mid or MidLists(tables.mid_lists, tables.mid_lengths, tables.mid_bias)
    outputs = empty_outputs(query, plan, backward)
    parts = text_parts(plan.layout.num_tiles) if num_text and not backward else 1
    text = empty_parts(query, plan, parts)
    launch = _launch(query, plan.layout.block, num_rows * key_rows)
    tasks = plan.layout.num_tiles * _cdiv(slots, launch.block_q)
    tasks += _cdiv(num_text, launch.block_q) * parts
    if rows.lows:
        tasks += _cdiv(plan.num_low_tokens, launch.block_q)
    with torch.cuda.device_of(query):
        attention_kernel[(num_rows * tasks,)](
            launch.matrix(query, launch.block_q),
            launch.matrix(buffers.key, launch.block_k),
            launch.matrix(buffers.value, launch.block_k),
            Outputs(
                out=outputs.out,
                raster=tables.raster if token_order == "raster" else None,
                low_out=outputs.low_out,
                lse=outputs.lse,
                rounding_residual=outputs.rounding_residual,
                parts=text,
            ),
            Rows(order=rows.order, allocation=rows.allocation),
            tiles_of(tables),
            listed(tables, lists),
            biases(tables, lists, summary_offsets, text_mask),
            scale_of(plan.head_dim),
            launch.compiled_for(tables, rows),
            num_rows=num_rows,
            key_rows=key_rows,
            text_parts=parts,
            **query_sizes(tables, lists),
            num_warps=launch.warps,  # pyright: ignore[reportCallIssue]
        )
        if text is not None:
            join(text, outputs, plan)
    return outputs


def join(text: TextParts, outputs: AttentionOutputs, plan: AttentionPlan) -> None:
    """Text queries of `outputs` from their parts."""
    rows, num_parts, num_text, head_dim = text.out.shape
    _, tokens, heads, _ = outputs.out.shape
    join_text_kernel[(rows * _cdiv(num_text, JOIN_ROWS),)](
        text,
        outputs.out,
        outputs.lse,
        num_heads=heads,
        num_parts=num_parts,
        num_tokens=tokens - num_text,
        num_text=num_text,
        num_low=plan.num_low_tokens,
        ROWS=JOIN_ROWS,  # pyright: ignore[reportArgumentType]
        WIDTH=buffer_width(head_dim),  # pyright: ignore[reportArgumentType]
        CHANNELS=head_dim,  # pyright: ignore[reportArgumentType]
    )


def empty_outputs(query: Tensor, plan: AttentionPlan, backward: bool) -> AttentionOutputs:
    rows, query_rows, _ = query.shape
    head_dim = plan.head_dim
    batch = rows // plan.num_heads
    tokens = query_rows - plan.num_low_tokens
    width = 2 if query.dtype == torch.float32 else head_dim
    return AttentionOutputs(
        out=query.new_empty(batch, tokens, plan.num_heads, head_dim),
        low_out=query.new_empty(rows, plan.num_low_tokens, head_dim),
        lse=query.new_empty(rows, query_rows, dtype=torch.float32),
        rounding_residual=query.new_empty(rows, query_rows, width) if backward else None,
    )


def empty_parts(query: Tensor, plan: AttentionPlan, parts: int) -> TextParts | None:
    """Where results of parts of text queries wait; None for one part."""
    if parts == 1:
        return None
    shape = (len(query), parts, plan.num_text_tokens)
    return TextParts(
        out=query.new_empty(*shape, plan.head_dim, dtype=torch.float32),
        lse=query.new_empty(shape, dtype=torch.float32),
    )


def scale_of(head_dim: int) -> float:
    """What products of queries and keys are multiplied by: logits to base 2."""
    return LOG2_E * head_dim**-0.5


@lru_cache(maxsize=256)
def compiled_for(**constants: Any) -> Blocks:
    """`Blocks` of these values, cached."""
    return Blocks(**{name: tl.constexpr(value) for name, value in constants.items()})


def safe_columns(slots: int, block: int) -> int:
    """Columns of the last block of keys of a tile of `slots` that only short tiles leave empty."""
    return slots % block // 8 * 8


def tiles_of(tables: LaunchTables) -> Tiles:
    """The tiles of a plan as kernels take them."""
    return Tiles(offsets=tables.tile_offsets, counts=tables.tile_counts)


def listed(tables: LaunchTables, mid: MidLists) -> Lists:
    """The lists of a call as kernels take them."""
    return Lists(
        every=tables.every_tile,
        high=tables.high_lists,
        mid=mid.lists,
        mid_lengths=mid.lengths,
        mid_step=per_row(mid.lists),
    )


def biases(
    tables: LaunchTables,
    mid: MidLists,
    summary_offsets: Tensor | None,
    text_mask: Tensor | None,
) -> Biases:
    """The biases of a call as kernels take them."""
    return Biases(
        low=tables.low_bias,
        high=tables.high_bias,
        mid=mid.bias,
        mid_step=per_row(mid.bias),
        summary_offsets=summary_offsets,
        text_mask=text_mask,
    )


def counts(tables: LaunchTables) -> dict[str, int]:
    """Low tokens and cells, by the names of kernels' parameters."""
    return {"num_low": tables.plan.num_low_tokens, "cells": tables.plan.cells.num_cells}


def query_sizes(tables: LaunchTables, mid: MidLists) -> dict[str, int]:
    """`LaunchTables.sizes`, `counts` and the lengths of lists."""
    _, high_length = tables.high_lists.shape
    mid_length = 0 if mid.lists is None else mid.lists.shape[2]
    return {
        **tables.sizes,
        **counts(tables),
        "high_length": high_length,
        "mid_length": mid_length,
    }


def per_row(x: Tensor | None) -> int:
    """1 where every row has its own part of x, 0 where all share one."""
    return 0 if x is None else int(x.shape[0] > 1)


def _cdiv(total: int, step: int) -> int:
    return -(-total // step)


@dataclass(frozen=True)
class _Launch:
    """How the kernel is compiled."""

    block_q: int
    block_k: int
    warps: int
    stages: int
    descriptors: bool
    """Whether blocks are read by tensor descriptors, from Hopper on, or by pointers."""

    def compiled_for(self, tables: LaunchTables, rows: RowBands) -> Blocks:
        """Constants of `attention_kernel`."""
        slots = tables.plan.layout.slots
        return compiled_for(
            HEAD_DIM=buffer_width(tables.plan.head_dim),
            BLOCK_Q=self.block_q,
            BLOCK_K=self.block_k,
            DESCRIPTORS=self.descriptors,
            STAGES=self.stages,
            TILE_TOKENS=slots if tables.uniform else 0,
            QUERY_BLOCKS=_cdiv(slots, self.block_q),
            KEY_BLOCKS=_cdiv(slots, self.block_k),
            SAFE=safe_columns(slots, self.block_k),
            TEXT=tables.plan.num_text_tokens > 0,
            LOWS=rows.lows,
            BRANCH=rows.low_branch,
            CHANNELS=tables.plan.head_dim,
        )

    def matrix(self, x: Tensor, block: int) -> Tensor | TensorDescriptor:
        """(R, rows, W) as the kernel reads it, in blocks of rows."""
        return (
            TensorDescriptor.from_tensor(x.flatten(0, 1), [block, x.shape[2]])
            if self.descriptors
            else x
        )


def _launch(query: Tensor, block: int, key_rows: int) -> _Launch:
    """Block sizes and warps by dtype, head_dim and GPU, for tiles of so many slots."""
    row = architecture(query.device)
    if key_rows >= 2**31:
        row = row.by_pointers()  # a descriptor counts rows in 32 bits
    step = row.steps(query.dtype, query.shape[2]).forward
    return _Launch(
        # Tiles that fill no more than 64 places leave the other queries of a larger block idle.
        block_q=min(step.query, block),
        block_k=step.key,
        warps=step.warps,
        stages=step.stages,
        descriptors=row.descriptors and query.dtype != torch.float32,
    )
