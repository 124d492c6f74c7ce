"""The launches of the attention's backward in Triton, one method each; `launch_backward.py` has
their order.

Shape legend: B batch, H heads, R = B * H rows (row = sample * H + head), N video tokens, X text
tokens, M low tokens, D head_dim.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from freqformer.buffers import PAD
from freqformer.ops.architectures import architecture
from freqformer.ops.block_sparse.records import (
    AttentionBuffers,
    AttentionOutputs,
    MidLists,
    RowBands,
)
from freqformer.ops.block_sparse.tables import LaunchTables
from freqformer.ops.block_sparse.transposed import (
    TransposedLists,
    key_task_order,
)
from freqformer.ops.block_sparse.triton.blocks import Biases, Blocks, Rows
from freqformer.ops.block_sparse.triton.bwd_dkv import KeyGrads, ListingTiles, video_grads_kernel
from freqformer.ops.block_sparse.triton.bwd_dq import query_grads_kernel
from freqformer.ops.block_sparse.triton.bwd_dsummary import extra_grads_kernel
from freqformer.ops.block_sparse.triton.bwd_gather import (
    Gates,
    Given,
    OutputGrads,
    Statistics,
    gather_grads_kernel,
)
from freqformer.ops.block_sparse.triton.bwd_join import KeyParts, join_extra_grads_kernel
from freqformer.ops.block_sparse.triton.grad_blocks import GradBlocks
from freqformer.ops.block_sparse.triton.launch import (
    _cdiv,
    compiled_for,
    counts,
    listed,
    query_sizes,
    safe_columns,
    scale_of,
    tiles_of,
)

GATHER_ROWS = 32
JOIN_ROWS = 32
PART_TILES = 32
"""Query tiles of one part of what every query sees, and"""
MOST_PARTS = 16
"""most parts: their float32 sums wait in scratch memory."""


class _Region(NamedTuple):
    """Rows of the key buffer that hold summaries and text."""

    start: int
    rows: int


@dataclass(frozen=True)
class BackwardLaunches:
    """What all launches of one backward pass take."""

    buffers: AttentionBuffers
    grad: Tensor
    """Output gradients as the queries lie, (R, N + X + M, D)."""
    statistics: Statistics
    rows: RowBands
    tables: LaunchTables
    mid: MidLists
    """Static lists or the call's."""
    biases: Biases

    def gather(
        self, outputs: AttentionOutputs, grads: OutputGrads, gates: Gates, raster: Tensor | None
    ) -> None:
        """Fill `grad` and `statistics`."""
        plan = self.tables.plan
        num_rows, query_rows, head_dim = self.buffers.query.shape
        assert outputs.rounding_residual is not None
        _launch(
            gather_grads_kernel,
            num_rows * _cdiv(query_rows, GATHER_ROWS),
            Given(
                out=outputs.out.contiguous(),
                low_out=outputs.low_out.contiguous(),
                lse=outputs.lse,
                rounding_residual=outputs.rounding_residual,
                raster=raster,
            ),
            grads,
            self.grad,
            self.statistics,
            gates,
            self.rows.allocation,
            num_rows=num_rows,
            num_heads=plan.num_heads,
            num_tokens=plan.layout.grid.num_tokens,
            num_text=plan.num_text_tokens,
            num_low=plan.num_low_tokens,
            ROWS=GATHER_ROWS,
            HEAD_DIM=head_dim,
            CHANNELS=plan.head_dim,
            PAD=PAD,
            BRANCH=self.rows.low_branch,
        )

    def query_grads(self, grad_query: Tensor) -> None:
        plan = self.tables.plan
        blocks = GradBlocks.of_queries(grad_query)
        query_blocks = _cdiv(plan.layout.slots, blocks.query)
        tasks = plan.layout.num_tiles * query_blocks + _cdiv(plan.num_text_tokens, blocks.query)
        if self.rows.lows:
            tasks += _cdiv(plan.num_low_tokens, blocks.query)
        _launch(
            query_grads_kernel,
            self.num_rows * tasks,
            *self.described(blocks),
            self.statistics,
            grad_query,
            Rows(order=self.rows.order, allocation=self.rows.allocation),
            tiles_of(self.tables),
            listed(self.tables, self.mid),
            self.biases,
            self.scale,
            self.compiled_for(
                blocks,
                KEY_BLOCKS=_cdiv(plan.layout.slots, blocks.key),
                SAFE=safe_columns(plan.layout.slots, blocks.key),
                TEXT=plan.num_text_tokens > 0,
                LOWS=self.rows.lows,
                BRANCH=self.rows.low_branch,
            ),
            num_rows=self.num_rows,
            key_rows=self.key_rows,
            **query_sizes(self.tables, self.mid),
            num_warps=blocks.warps,
        )

    def video_grads(
        self, grads: KeyGrads, high: TransposedLists, mid: TransposedLists | None
    ) -> None:
        plan = self.tables.plan
        exact_at = self.tables.keys.exact
        tiles = plan.layout.num_tiles
        blocks = GradBlocks.of_keys(grads.key)
        mid_starts = None if mid is None else mid.starts
        key_blocks = _cdiv(plan.layout.slots, blocks.key)
        _launch(
            video_grads_kernel,
            self.num_rows * tiles * key_blocks * (2 if exact_at > 0 else 1),
            *self.described(blocks),
            self.statistics,
            grads,
            Rows(
                order=key_task_order(self.rows.allocation, high.starts, mid_starts, tiles),
                allocation=self.rows.allocation,
            ),
            tiles_of(self.tables),
            listing(self.tables, high, mid),
            self.scale,
            self.compiled_for(blocks, KEY_BLOCKS=key_blocks, TEXT=plan.num_text_tokens > 0),
            num_rows=self.num_rows,
            num_tiles=tiles,
            num_tokens=plan.layout.grid.num_tokens,
            num_text=plan.num_text_tokens,
            num_low=plan.num_low_tokens,
            exact_at=exact_at,
            key_rows=self.key_rows,
            num_warps=blocks.warps,
        )

    def extra_grads(self, grads: KeyGrads) -> Tensor | None:
        """Gradients of low tokens, summaries and text keys; returns those of the learned offsets,
        None without them."""
        plan = self.tables.plan
        blocks = GradBlocks.of_keys(grads.key)
        cell_blocks = _cdiv(plan.cells.num_cells, blocks.key)
        kinds = 1 if self.tables.keys.mid_summaries < 0 else 3
        shared = cell_blocks * kinds + _cdiv(plan.num_text_tokens, blocks.key)
        parts = max(1, min(MOST_PARTS, plan.layout.num_tiles // PART_TILES))
        partial = self.empty_parts(parts, cell_blocks)
        tasks = shared * parts
        if self.rows.lows:
            tasks += _cdiv(plan.num_low_tokens, blocks.key)
        _launch(
            extra_grads_kernel,
            self.num_rows * tasks,
            *self.described(blocks),
            self.statistics,
            grads,
            partial,
            Rows(order=self.rows.order, allocation=self.rows.allocation),
            tiles_of(self.tables),
            self.biases,
            self.scale,
            self.compiled_for(blocks, BRANCH=self.rows.low_branch),
            num_rows=self.num_rows,
            key_rows=self.key_rows,
            region_at=self.region.start,
            region_rows=self.region.rows,
            num_parts=parts,
            **self.tables.sizes,
            **counts(self.tables),
            num_warps=blocks.warps,
        )
        if self.region.rows:
            self.join(partial, grads, parts)
        offsets = self.biases.summary_offsets
        if partial.ds is None or offsets is None:
            return None
        by_head = partial.ds.unflatten(0, (-1, plan.num_heads)).flatten(3)
        return by_head.sum(3).to(offsets.dtype)

    def join(self, partial: KeyParts, grads: KeyGrads, parts: int) -> None:
        """Sum up the parts of summaries and text keys."""
        keys = self.tables.keys
        _launch(
            join_extra_grads_kernel,
            self.num_rows * _cdiv(self.region.rows, JOIN_ROWS),
            partial,
            grads,
            self.rows.allocation,
            num_rows=self.num_rows,
            num_text=self.tables.plan.num_text_tokens,
            cells=self.tables.plan.cells.num_cells,
            low_sums_at=keys.low_summaries,
            mid_sums_at=keys.mid_summaries,
            high_sums_at=keys.high_summaries,
            text_at=keys.text,
            key_rows=self.key_rows,
            region_at=self.region.start,
            region_rows=self.region.rows,
            num_parts=parts,
            ROWS=JOIN_ROWS,
            HEAD_DIM=self.head_dim,
            BRANCH=self.rows.low_branch,
        )

    def empty_parts(self, parts: int, cell_blocks: int) -> KeyParts:
        shape = (self.num_rows, parts, self.region.rows, self.head_dim)
        ds = None
        if self.biases.summary_offsets is not None:
            # Kinds of summaries that a row doesn't see are not written.
            ds = self.statistics.lse.new_zeros(self.num_rows, 3, cell_blocks, parts)
        return KeyParts(
            key=self.statistics.lse.new_empty(shape),
            value=self.statistics.lse.new_empty(shape),
            ds=ds,
        )

    @property
    def region(self) -> _Region:
        keys = self.tables.keys
        held = (keys.low_summaries, keys.mid_summaries, keys.high_summaries, keys.text)
        starts = [start for start in held if start >= 0]
        if not starts:
            return _Region(0, 0)
        last = self.tables.plan.num_text_tokens or self.tables.plan.cells.num_cells
        return _Region(starts[0], starts[-1] + last - starts[0])

    @property
    def num_rows(self) -> int:
        return self.grad.shape[0]

    @property
    def head_dim(self) -> int:
        return self.grad.shape[2]

    @property
    def key_rows(self) -> int:
        return self.buffers.key.shape[1]

    @property
    def scale(self) -> float:
        return scale_of(self.tables.plan.head_dim)

    def described(self, blocks: GradBlocks) -> tuple:
        """Query, key, value and output gradient as the kernels load them."""
        tensors = (self.buffers.query, self.buffers.key, self.buffers.value, self.grad)
        if not self.descriptors(blocks):
            return tensors
        sides = (blocks.query, blocks.key, blocks.key, blocks.query)
        return tuple(
            TensorDescriptor.from_tensor(x.flatten(0, 1), [side, x.shape[2]])
            for x, side in zip(tensors, sides, strict=True)
        )

    def descriptors(self, blocks: GradBlocks) -> bool:
        """Whether blocks are read by tensor descriptors, whose coordinates are int32, or by
        pointers."""
        fits = self.num_rows * max(self.grad.shape[1], self.key_rows) < 2**31
        row = architecture(self.grad.device)
        return fits and self.grad.dtype != torch.float32 and row.descriptors

    def compiled_for(self, blocks: GradBlocks, **constants: int) -> Blocks:
        slots = self.tables.plan.layout.slots
        return compiled_for(
            HEAD_DIM=self.head_dim,
            BLOCK_Q=blocks.query,
            BLOCK_K=blocks.key,
            DESCRIPTORS=self.descriptors(blocks),
            STAGES=blocks.stages,
            TILE_TOKENS=slots if self.tables.uniform else 0,
            QUERY_BLOCKS=_cdiv(slots, blocks.query),
            **constants,
        )


def listing(
    tables: LaunchTables, high: TransposedLists, mid: TransposedLists | None
) -> ListingTiles:
    """What the kernel of exact keys reads lists from."""
    return ListingTiles(
        every=tables.every_tile,
        high_starts=high.starts,
        high_queries=high.queries,
        mid_starts=None if mid is None else mid.starts,
        mid_queries=None if mid is None else mid.queries,
        mid_step=0 if mid is None else int(len(mid.starts) > tables.plan.layout.num_tiles + 1),
    )


def _launch(kernel: Any, programs: int, *arguments: Any, **options: Any) -> None:
    kernel[(programs,)](*arguments, **options)
