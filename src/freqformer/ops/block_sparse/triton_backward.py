"""Backward of the block-sparse attention launch in Triton: the host side.

Shape legend: B batch, H heads, R = B * H rows (row = sample * H + head), N video tokens, X text
tokens, M low tokens, T tiles, C cells, D head_dim, S rows of the key buffer (`ops.key_layout`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from freqformer.buffers import PAD
from freqformer.config import Band
from freqformer.ops.block_sparse.records import (
    AttentionBuffers,
    AttentionGrads,
    AttentionOutputs,
    MidLists,
    RowBands,
)
from freqformer.ops.block_sparse.tables import LaunchTables
from freqformer.ops.block_sparse.transposed import (
    key_task_order,
    transpose_lists,
    transposed_tables,
)
from freqformer.ops.block_sparse.triton import LOG2_E, _has_descriptors, low_constants
from freqformer.ops.block_sparse.triton_backward_extras import (
    extra_grads_kernel,
    join_extra_grads_kernel,
)
from freqformer.ops.block_sparse.triton_backward_gather import gather_grads_kernel
from freqformer.ops.block_sparse.triton_backward_keys import video_grads_kernel
from freqformer.ops.block_sparse.triton_backward_queries import query_grads_kernel
from freqformer.ops.parameters import BranchGates

GATHER_ROWS = 32
JOIN_ROWS = 32
PART_TILES = 32
"""Query tiles of one part of what every query sees, and"""
MOST_PARTS = 16
"""most parts: their float32 sums wait in scratch memory."""


def attend_backward(
    grads: tuple[Tensor, Tensor],
    outputs: AttentionOutputs,
    buffers: AttentionBuffers,
    rows: RowBands,
    tables: LaunchTables,
    *,
    mid: MidLists | None,
    summary_offsets: Tensor | None,
    text_mask: Tensor | None,
    token_order: str,
    low_branch: BranchGates | None = None,
    gate_grads: Tensor | None = None,
) -> AttentionGrads:
    """Gradients of `attend`, from what it took and gave: no wait for the device, and the same bits
    every time.

    Args:
        grads: gradients of out (B, N + X, H, D) and low_out (R, M, D); those of places that it
            doesn't write aren't read. With gates the first is of what `merge_low` makes of `out`.
        outputs: of `attend` with `backward`.
        buffers, rows, tables, mid, summary_offsets, text_mask, token_order: as it took them.
        low_branch: the gates of `merge_low` (contiguous), None for no LOW branch.
        gate_grads: float32 (B, N, 2, H) with a LOW branch; gradients of the own band's gates are
            written into it, but in LOW rows.
    """
    plan, slots = tables.plan, tables.plan.layout.slots
    query, key = buffers.query, buffers.key
    num_rows, query_rows, head_dim = query.shape
    num_text, num_low, tiles = plan.num_text_tokens, plan.num_low_tokens, plan.layout.num_tiles
    num_video = query_rows - num_text - num_low
    high, mid_turned = transposed_tables(plan, query.device)
    lists = MidLists(tables.mid_lists, tables.mid_lengths, tables.mid_bias)
    if tables.mid_lists is None and mid is not None and mid.lists is not None:
        mid_turned = transpose_lists(mid.lists, mid.lengths, rows.allocation == Band.MID)
        lists = mid
    grad_out, grad_low_out = (x.contiguous() for x in grads)
    out, low_out, lse, residual = outputs
    grad = torch.empty_like(query)
    statistic_rows = _cdiv(query_rows, 16) * 16
    log_sums, deltas, rests = (lse.new_empty(num_rows, statistic_rows) for _ in range(3))
    statistics = (log_sums, deltas, rests if query.dtype == torch.float32 else None)
    call = _Call(
        buffers=(query, key, buffers.value),
        grad=grad,
        statistics=statistics,
        rows=rows,
        layout=(tables.tile_offsets, tables.tile_counts),
        tile_slots=slots,
        tile_tokens=slots if tables.uniform else 0,
        biases=(tables.low_bias, tables.high_bias, lists.bias, summary_offsets),
        text_mask=None if text_mask is None else text_mask.view(torch.uint8),
        sizes=(num_rows, plan.num_heads, tiles, num_video, num_text, num_low, plan.cells.num_cells),
        segments=(*tables.keys.offsets, key.shape[1]),
    )
    grad_query, grad_key, grad_value = (torch.empty_like(x) for x in (query, key, buffers.value))
    with torch.cuda.device_of(query):
        _launch(
            gather_grads_kernel,
            num_rows * _cdiv(query_rows, GATHER_ROWS),
            (out.contiguous(), low_out.contiguous(), residual),
            (grad_out, grad_low_out),
            (grad, *statistics),
            lse,
            (None, None) if low_branch is None else low_branch.both,
            gate_grads,
            tables.raster if token_order == "raster" else None,
            rows.allocation,
            *(num_rows, plan.num_heads, num_video, num_text, num_low, statistic_rows),
            ROWS=GATHER_ROWS,
            HEAD_DIM=head_dim,
            PAD=PAD,
            BRANCH=rows.low_branch,
        )
        call.query_grads(
            grad_query, (tables.every_tile, tables.high_lists, lists.lists, lists.lengths)
        )
        turned = (None, None) if mid_turned is None else (mid_turned.starts, mid_turned.queries)
        call.video_grads(
            grad_key, grad_value, tables.every_tile, (high.starts, high.queries, *turned)
        )
        grad_offsets = call.extra_grads(grad_key, grad_value)
    return AttentionGrads(grad_query, grad_key, grad_value, grad_offsets)


@dataclass(frozen=True)
class _Call:
    """What all launches of one backward pass take."""

    buffers: tuple[Tensor, Tensor, Tensor]
    grad: Tensor
    """Output gradients as the queries lie, (R, N + X, D)."""
    statistics: tuple[Tensor, Tensor, Tensor | None]
    """Log-sum-exp in base 2, delta, and in float32 what the first lacks, of every query, float32
    (R, N + X or more)."""
    rows: RowBands
    layout: tuple[Tensor, ...]
    """First token of every tile, and tokens of every tile."""
    tile_slots: int
    tile_tokens: int
    """Tokens of every tile, 0 where tiles differ."""
    biases: tuple[Tensor | None, ...]
    """Of low tokens, HIGH and MID summaries, and learned offsets."""
    text_mask: Tensor | None
    sizes: tuple[int, ...]
    """R, H, T, N, X, M, C."""
    segments: tuple[int, ...]
    """The offsets of `KeyLayout`, and S."""

    def query_grads(self, grad_query: Tensor, lists: Sequence[Tensor | None]) -> None:
        blocks = _Blocks.of_queries(grad_query)
        rows, _, tiles, _, num_text, num_low, _ = self.sizes
        every_tile, high_lists, mid_lists, mid_lengths = lists
        assert high_lists is not None
        query_blocks = _cdiv(self.tile_slots, blocks.query)
        low_tasks = _cdiv(num_low, blocks.query) if self.rows.lows else 0
        _launch(
            query_grads_kernel,
            rows * (tiles * query_blocks + _cdiv(num_text, blocks.query) + low_tasks),
            *self.described(blocks),
            *self.statistics,
            grad_query,
            self.rows.order,
            self.rows.allocation,
            *self.layout,
            (every_tile, high_lists, mid_lists, mid_lengths),
            self.biases,
            self.text_mask,
            self.scale,
            *self.sizes,
            *self.segments,
            high_lists.shape[1],
            0 if mid_lists is None else mid_lists.shape[2],
            _per_row(mid_lists),
            _per_row(self.biases[2]),
            self.statistics[0].shape[1],
            QUERY_BLOCKS=query_blocks,
            TILE_BLOCKS=_cdiv(self.tile_slots, blocks.key),
            SAFE=self.tile_slots % blocks.key // 8 * 8,
            TEXT=num_text > 0,
            **low_constants(self.rows),
            **self.options(blocks),
        )

    def video_grads(
        self,
        grad_key: Tensor,
        grad_value: Tensor,
        every_tile: Tensor | None,
        transposed: Sequence[Tensor | None],
    ) -> None:
        blocks = _Blocks.of_keys(grad_key)
        rows, _, tiles, _, num_text, _, _ = self.sizes
        high_starts, high_queries, mid_starts, mid_queries = transposed
        assert high_starts is not None
        order = key_task_order(self.rows.allocation, high_starts, mid_starts, tiles)
        key_blocks = _cdiv(self.tile_slots, blocks.key)
        _launch(
            video_grads_kernel,
            rows * tiles * key_blocks * (2 if self.segments[5] > 0 else 1),
            *self.described(blocks),
            *self.statistics,
            grad_key,
            grad_value,
            order,
            self.rows.allocation,
            *self.layout,
            (every_tile, high_starts, high_queries, mid_starts, mid_queries),
            self.scale,
            *self.sizes,
            *self.segments,
            0 if mid_starts is None else int(mid_starts.shape[0] > tiles + 1),
            self.statistics[0].shape[1],
            QUERY_BLOCKS=_cdiv(self.tile_slots, blocks.query),
            KEY_BLOCKS=key_blocks,
            TEXT=num_text > 0,
            **self.options(blocks),
        )

    def extra_grads(self, grad_key: Tensor, grad_value: Tensor) -> Tensor | None:
        """Gradients of low tokens, summaries and text keys; returns those of the learned offsets,
        None without them."""
        blocks = _Blocks.of_keys(grad_key)
        rows, heads, tiles, _, num_text, num_low, cells = self.sizes
        cell_blocks = _cdiv(cells, blocks.key)
        shared = cell_blocks * (1 if self.segments[2] < 0 else 3) + _cdiv(num_text, blocks.key)
        parts = max(1, min(MOST_PARTS, tiles // PART_TILES))
        low_tasks = _cdiv(num_low, blocks.key) if self.rows.lows else 0
        starts = [start for start in self.segments[1:5] if start >= 0] or [0]
        region_rows = starts[-1] + (num_text or cells) - starts[0]
        wide = {"dtype": torch.float32, "device": grad_key.device}
        sums = [torch.empty(rows, parts, region_rows, grad_key.shape[2], **wide) for _ in range(2)]
        offsets = self.biases[3]
        slopes = None if offsets is None else torch.zeros(rows, 3, cell_blocks, parts, **wide)
        partial = (*sums, slopes)
        _launch(
            extra_grads_kernel,
            rows * (shared * parts + low_tasks),
            *self.described(blocks),
            *self.statistics,
            grad_key,
            grad_value,
            partial,
            self.rows.order,
            self.rows.allocation,
            *self.layout,
            self.biases,
            self.text_mask,
            self.scale,
            *self.sizes,
            *self.segments,
            *(_per_row(self.biases[2]), starts[0], region_rows, parts, self.statistics[0].shape[1]),
            QUERY_BLOCKS=_cdiv(self.tile_slots, blocks.query),
            BRANCH=self.rows.low_branch,
            **self.options(blocks),
        )
        if region_rows:
            _launch(
                join_extra_grads_kernel,
                rows * _cdiv(region_rows, JOIN_ROWS),
                partial,
                grad_key,
                grad_value,
                self.rows.allocation,
                *self.sizes,
                *self.segments,
                *(starts[0], region_rows, parts),
                ROWS=JOIN_ROWS,
                HEAD_DIM=grad_key.shape[2],
                BRANCH=self.rows.low_branch,
            )
        if slopes is None or offsets is None:
            return None
        return slopes.reshape(rows // heads, heads, 3, cell_blocks * parts).sum(3).to(offsets.dtype)

    @property
    def scale(self) -> float:
        return LOG2_E * self.grad.shape[2] ** -0.5

    def described(self, blocks: _Blocks) -> tuple:
        """Query, key, value and output gradient as the kernels load them."""
        tensors = (*self.buffers, self.grad)
        if not self.descriptors(blocks):
            return tensors
        sides = (blocks.query, blocks.key, blocks.key, blocks.query)
        return tuple(
            TensorDescriptor.from_tensor(x.flatten(0, 1), [side, x.shape[2]])
            for x, side in zip(tensors, sides, strict=True)
        )

    def descriptors(self, blocks: _Blocks) -> bool:
        """Whether blocks are read by tensor descriptors, whose coordinates are int32, or by
        pointers."""
        rows = max(x.shape[0] * x.shape[1] for x in self.buffers)
        fits = self.grad.dtype != torch.float32 and rows < 2**31
        return fits and _has_descriptors(self.grad.device)

    def options(self, blocks: _Blocks) -> dict[str, Any]:
        return {
            "HEAD_DIM": self.grad.shape[2],
            "BLOCK_Q": blocks.query,
            "BLOCK_K": blocks.key,
            "TILE_TOKENS": self.tile_tokens,
            "DESCRIPTORS": self.descriptors(blocks),
            "STAGES": blocks.stages,
            "num_warps": blocks.warps,
        }


@dataclass(frozen=True)
class _Blocks:
    """Queries and keys of one step of a launch, and how it is compiled; measured on an H200, others
    by occupancy."""

    query: int
    key: int
    warps: int
    stages: int

    @staticmethod
    def of_queries(query: Tensor) -> _Blocks:
        """For gradients of queries: a program holds one block of queries."""
        if query.dtype == torch.float32:
            # Without matrix units the operands of a product live in registers: small blocks, or
            # they spill.
            return _Blocks(32, 16, 8, 1)
        if not _has_descriptors(query.device):
            return _Blocks(64, 32, 4, 2) if query.shape[2] <= 128 else _Blocks(32, 32, 4, 1)
        return _Blocks(64, 64, 4 if query.shape[2] <= 128 else 8, 2)

    @staticmethod
    def of_keys(key: Tensor) -> _Blocks:
        """For gradients of keys and values: a program holds one block of keys."""
        if key.dtype == torch.float32:
            return _Blocks(16, 32, 8, 1)
        if not _has_descriptors(key.device):
            return _Blocks(32, 64, 4, 2) if key.shape[2] <= 128 else _Blocks(32, 32, 4, 1)
        return _Blocks(64, 64, 4, 2) if key.shape[2] <= 128 else _Blocks(32, 64, 8, 2)


def _launch(kernel: Any, programs: int, *arguments: Any, **options: Any) -> None:
    kernel[(programs,)](*arguments, **options)


def _cdiv(total: int, step: int) -> int:
    return -(-total // step)


def _per_row(x: Tensor | None) -> int:
    """1 where every row has its own part of x, 0 where all share one."""
    return 0 if x is None else int(x.shape[0] > 1)
