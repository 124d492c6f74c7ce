# Gluon reads these functions, and its decorators hide what they take: pyright can't follow.
# pyright: reportCallIssue=false, reportOperatorIssue=false, reportArgumentType=false
# pyright: reportAssignmentType=false, reportGeneralTypeIssues=false
"""The attention kernel for Hopper, backward: gradients of queries.

The mathematics is in the Triton kernel of `bwd_dq`. Tasks are those of `forward.py`, blocks of 128
queries; a producer warp fetches them with their output gradients, and then keys and values in
blocks of 64. Two consumer warp groups of 64 queries each take their queries and output gradients
into registers once: left factors of every product with keys and values, which leave shared memory
to the other factor.
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

from freqformer.ops.block_sparse.gluon.rings import CONSUMERS, Q_STAGES, fetch_both, new_ring
from freqformer.ops.block_sparse.gluon.softmax import in_extra, in_tile, products_layout
from freqformer.ops.block_sparse.gluon.tasks import (
    Given,
    extra_at,
    next_work,
    num_extras,
    num_tasks,
)
from freqformer.ops.block_sparse.gluon.writing import write_sums
from freqformer.ops.block_sparse.triton.blocks import (
    LOG2_E,
    UNSPECIALIZED,
    Segments,
    Sizes,
    tile_extent,
)
from freqformer.ops.block_sparse.triton.bwd_gather import UNSEEN


class Matrices(NamedTuple):
    """Descriptors of what is fetched: the rows of all heads, one head after the other."""

    query: Any
    grad: Any
    key: Any
    value: Any


class Rings(NamedTuple):
    """Where it is fetched to."""

    query: Any
    """`Ring` of blocks of 64 queries, one for each consumer and task; the barriers are those of
    their output gradients too."""
    grad: Any
    key: Any
    """`Ring` of blocks of 64 keys; the barriers are those of values too."""
    value: Any


class Queries(NamedTuple):
    """A consumer's queries and what the gradients of their logits follow from, in registers."""

    q: Any
    grad: Any
    lse: Any
    delta: Any


@gluon.jit
def _fetch_keys(row, matrices, rings, fetched, blocks):
    stage = fetched % blocks.STAGES
    lap = fetched // blocks.STAGES & 1
    fetch_both(matrices.key, matrices.value, row, rings.key, rings.value, stage, lap)


@gluon.jit
def _produce(matrices, given, rings, blocks):
    """What the producer does: fetch, in the order in which consumers need it."""
    sizes = given.sizes
    total = num_tasks(given, blocks)
    query_rows = sizes.video + sizes.text + sizes.low
    HALF: gl.constexpr = blocks.BLOCK_Q // CONSUMERS
    fetched = 0
    turn = 0
    number, work = next_work(gl.program_id(0), total, given, blocks)
    while number < total:
        for consumer in gl.static_range(CONSUMERS):
            row = work.task.row * query_rows + work.task.start + consumer * HALF
            slot = turn % Q_STAGES * CONSUMERS + consumer
            lap = turn // Q_STAGES & 1
            fetch_both(matrices.query, matrices.grad, row, rings.query, rings.grad, slot, lap)
        key_at = work.task.row * given.key_rows
        exact = work.seen.exact
        # A tile is two blocks of keys: half as wide as the forward's, so that logits and their
        # gradients fit in registers beside queries, output gradients and dq.
        for step in range(exact.length * blocks.KEY_BLOCKS):
            tile = gl.load(exact.tiles + step // blocks.KEY_BLOCKS)
            at = tile_extent(given.tiles, tile, blocks.TILE_TOKENS).start
            at += key_at + work.seen.exact_at + step % blocks.KEY_BLOCKS * blocks.BLOCK_K
            _fetch_keys(at, matrices, rings, fetched, blocks)
            fetched += 1
        for step in range(num_extras(work, blocks)):
            at = key_at + extra_at(step, work, blocks).at
            _fetch_keys(at, matrices, rings, fetched, blocks)
            fetched += 1
        turn += 1
        number, work = next_work(number + gl.num_programs(0), total, given, blocks)


@gluon.jit
def _load_queries(slot, task, statistics, rings, blocks, CONSUMER: gl.constexpr):
    """A consumer's `Queries` of a task."""
    HALF: gl.constexpr = blocks.BLOCK_Q // CONSUMERS
    of_logits: gl.constexpr = products_layout(blocks.BLOCK_K)
    of_factor: gl.constexpr = gl.DotOperandLayout(0, of_logits, 2)
    row = gl.arange(0, HALF, layout=gl.SliceLayout(1, of_logits))
    live = row < task.count - CONSUMER * HALF
    place = task.row.to(gl.int64) * statistics.rows + task.start + CONSUMER * HALF
    return Queries(
        q=rings.query.blocks.index(slot).load(of_factor),
        grad=rings.grad.index(slot).load(of_factor),
        # Queries that are not there count for nothing.
        lse=gl.load(statistics.lse + place + row, mask=live, other=UNSEEN),
        delta=gl.load(statistics.delta + place + row, mask=live, other=0.0),
    )


@gluon.jit
def _add_keys(dq, queries, step, used, work, given, rings, scale, blocks, EXTRA: gl.constexpr):
    """dq after one more block of keys."""
    of_logits: gl.constexpr = products_layout(blocks.BLOCK_K)
    of_factor: gl.constexpr = gl.DotOperandLayout(0, dq.type.layout, 2)
    stage = used % blocks.STAGES
    keys = rings.key.blocks.index(stage)
    mbarrier.wait(rings.key.full.index(stage), used // blocks.STAGES & 1)
    # Both products are under way at once; the other consumer's softmax runs beside them. A product
    # whose left factor lies in registers reads half as much of shared memory.
    none = gl.zeros([dq.shape[0], blocks.BLOCK_K], gl.float32, layout=of_logits)
    logits = warpgroup_mma(queries.q, keys.permute((1, 0)), none, use_acc=False, is_async=True)
    values = rings.value.index(stage)
    of_weights = warpgroup_mma(
        queries.grad, values.permute((1, 0)), none, use_acc=False, is_async=True
    )
    # Products end in the order in which they began: the first has ended, the second may not have.
    logits = warpgroup_mma_wait(1, deps=(logits,))
    if EXTRA:
        logits = in_extra(logits, step, work, given, scale, blocks)
        weights = gl.exp2(logits - queries.lse[:, None])
    else:
        logits = in_tile(logits, step, work, given, blocks)
        weights = gl.exp2(logits * scale - queries.lse[:, None])
    of_weights = warpgroup_mma_wait(0, deps=(of_weights,))
    ds = weights * (of_weights - queries.delta[:, None])
    # A product's result is laid out over threads as a left factor in 16 bits is: nothing moves.
    factor = gl.convert_layout(ds.to(keys.dtype), of_factor)
    dq = warpgroup_mma(factor, keys, dq, is_async=True)
    # Keys are a factor of this product too: their place is free only after it. Left under way into
    # the next step, the compiler would wait after each of its instructions.
    dq, factor = warpgroup_mma_wait(0, deps=(dq, factor))
    mbarrier.arrive(rings.key.empty.index(stage))
    return dq


@gluon.jit
def _consume(given, statistics, grad_query, rings, scale, blocks, CONSUMER: gl.constexpr):
    """What a consumer does: gradients of 64 queries of every task."""
    sizes = given.sizes
    total = num_tasks(given, blocks)
    query_rows = sizes.video + sizes.text + sizes.low
    HALF: gl.constexpr = blocks.BLOCK_Q // CONSUMERS
    used = 0
    turn = 0
    number, work = next_work(gl.program_id(0), total, given, blocks)
    while number < total:
        slot = turn % Q_STAGES * CONSUMERS + CONSUMER
        mbarrier.wait(rings.query.full.index(slot), turn // Q_STAGES & 1)
        # They stay in registers for the whole task: 64 of each thread's at head_dim 128.
        queries = _load_queries(slot, work.task, statistics, rings, blocks, CONSUMER)
        dq = gl.zeros([HALF, blocks.HEAD_DIM], gl.float32, layout=products_layout(blocks.HEAD_DIM))
        exact = work.seen.exact.length * blocks.KEY_BLOCKS
        for step in range(exact):
            dq = _add_keys(dq, queries, step, used, work, given, rings, scale, blocks, False)
            used += 1
        # Compiled for calls without such keys too: of one loop alone, NVIDIA's assembler of CUDA
        # 12.8 puts ds into the registers that output gradients are still needed from.
        for step in range(num_extras(work, blocks)):
            dq = _add_keys(dq, queries, step, used, work, given, rings, scale, blocks, True)
            used += 1
        # Rows of the whole matrix may be more than 32 bits count.
        place = work.task.row.to(gl.int64) * query_rows + work.task.start + CONSUMER * HALF
        written = work.task.count - CONSUMER * HALF
        # dq = sum ds k / sqrt(D), with the factor once for the whole sum. `scale` also holds what
        # makes logits base 2; gradients are of natural ones.
        staged = rings.query.blocks.index(slot)
        write_sums(dq * (scale / LOG2_E), staged, grad_query, place, written, blocks.HEAD_DIM)
        # The next queries come here by another way than these, which must have been read before.
        fence_async_shared()
        mbarrier.arrive(rings.query.empty.index(slot))
        turn += 1
        number, work = next_work(number + gl.num_programs(0), total, given, blocks)


@gluon.jit(do_not_specialize=UNSPECIALIZED)
def query_grads_kernel(
    query,
    grad,
    key,
    value,
    statistics,
    grad_query,
    rows,
    tiles,
    lists,
    biases,
    scale,
    num_rows,
    num_heads,
    num_tiles,
    num_tokens,
    num_text,
    num_low,
    cells,
    high_length,
    mid_length,
    low_at,
    low_sums_at,
    mid_sums_at,
    high_sums_at,
    text_at,
    exact_at,
    key_rows,
    blocks,
):
    """Gradients of all queries; launched with as many programs as the GPU has multiprocessors, or
    as there are tasks.

    Args:
        query, grad, key, value: descriptors of the rows of all heads, in blocks of 64.
        statistics: `Statistics`.
        grad_query: (R, N + X + M, D), written.
        rows, tiles, lists, biases: `Rows`, `Tiles`, `Lists` and `Biases` of the Triton kernel.
        scale: log2(e) / sqrt(head_dim).
        num_rows to key_rows: see `UNSPECIALIZED`.
        blocks: `Blocks` of the Triton kernel.
    """
    given = Given(
        rows=rows,
        tiles=tiles,
        lists=lists,
        biases=biases,
        sizes=Sizes(
            rows=num_rows,
            tiles=num_tiles,
            video=num_tokens,
            text=num_text,
            low=num_low,
            cells=cells,
        ),
        segments=Segments(
            low=low_at,
            low_summaries=low_sums_at,
            mid_summaries=mid_sums_at,
            high_summaries=high_sums_at,
            text=text_at,
            exact=exact_at,
        ),
        num_heads=num_heads,
        key_rows=key_rows,
        text_parts=1,
        high_length=high_length,
        mid_length=mid_length,
    )
    matrices = Matrices(query=query, grad=grad, key=key, value=value)
    SLOTS: gl.constexpr = Q_STAGES * CONSUMERS
    HALF: gl.constexpr = blocks.BLOCK_Q // CONSUMERS
    queries: gl.constexpr = [SLOTS, HALF, blocks.HEAD_DIM]
    keys: gl.constexpr = [blocks.STAGES, blocks.BLOCK_K, blocks.HEAD_DIM]
    rings = Rings(
        query=new_ring(query, SLOTS, HALF, blocks.HEAD_DIM, 1),
        grad=gl.allocate_shared_memory(grad.dtype, queries, grad.layout),
        key=new_ring(key, blocks.STAGES, blocks.BLOCK_K, blocks.HEAD_DIM, CONSUMERS),
        value=gl.allocate_shared_memory(value.dtype, keys, value.layout),
    )
    gl.warp_specialize(
        [
            (_consume, (given, statistics, grad_query, rings, scale, blocks, 0)),
            (_consume, (given, statistics, grad_query, rings, scale, blocks, 1)),
            (_produce, (matrices, given, rings, blocks)),
        ],
        [4, 1],
        [232, 40],
    )
