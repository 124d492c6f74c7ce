"""Block-sparse attention of every head of every band in one Gluon launch, forward: the host side.

Shape legend: R rows (row = sample * H + head), D head_dim, W channels of a row of the buffers
(`buffers.buffer_width`), S rows of the key buffer (`buffers.key_layout`).
"""

from __future__ import annotations

import logging
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from freqformer.buffers import text_parts
from freqformer.ops.block_sparse.gluon.forward import attention_kernel
from freqformer.ops.block_sparse.gluon.rings import CONSUMERS
from freqformer.ops.block_sparse.records import (
    AttentionBuffers,
    AttentionOutputs,
    MidLists,
    RowBands,
)
from freqformer.ops.block_sparse.tables import LaunchTables
from freqformer.ops.block_sparse.triton import launch as triton_launch
from freqformer.ops.block_sparse.triton.blocks import Blocks, Rows
from freqformer.ops.block_sparse.triton.forward import Outputs

logger = logging.getLogger(__name__)

BLOCK = 128
"""Queries of a task and keys of a step: the most tokens that a tile holds."""
ROUNDED = 2**24
"""More than statistics of a call have beyond its queries, since their rows are rounded up."""
STAGES = 2
"""Blocks of keys, and of values, that shared memory holds beside the queries of two tasks."""
ELEMENTS = {torch.bfloat16: gl.bfloat16, torch.float16: gl.float16}


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
    """Attention of all rows, as `ops.block_sparse.triton.launch.attend` has it.

    Tiles of at most 64 tokens go to that kernel, whose blocks of queries are no larger, and so do
    buffers of 2^31 rows and more, which no descriptor counts; the log says so.
    """
    plan = tables.plan
    query = buffers.query
    num_rows, key_rows, width = buffers.key.shape
    reason = unfit(plan.layout.slots, buffers)
    if reason is not None:
        tell_once(reason)
        return triton_launch.attend(
            buffers,
            rows,
            tables,
            mid=mid,
            summary_offsets=summary_offsets,
            text_mask=text_mask,
            token_order=token_order,
            backward=backward,
        )
    lists = mid or MidLists(tables.mid_lists, tables.mid_lengths, tables.mid_bias)
    outputs = triton_launch.empty_outputs(query, plan, backward)
    parts = 1 if backward or not plan.num_text_tokens else text_parts(plan.layout.num_tiles)
    text = triton_launch.empty_parts(query, plan, parts)
    with torch.cuda.device_of(query):
        attention_kernel[(programs(query, rows, tables, parts),)](
            matrix_of(query, BLOCK // CONSUMERS.value),
            matrix_of(buffers.key, BLOCK),
            matrix_of(buffers.value, BLOCK),
            Outputs(
                out=outputs.out,
                raster=tables.raster if token_order == "raster" else None,
                low_out=outputs.low_out,
                lse=outputs.lse,
                rounding_residual=outputs.rounding_residual,
                parts=text,
            ),
            Rows(order=rows.order, allocation=rows.allocation),
            triton_launch.tiles_of(tables),
            triton_launch.listed(tables, lists),
            triton_launch.biases(tables, lists, summary_offsets, text_mask),
            triton_launch.scale_of(plan.head_dim),
            num_rows=num_rows,
            key_rows=key_rows,
            text_parts=parts,
            blocks=_blocks(tables, rows, width),
            EXTRAS=has_extras(rows, tables),
            **triton_launch.query_sizes(tables, lists),
            num_warps=4,
        )
        if text is not None:
            triton_launch.join(text, outputs, plan)
    return outputs


def unfit(slots: int, buffers: AttentionBuffers) -> str | None:
    """Why a call goes to Triton's kernels, if it does."""
    if slots <= BLOCK // 2:
        return f"tiles hold at most {slots} tokens"
    rows = len(buffers.query) * max(buffers.query.shape[1], buffers.key.shape[1])
    return f"a buffer has {rows} rows" if rows >= 2**31 - ROUNDED else None


@lru_cache(maxsize=64)
def tell_once(reason: str) -> None:
    logger.info("the attention launch of impl='gluon' runs Triton's kernels, since %s", reason)


def has_extras(rows: RowBands, tables: LaunchTables) -> bool:
    """Whether any query may see keys that are not tiles."""
    plan = tables.plan
    return bool(plan.num_text_tokens or rows.lows or plan.cells.num_cells)


def programs(query: Tensor, rows: RowBands, tables: LaunchTables, parts: int) -> int:
    """As many as the GPU has multiprocessors, or as there are tasks."""
    plan = tables.plan
    tasks = plan.layout.num_tiles + -(-plan.num_text_tokens // BLOCK) * parts
    if rows.lows:
        tasks += -(-plan.num_low_tokens // BLOCK)
    return min(len(query) * tasks, multiprocessors(query.device))


def _blocks(tables: LaunchTables, rows: RowBands, width: int) -> Blocks:
    """What the kernel is compiled for."""
    slots = tables.plan.layout.slots
    return triton_launch.compiled_for(
        HEAD_DIM=width,
        BLOCK_Q=BLOCK,
        BLOCK_K=BLOCK,
        DESCRIPTORS=True,
        STAGES=STAGES,
        TILE_TOKENS=slots if tables.uniform else 0,
        QUERY_BLOCKS=1,
        KEY_BLOCKS=1,
        SAFE=slots // 8 * 8,
        TEXT=tables.plan.num_text_tokens > 0,
        LOWS=rows.lows,
        BRANCH=rows.low_branch,
        CHANNELS=tables.plan.head_dim,
    )


def matrix_of(x: Tensor, rows: int) -> TensorDescriptor:
    """(R, rows, W) as the kernel fetches it, in blocks of rows."""
    block = [rows, x.shape[2]]
    layout = _layout_of(rows, x.shape[2], x.dtype)
    return TensorDescriptor.from_tensor(x.flatten(0, 1), block, layout)


@lru_cache(maxsize=64)
def _layout_of(rows: int, width: int, dtype: torch.dtype) -> Any:
    """How such a block lies in shared memory; cached, since it takes Python longer than the rest of
    a descriptor."""
    return gl.NVMMASharedLayout.get_default_for([rows, width], ELEMENTS[dtype])


@lru_cache(maxsize=16)
def multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count
