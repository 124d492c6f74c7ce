"""Backward of the block-sparse attention launch on Hopper: the host side.

What a Gluon kernel isn't made for is Triton's: `ops.block_sparse.triton.launch_backward`.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from freqformer.ops.block_sparse.gluon.bwd_dkv import video_grads_kernel
from freqformer.ops.block_sparse.gluon.bwd_dq import query_grads_kernel
from freqformer.ops.block_sparse.gluon.launch import (
    BLOCK,
    matrix_of,
    multiprocessors,
    programs,
    tell_once,
    unfit,
)
from freqformer.ops.block_sparse.gluon.rings import CONSUMERS
from freqformer.ops.block_sparse.records import (
    AttentionBuffers,
    AttentionGrads,
    AttentionOutputs,
    RowBands,
)
from freqformer.ops.block_sparse.tables import LaunchTables
from freqformer.ops.block_sparse.transposed import TransposedLists, key_task_order
from freqformer.ops.block_sparse.triton import launch as triton_launch
from freqformer.ops.block_sparse.triton import launch_backward as triton_backward
from freqformer.ops.block_sparse.triton.backward_launches import BackwardLaunches, listing
from freqformer.ops.block_sparse.triton.blocks import Rows
from freqformer.ops.block_sparse.triton.bwd_dkv import KeyGrads

QUERY_BLOCK = 64
"""Queries of a step of the kernel that owns keys, and"""
KEY_BLOCK = 64
"""keys of one of the kernel that owns queries."""
STAGES = 3
"""Such blocks, two matrices each, that shared memory holds beside what two tasks own."""


def attend_backward(
    grads: tuple[Tensor, Tensor],
    outputs: AttentionOutputs,
    buffers: AttentionBuffers,
    rows: RowBands,
    tables: LaunchTables,
    *,
    deterministic: bool = True,
    **named: Any,
) -> AttentionGrads:
    """Gradients of `attend`, as `ops.block_sparse.triton.launch_backward.attend_backward` has them;
    calls that `attend` leaves to Triton are left to it here too.

    Args:
        grads, outputs, buffers, rows, tables, named: as that function takes them.
        deterministic: the same bits every time either way.
    """
    launches = HopperLaunches
    reason = unfit(tables.plan.layout.slots, buffers)
    if reason is not None:
        tell_once(reason)
        launches = BackwardLaunches
    return triton_backward.attend_backward(
        grads, outputs, buffers, rows, tables, launches=launches, **named
    )


class HopperLaunches(BackwardLaunches):
    """Those of a backward pass, where Gluon kernels compute gradients of queries and of exact
    keys."""

    def query_grads(self, grad_query: Tensor) -> None:
        plan = self.tables.plan
        slots = plan.layout.slots
        half = BLOCK // CONSUMERS.value
        query_grads_kernel[(programs(self.buffers.query, self.rows, self.tables, 1),)](
            matrix_of(self.buffers.query, half),
            matrix_of(self.grad, half),
            matrix_of(self.buffers.key, KEY_BLOCK),
            matrix_of(self.buffers.value, KEY_BLOCK),
            self.statistics,
            grad_query,
            Rows(order=self.rows.order, allocation=self.rows.allocation),
            triton_launch.tiles_of(self.tables),
            triton_launch.listed(self.tables, self.mid),
            self.biases,
            self.scale,
            num_rows=self.num_rows,
            key_rows=self.key_rows,
            blocks=triton_launch.compiled_for(
                HEAD_DIM=self.head_dim,
                BLOCK_Q=BLOCK,
                BLOCK_K=KEY_BLOCK,
                DESCRIPTORS=True,
                STAGES=STAGES,
                TILE_TOKENS=slots if self.tables.uniform else 0,
                QUERY_BLOCKS=1,
                KEY_BLOCKS=BLOCK // KEY_BLOCK,
                SAFE=triton_launch.safe_columns(slots, KEY_BLOCK),
                TEXT=plan.num_text_tokens > 0,
                LOWS=self.rows.lows,
                BRANCH=self.rows.low_branch,
            ),
            **triton_launch.query_sizes(self.tables, self.mid),
            num_warps=4,
        )

    def video_grads(
        self, grads: KeyGrads, high: TransposedLists, mid: TransposedLists | None
    ) -> None:
        plan = self.tables.plan
        query_rows = self.grad.shape[1]
        tiles = plan.layout.num_tiles
        exact_at = self.tables.keys.exact
        half = BLOCK // CONSUMERS.value
        tasks = self.num_rows * tiles * (2 if exact_at > 0 else 1)
        video_grads_kernel[(min(tasks, multiprocessors(self.grad.device)),)](
            matrix_of(self.buffers.query, QUERY_BLOCK),
            matrix_of(self.grad, QUERY_BLOCK),
            matrix_of(self.buffers.key, half),
            matrix_of(self.buffers.value, half),
            _vector_of(self.statistics.lse),
            _vector_of(self.statistics.delta),
            self.statistics,
            grads,
            Rows(
                order=key_task_order(
                    self.rows.allocation, high.starts, None if mid is None else mid.starts, tiles
                ),
                allocation=self.rows.allocation,
            ),
            triton_launch.tiles_of(self.tables),
            listing(self.tables, high, mid),
            self.scale,
            num_rows=self.num_rows,
            num_tiles=tiles,
            num_tokens=plan.layout.grid.num_tokens,
            num_text=plan.num_text_tokens,
            query_rows=query_rows,
            exact_at=exact_at,
            key_rows=self.key_rows,
            blocks=triton_launch.compiled_for(
                HEAD_DIM=self.head_dim,
                BLOCK_Q=QUERY_BLOCK,
                BLOCK_K=BLOCK,
                DESCRIPTORS=True,
                STAGES=STAGES,
                TILE_TOKENS=plan.layout.slots if self.tables.uniform else 0,
                QUERY_BLOCKS=BLOCK // QUERY_BLOCK,
                KEY_BLOCKS=1,
                TEXT=plan.num_text_tokens > 0,
            ),
            num_warps=4,
        )


def _vector_of(x: Tensor) -> TensorDescriptor:
    """(R, rows) as the kernel fetches it, in blocks of `QUERY_BLOCK` that begin at multiples of 16
    bytes: elsewhere the copy is an illegal instruction."""
    layout = gl.NVMMASharedLayout(swizzle_byte_width=0, element_bitwidth=32, rank=1)
    return TensorDescriptor.from_tensor(x.flatten(), [QUERY_BLOCK], layout)  # pyright: ignore[reportArgumentType]
