# Gluon reads these functions, and its decorators hide what they take: pyright can't follow.
# pyright: reportCallIssue=false, reportOperatorIssue=false, reportArgumentType=false
# pyright: reportAssignmentType=false, reportGeneralTypeIssues=false
# pyright: reportPossiblyUnboundVariable=false
"""The attention kernel for Hopper, backward: gradients of exact keys and values.

The mathematics is in the Triton kernel of `bwd_dq`. As in `forward.py` one program per
multiprocessor works through tasks, here tiles of 128 keys; a producer warp fetches their keys and
values once, and blocks of 64 queries with their output gradients and statistics one after another.
Two consumer warp groups own 64 keys each, whose sums stay in their registers.

Logits are transposed, with keys as rows: both sums run over queries, so that weights and gradients
of logits are left factors as they stand in registers, and never go by way of shared memory.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from freqformer.ops.block_sparse.gluon.rings import CONSUMERS, fetch_block, fetch_both, new_ring
from freqformer.ops.block_sparse.gluon.softmax import products_layout
from freqformer.ops.block_sparse.gluon.writing import write_sums
from freqformer.ops.block_sparse.triton.blocks import LOG2_E, UNSPECIALIZED, Extent, tile_extent
from freqformer.ops.block_sparse.triton.bwd_dkv import key_task_of
from freqformer.ops.block_sparse.triton.bwd_gather import UNSEEN, Statistics

KEY_STAGES = gl.constexpr(2)
"""Tasks whose keys and values shared memory holds: this one's, and the next one's."""


class Matrices(NamedTuple):
    """Descriptors of what is fetched: the rows of all heads, one head after the other."""

    query: Any
    grad: Any
    key: Any
    value: Any
    lse: Any
    delta: Any


class Given(NamedTuple):
    """All that tasks are worked out from, put together in the kernel."""

    rows: Any
    """`Rows`, whose order is of row * T + tile."""
    tiles: Any
    """`Tiles`."""
    lists: Any
    """`ListingTiles`."""
    num_rows: Any
    num_tiles: Any
    num_tokens: Any
    num_text: Any
    query_rows: Any
    """Queries of a row, N + X + M."""
    exact_at: Any
    key_rows: Any
    statistics: Any
    """`Statistics`, of pointers."""


class Rings(NamedTuple):
    """Where it is fetched to."""

    key: Any
    """`Ring` of blocks of 64 keys, one for each consumer and task; the barriers are those of values
    too."""
    value: Any
    query: Any
    """`Ring` of blocks of 64 queries; the barriers are those of what follows too."""
    grad: Any
    lse: Any
    delta: Any


class Sums(NamedTuple):
    """Gradients of one consumer's keys and values so far, (64, D) in float32."""

    key: Any
    value: Any


@gluon.jit
def next_task(number, total, given, blocks):
    """The first `KeyTask` that has something to do, from this number on in the steps of a program,
    and its number."""
    # Behind the last number the last one's is read, which exists, and not used.
    task = _task(number, total, given, blocks)
    while (number < total) & (not task.some):
        number += gl.num_programs(0)
        task = _task(number, total, given, blocks)
    return number, task


@gluon.jit
def _task(number, total, given, blocks):
    return key_task_of(
        gl.minimum(number, total - 1),
        given.rows,
        given.tiles,
        given.lists,
        given.num_rows,
        given.num_tiles,
        given.num_text,
        given.exact_at,
        blocks,
    )


@gluon.jit
def _num_tasks(given):
    segments = 1
    if given.exact_at > 0:
        segments = 2
    return given.num_rows * given.num_tiles * segments


@gluon.jit
def _fetch_queries(row, at, fetched, matrices, rings, given, blocks, FULL: gl.constexpr):
    """Have a block of queries brought, with their output gradients; and with their statistics if
    FULL, that is where tiles begin at multiples of 16 bytes, as rows of such blocks must."""
    stage = fetched % blocks.STAGES
    ring = rings.query
    mbarrier.wait(ring.empty.index(stage), fetched // blocks.STAGES & 1 ^ 1)
    full = ring.full.index(stage)
    vectors: gl.constexpr = matrices.lse.block_type.nbytes if FULL else 0
    mbarrier.expect(full, 2 * (matrices.query.block_type.nbytes + vectors))
    place = row * given.query_rows + at
    fetch_block(matrices.query, [place, 0], full, ring.blocks.index(stage))
    fetch_block(matrices.grad, [place, 0], full, rings.grad.index(stage))
    if FULL:
        place = row * given.statistics.rows + at
        fetch_block(matrices.lse, [place], full, rings.lse.index(stage))
        fetch_block(matrices.delta, [place], full, rings.delta.index(stage))


@gluon.jit
def _produce(matrices, given, rings, blocks):
    """What the producer does: fetch, in the order in which consumers need it."""
    total = _num_tasks(given)
    HALF: gl.constexpr = blocks.BLOCK_K // CONSUMERS
    FULL: gl.constexpr = blocks.TILE_TOKENS == blocks.QUERY_BLOCKS * blocks.BLOCK_Q
    fetched = 0
    turn = 0
    number, task = next_task(gl.program_id(0), total, given, blocks)
    while number < total:
        # Each consumer has its own half of the keys, and frees it when its own gradients are out:
        # neither waits for the other between tasks.
        for consumer in gl.static_range(CONSUMERS):
            slot = turn % KEY_STAGES * CONSUMERS + consumer
            place = task.row * given.key_rows + task.start + consumer * HALF
            lap = turn // KEY_STAGES & 1
            fetch_both(matrices.key, matrices.value, place, rings.key, rings.value, slot, lap)
        steps = task.listing.length * blocks.QUERY_BLOCKS
        for step in range(steps):
            tile = gl.load(task.listing.tiles + step // blocks.QUERY_BLOCKS)
            at = tile_extent(given.tiles, tile, blocks.TILE_TOKENS).start
            at += step % blocks.QUERY_BLOCKS * blocks.BLOCK_Q
            _fetch_queries(task.row, at, fetched, matrices, rings, given, blocks, FULL)
            fetched += 1
        if blocks.TEXT:
            for step in range(gl.cdiv(task.text, blocks.BLOCK_Q)):
                at = given.num_tokens + step * blocks.BLOCK_Q
                _fetch_queries(task.row, at, fetched, matrices, rings, given, blocks, False)
                fetched += 1
        turn += 1
        number, task = next_task(number + gl.num_programs(0), total, given, blocks)


@gluon.jit
def _add_queries(sums, slot, used, extent, statistics, rings, scale, blocks, FULL: gl.constexpr):
    """Sums after one more block of queries.

    Unless FULL, which says that all of them are live and their statistics were fetched:
    `statistics` are those of their row, and `extent` says where the block begins and how many
    queries there are to the end of their tile or of the text.
    """
    HALF: gl.constexpr = blocks.BLOCK_K // CONSUMERS
    of_logits: gl.constexpr = products_layout(blocks.BLOCK_Q)
    of_columns: gl.constexpr = gl.SliceLayout(0, of_logits)
    of_sums: gl.constexpr = sums.key.type.layout
    of_factor: gl.constexpr = gl.DotOperandLayout(0, of_sums, 2)
    stage = used % blocks.STAGES
    queries = rings.query.blocks.index(stage)
    grads = rings.grad.index(stage)
    if not FULL:
        # Asked for before the products. Queries are summed over: those behind a tile's end, which
        # are another's, count for nothing.
        column = gl.arange(0, blocks.BLOCK_Q, layout=of_columns)
        live = column < extent.count
        place = extent.start + column
        lse = gl.load(statistics.lse + place, mask=live, other=UNSEEN)
        delta = gl.load(statistics.delta + place, mask=live, other=0.0)
    mbarrier.wait(rings.query.full.index(stage), used // blocks.STAGES & 1)
    # Keys and values come from shared memory for every product: registers are full of their sums.
    none = gl.zeros([HALF, blocks.BLOCK_Q], gl.float32, layout=of_logits)
    logits = warpgroup_mma(
        rings.key.blocks.index(slot), queries.permute((1, 0)), none, use_acc=False, is_async=True
    )
    if FULL:
        delta = rings.delta.index(stage).load(of_columns)
    # What every query's gradients sum up to is taken off by the product itself, which starts from
    # it: registers then need not hold it beside the product.
    less = none - delta[None, :]
    of_weights = warpgroup_mma(rings.value.index(slot), grads.permute((1, 0)), less, is_async=True)
    if FULL:
        lse = rings.lse.index(stage).load(of_columns)
    # One product may still be under way: that with values, while weights are computed.
    logits = warpgroup_mma_wait(1, deps=(logits,))
    weights = gl.exp2(logits * scale - lse[None, :])
    # A product's result is laid out over threads as a left factor in 16 bits is: nothing moves.
    factor = gl.convert_layout(weights.to(queries.dtype), of_factor)
    value = warpgroup_mma(factor, grads, sums.value, is_async=True)
    # Products end in the order in which they began: that with values has, that for them may not.
    of_weights = warpgroup_mma_wait(1, deps=(of_weights,))
    ds = weights * of_weights
    factor_ds = gl.convert_layout(ds.to(queries.dtype), of_factor)
    key = warpgroup_mma(factor_ds, queries, sums.key, is_async=True)
    value, key, factor, factor_ds = warpgroup_mma_wait(0, deps=(value, key, factor, factor_ds))
    mbarrier.arrive(rings.query.empty.index(stage))
    return Sums(key=key, value=value)


@gluon.jit
def _block_of(step, steps, task, given, blocks):
    """Where the block of queries of a step begins, and how many there are to their tile's end:
    `Extent`; any behind the last step."""
    # A key tile may be in no list, and nothing after a list is read.
    place = gl.minimum(step, steps - 1) // blocks.QUERY_BLOCKS
    tile = gl.load(task.listing.tiles + place, mask=steps > 0, other=0)
    extent = tile_extent(given.tiles, tile, blocks.TILE_TOKENS)
    skip = step % blocks.QUERY_BLOCKS * blocks.BLOCK_Q
    return Extent(start=extent.start + skip, count=extent.count - skip)


@gluon.jit
def _consume(given, grads, rings, scale, blocks, CONSUMER: gl.constexpr):
    """What a consumer does: gradients of 64 keys of every task."""
    total = _num_tasks(given)
    HALF: gl.constexpr = blocks.BLOCK_K // CONSUMERS
    FULL: gl.constexpr = blocks.TILE_TOKENS == blocks.QUERY_BLOCKS * blocks.BLOCK_Q
    of_sums: gl.constexpr = products_layout(blocks.HEAD_DIM)
    used = 0
    turn = 0
    number, task = next_task(gl.program_id(0), total, given, blocks)
    while number < total:
        slot = turn % KEY_STAGES * CONSUMERS + CONSUMER
        mbarrier.wait(rings.key.full.index(slot), turn // KEY_STAGES & 1)
        none = gl.zeros([HALF, blocks.HEAD_DIM], gl.float32, layout=of_sums)
        sums = Sums(key=none, value=none)
        # Pointers are moved to the row once, in 64 bits.
        first = task.row.to(gl.int64) * given.statistics.rows
        statistics = Statistics(
            lse=given.statistics.lse + first,
            delta=given.statistics.delta + first,
            rounding_residual=None,
            rows=given.statistics.rows,
        )
        extent = Extent(start=0, count=0)
        steps = task.listing.length * blocks.QUERY_BLOCKS
        if not FULL:
            extent = _block_of(0, steps, task, given, blocks)
        for step in range(steps):
            now = extent
            if not FULL:
                # Where the next block lies is known before it is there.
                extent = _block_of(step + 1, steps, task, given, blocks)
            sums = _add_queries(sums, slot, used, now, statistics, rings, scale, blocks, FULL)
            used += 1
        if blocks.TEXT:
            for step in range(gl.cdiv(task.text, blocks.BLOCK_Q)):
                skip = step * blocks.BLOCK_Q
                now = Extent(start=given.num_tokens + skip, count=given.num_text - skip)
                sums = _add_queries(sums, slot, used, now, statistics, rings, scale, blocks, False)
                used += 1
        # Rows of the whole buffer may be more than 32 bits count.
        place = task.row.to(gl.int64) * given.key_rows + task.start + CONSUMER * HALF
        written = task.count - CONSUMER * HALF
        # Nobody reads this task's keys and values any more: their places take their gradients.
        # What lies behind the tile's end is the next tile's, and not written. Logits were scaled,
        # so dk is: by 1 / sqrt(D) once, without the log2(e) of base 2.
        staged = rings.key.blocks.index(slot)
        write_sums(sums.key * (scale / LOG2_E), staged, grads.key, place, written, blocks.HEAD_DIM)
        staged = rings.value.index(slot)
        write_sums(sums.value, staged, grads.value, place, written, blocks.HEAD_DIM)
        # The next keys come here by another way than these, which must have been read before.
        fence_async_shared()
        mbarrier.arrive(rings.key.empty.index(slot))
        turn += 1
        number, task = next_task(number + gl.num_programs(0), total, given, blocks)


@gluon.jit(do_not_specialize=[*UNSPECIALIZED, "query_rows"])
def video_grads_kernel(
    query,
    grad,
    key,
    value,
    lse,
    delta,
    statistics,
    grads,
    rows,
    tiles,
    lists,
    scale,
    num_rows,
    num_tiles,
    num_tokens,
    num_text,
    query_rows,
    exact_at,
    key_rows,
    blocks,
):
    """Gradients of exact video keys and values of all rows; launched with as many programs as the
    GPU has multiprocessors, or as there are tasks.

    Args:
        query, grad, key, value: descriptors of the rows of all heads, in blocks of 64.
        lse, delta: descriptors of those of `statistics`, in blocks of 64.
        statistics: `Statistics`.
        grads, rows, tiles, lists: `KeyGrads`, `Rows`, `Tiles`, `ListingTiles` of the Triton kernel.
        scale: log2(e) / sqrt(head_dim).
        num_rows to key_rows: see `Given`.
        blocks: `Blocks` of the Triton kernel.
    """
    given = Given(
        rows=rows,
        tiles=tiles,
        lists=lists,
        num_rows=num_rows,
        num_tiles=num_tiles,
        num_tokens=num_tokens,
        num_text=num_text,
        query_rows=query_rows,
        exact_at=exact_at,
        key_rows=key_rows,
        statistics=statistics,
    )
    matrices = Matrices(query=query, grad=grad, key=key, value=value, lse=lse, delta=delta)
    SLOTS: gl.constexpr = KEY_STAGES * CONSUMERS
    keys: gl.constexpr = [SLOTS, blocks.BLOCK_K // CONSUMERS, blocks.HEAD_DIM]
    queries: gl.constexpr = [blocks.STAGES, blocks.BLOCK_Q, blocks.HEAD_DIM]
    vectors: gl.constexpr = [blocks.STAGES, blocks.BLOCK_Q]
    rings = Rings(
        key=new_ring(key, SLOTS, blocks.BLOCK_K // CONSUMERS, blocks.HEAD_DIM, 1),
        value=gl.allocate_shared_memory(value.dtype, keys, value.layout),
        query=new_ring(query, blocks.STAGES, blocks.BLOCK_Q, blocks.HEAD_DIM, CONSUMERS),
        grad=gl.allocate_shared_memory(grad.dtype, queries, grad.layout),
        lse=gl.allocate_shared_memory(lse.dtype, vectors, lse.layout),
        delta=gl.allocate_shared_memory(delta.dtype, vectors, delta.layout),
    )
    # Two float32 sums of 64 keys take 128 registers of each of a consumer's 128 threads at head_dim
    # 128; logits, their gradients and both in 16 bits the same again, less what is done with.
    gl.warp_specialize(
        [
            (_consume, (given, grads, rings, scale, blocks, 0)),
            (_consume, (given, grads, rings, scale, blocks, 1)),
            (_produce, (matrices, given, rings, blocks)),
        ],
        [4, 1],
        [240, 24],
    )
