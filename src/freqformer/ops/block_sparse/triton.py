"""Block-sparse attention of every head of every band in one Triton launch, forward: the host side.

Shape legend: B batch, H heads, R = B * H rows (row = sample * H + head), N video tokens, X text
tokens, M low tokens, T tiles, L longest list, C cells, D head_dim, S rows of the key buffer
(`ops.key_layout`).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from freqformer.buffers import text_parts
from freqformer.ops.block_sparse.records import (
    AttentionBuffers,
    AttentionOutputs,
    MidLists,
    RowBands,
)
from freqformer.ops.block_sparse.tables import LaunchTables
from freqformer.ops.block_sparse.triton_join import join_text_kernel
from freqformer.ops.block_sparse.triton_kernel import attention_kernel
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
    plan, slots = tables.plan, tables.plan.layout.slots
    query, key, value = buffers.query, buffers.key, buffers.value
    lists = mid or MidLists(tables.mid_lists, tables.mid_lengths, tables.mid_bias)
    num_text, num_low, tiles = plan.num_text_tokens, plan.num_low_tokens, plan.layout.num_tiles
    num_rows, query_rows, head_dim = query.shape
    outputs = _empty_outputs(query, plan, backward)
    parts = text_parts(tiles) if num_text and not backward else 1
    part_out, part_lse = _text_parts(query, parts, num_text)
    join_constants: dict[str, Any] = {"ROWS": JOIN_ROWS, "HEAD_DIM": head_dim}
    launch = _launch(query, slots, num_rows * key.shape[1])
    tasks = tiles * _cdiv(slots, launch.block_q) + _cdiv(num_text, launch.block_q) * parts
    if rows.lows:
        tasks += _cdiv(num_low, launch.block_q)
    written = (part_out, part_lse, outputs.rounding_residual)
    mid_steps = (*_steps(lists.lists), _steps(lists.bias)[1])
    with torch.cuda.device_of(query):
        attention_kernel[(num_rows * tasks,)](
            launch.matrix(query, launch.block_q),
            launch.matrix(key, launch.block_k),
            launch.matrix(value, launch.block_k),
            (
                outputs.out,
                tables.raster if token_order == "raster" else None,
                outputs.low_out,
                outputs.lse,
                *written,
            ),
            rows.order,
            rows.allocation,
            tables.tile_offsets,
            tables.tile_counts,
            (tables.every_tile, tables.high_lists, lists.lists, lists.lengths),
            (tables.low_bias, tables.high_bias, lists.bias, summary_offsets),
            text_mask,
            LOG2_E * head_dim**-0.5,
            num_rows,
            plan.num_heads,
            tiles,
            query_rows - num_text - num_low,
            num_text,
            num_low,
            plan.cells.num_cells,
            tables.high_lists.shape[1],
            *mid_steps,
            *tables.keys.offsets,
            key.shape[1],
            parts,
            **launch.constants(head_dim, slots, slots if tables.uniform else 0, num_text),
            **low_constants(rows),
        )
        if parts > 1:
            join_text_kernel[(num_rows * _cdiv(num_text, JOIN_ROWS),)](
                part_out,
                part_lse,
                outputs.out,
                outputs.lse,
                plan.num_heads,
                parts,
                query_rows - num_text - num_low,
                num_text,
                num_low,
                **join_constants,
            )
    return outputs


def _empty_outputs(query: Tensor, plan: AttentionPlan, backward: bool) -> AttentionOutputs:
    rows, query_rows, head_dim = query.shape
    batch, tokens = rows // plan.num_heads, query_rows - plan.num_low_tokens
    width = 2 if query.dtype == torch.float32 else head_dim
    return AttentionOutputs(
        out=query.new_empty(batch, tokens, plan.num_heads, head_dim),
        low_out=query.new_empty(rows, plan.num_low_tokens, head_dim),
        lse=query.new_empty(rows, query_rows, dtype=torch.float32),
        rounding_residual=query.new_empty(rows, query_rows, width) if backward else None,
    )


def _text_parts(query: Tensor, parts: int, num_text: int) -> tuple[Tensor | None, Tensor | None]:
    """Where results of parts of text queries wait, and their log-sum-exp; None for one part."""
    if parts == 1:
        return None, None
    rows, _, head_dim = query.shape
    wide = {"dtype": torch.float32, "device": query.device}
    return (
        torch.empty(rows, parts, num_text, head_dim, **wide),
        torch.empty(rows, parts, num_text, **wide),
    )


def low_constants(rows: RowBands) -> dict[str, Any]:
    """What kernels are compiled for by the rows that have low queries."""
    return {"LOWS": rows.lows, "BRANCH": rows.low_branch}


def _cdiv(total: int, step: int) -> int:
    return -(-total // step)


def _steps(per_row: Tensor | None) -> tuple[int, int]:
    """Entries of a list in (R or 1, T, entries), and 1 where every row has its own, 0 where all
    share."""
    return (0, 0) if per_row is None else (per_row.shape[2], int(per_row.shape[0] > 1))


@dataclass(frozen=True)
class _Launch:
    """How the kernel is compiled."""

    block_q: int
    block_k: int
    warps: int
    stages: int
    descriptors: bool
    """Whether blocks are read by tensor descriptors, from Hopper on, or by pointers."""

    def constants(
        self, head_dim: int, slots: int, tile_tokens: int, num_text: int
    ) -> dict[str, Any]:
        """Constants of `attention_kernel`."""
        return {
            "HEAD_DIM": head_dim,
            "BLOCK_Q": self.block_q,
            "BLOCK_K": self.block_k,
            "QUERY_BLOCKS": -(-slots // self.block_q),
            "TILE_BLOCKS": -(-slots // self.block_k),
            "TILE_TOKENS": tile_tokens,
            "SAFE": slots % self.block_k // 8 * 8,
            "TEXT": num_text > 0,
            "DESCRIPTORS": self.descriptors,
            "STAGES": self.stages,
            "num_warps": self.warps,
        }

    def matrix(self, x: Tensor, block: int) -> Tensor | TensorDescriptor:
        """(R, rows, D) as the kernel reads it, in blocks of rows."""
        return (
            TensorDescriptor.from_tensor(x.flatten(0, 1), [block, x.shape[2]])
            if self.descriptors
            else x
        )


def _launch(query: Tensor, slots: int, key_rows: int) -> _Launch:
    """Block sizes and warps by dtype, head_dim and GPU; measured on an H200 (benchmarks/results),
    others by occupancy."""
    head_dim, block_q = query.shape[2], 64 if slots <= 64 else 128
    # A descriptor counts rows in 32 bits.
    descriptors = _has_descriptors(query.device) and key_rows < 2**31
    if query.dtype == torch.float32 or _capability(query.device) < 8:
        # Without matrix units the operands of a product live in registers: small blocks, or they
        # spill.
        return _Launch(32, 64 if head_dim <= 64 else 32, 8, 1, False)
    if head_dim > 128:
        return _Launch(block_q, 64 if descriptors else 32, 8, 2, descriptors)
    return _Launch(block_q, 64, 4 if descriptors else 8, 2, descriptors)


def _has_descriptors(device: torch.device) -> bool:
    """Whether tensor descriptors are read by hardware; the interpreter reads them on any CPU."""
    return _capability(device) >= 9


@lru_cache(maxsize=16)
def _capability(device: torch.device) -> int:
    """Major compute capability; an AMD GPU counts as 8: matrix units, no descriptors. A CPU
    interprets everything."""
    if device.type == "cpu":
        return 9
    if device.type != "cuda" or torch.version.cuda is None:
        return 8
    return torch.cuda.get_device_capability(device)[0]
