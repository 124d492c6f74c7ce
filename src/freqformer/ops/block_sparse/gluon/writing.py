# Gluon reads these functions, and its decorators hide what they take: pyright can't follow.
# pyright: reportCallIssue=false, reportOperatorIssue=false, reportArgumentType=false
# pyright: reportAssignmentType=false, reportGeneralTypeIssues=false
"""Results of one consumer's 64 queries, from registers to memory."""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared

from freqformer.ops.block_sparse.gluon.rings import CONSUMERS
from freqformer.ops.block_sparse.triton.blocks import LN_2
from freqformer.ops.block_sparse.triton.softmax import MASKED


@gluon.jit
def targets(task, given, outputs, blocks, CONSUMER: gl.constexpr):
    """Where in their matrix the outputs of a consumer's queries go, in threads that each write 16
    bytes of a row."""
    ROWS: gl.constexpr = blocks.BLOCK_Q // CONSUMERS
    WIDE: gl.constexpr = blocks.HEAD_DIM // 8
    of_rows: gl.constexpr = gl.BlockedLayout([1, 8], [32 // WIDE, WIDE], [4, 1], [1, 0])
    row = gl.arange(0, ROWS, layout=gl.SliceLayout(1, of_rows))
    start = task.start + CONSUMER * ROWS
    target = start + row
    if outputs.raster is not None:
        if start < given.sizes.video:
            written = row < task.count - CONSUMER * ROWS
            target = gl.load(outputs.raster + target, mask=written, other=0)
    return target


@gluon.jit
def write(acc, state, target, work, given, outputs, staged, blocks, CONSUMER: gl.constexpr):
    """Results of a consumer's queries, with their log-sum-exp."""
    ROWS: gl.constexpr = blocks.BLOCK_Q // CONSUMERS
    acc_rows: gl.constexpr = gl.SliceLayout(1, acc.type.layout)
    task = work.task
    start = task.start + CONSUMER * ROWS
    left = task.count - CONSUMER * ROWS
    # A query that saw no key: zeros, and the logarithm of no weight.
    some = state.l_i > 0
    total = gl.where(some, state.l_i, 1.0)
    lse = gl.where(some, (state.m_i + work.seen.common + gl.log2(total)) * LN_2, MASKED)
    acc = acc * gl.convert_layout(1.0 / total, acc_rows)[:, None]
    if outputs.parts is None:
        _write_rows(acc, lse, target, start, left, task, given, outputs, staged, blocks)
    elif task.is_text:
        _write_part(acc, lse, start, left, task, given, outputs, blocks)
    else:
        _write_rows(acc, lse, target, start, left, task, given, outputs, staged, blocks)


@gluon.jit
def _real(written, column, blocks):
    """Mask of the channels that outputs have, of rows that are written."""
    mask = written[:, None]
    # Settled when the kernel is compiled: buffers are wider than outputs where head_dim is padded.
    if blocks.CHANNELS != blocks.HEAD_DIM:
        mask = mask & (column < blocks.CHANNELS)[None, :]
    return mask


@gluon.jit
def _write_part(acc, lse, start, left, task, given, outputs, blocks):
    """Text queries over a part of their keys, in float32: few, so that it need not be fast."""
    of_acc: gl.constexpr = acc.type.layout
    sizes = given.sizes
    at = (task.row * given.text_parts + task.part) * sizes.text + start - sizes.video
    row = gl.arange(0, acc.shape[0], layout=lse.type.layout)
    gl.store(outputs.parts.lse + at + row, lse, mask=row < left)
    row = gl.arange(0, acc.shape[0], layout=gl.SliceLayout(1, of_acc))
    column = gl.arange(0, blocks.HEAD_DIM, layout=gl.SliceLayout(0, of_acc))
    entry = (at + row).to(gl.int64)[:, None] * blocks.CHANNELS + column[None, :]
    gl.store(outputs.parts.out + entry, acc, mask=_real(row < left, column, blocks))


@gluon.jit
def _write_rows(acc, lse, target, start, left, task, given, outputs, staged, blocks):
    """Rows of outputs, what rounding took from them, and their log-sum-exp.

    Rows go by way of shared memory: the threads that hold a row of products hold pieces of 4 bytes,
    and memory wants whole sectors of 32.
    """
    CHANNELS: gl.constexpr = blocks.CHANNELS
    of_rows: gl.constexpr = target.type.layout.parent
    narrow: gl.constexpr = staged.dtype
    sizes = given.sizes
    first_low = sizes.video + sizes.text
    # The first of these queries among those of all rows, which may be more than 32 bits count.
    own = task.row.to(gl.int64) * (first_low + sizes.low) + start
    row = gl.arange(0, acc.shape[0], layout=lse.type.layout)
    gl.store(outputs.lse + own + row, lse, mask=row < left)
    row = gl.arange(0, acc.shape[0], layout=gl.SliceLayout(1, of_rows))
    column = gl.arange(0, blocks.HEAD_DIM, layout=gl.SliceLayout(0, of_rows))
    written = _real(row < left, column, blocks)
    # `out` is (B, N + X, H, D): the tokens of one row lie `num_heads` vectors apart.
    matrix = outputs.out
    begin = (task.row // given.num_heads).to(gl.int64) * first_low * given.num_heads
    begin += task.row % given.num_heads
    hop = given.num_heads
    if task.is_low:
        matrix = outputs.low_out
        begin = task.row.to(gl.int64) * sizes.low - first_low
        hop = 1
    rounded = acc.to(narrow)
    staged.store(rounded)
    values = staged.load(of_rows)
    entry = (begin + target.to(gl.int64) * hop)[:, None] * CHANNELS + column[None, :]
    gl.store(matrix + entry, values, mask=written)
    if outputs.rounding_residual is not None:
        # What the backward needs to the last bit where few keys take nearly all weight.
        staged.store((acc - rounded.to(gl.float32)).to(narrow))
        values = staged.load(of_rows)
        entry = (own + row)[:, None] * CHANNELS + column[None, :]
        gl.store(outputs.rounding_residual + entry, values, mask=written)
    # The next queries come here by another way than these, which must have been read before.
    fence_async_shared()


@gluon.jit
def write_sums(values, staged, matrix, place, written, HEAD_DIM: gl.constexpr):
    """Rows of sums to the rows of a contiguous matrix from `place` on, as many as are `written`; by
    way of shared memory, as above."""
    WIDE: gl.constexpr = HEAD_DIM // 8
    of_rows: gl.constexpr = gl.BlockedLayout([1, 8], [32 // WIDE, WIDE], [4, 1], [1, 0])
    staged.store(values.to(staged.dtype))
    row = gl.arange(0, values.shape[0], layout=gl.SliceLayout(1, of_rows))
    column = gl.arange(0, HEAD_DIM, layout=gl.SliceLayout(0, of_rows))
    entry = (place + row)[:, None] * HEAD_DIM + column[None, :]
    gl.store(matrix + entry, staged.load(of_rows), mask=(row < written)[:, None])
