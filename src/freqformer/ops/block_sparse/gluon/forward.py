# Gluon reads these functions, and its decorators hide what they take: pyright can't follow.
# pyright: reportCallIssue=false, reportOperatorIssue=false, reportArgumentType=false
# pyright: reportAssignmentType=false, reportGeneralTypeIssues=false
"""The attention kernel for Hopper, forward, with warps that have one job each.

One program per multiprocessor works through tasks, blocks of 128 queries. A producer warp asks the
tensor memory accelerator for blocks of queries, keys and values; two consumer warp groups of 64
queries each multiply and take the softmax. They meet at barriers in shared memory alone: a `full`
one says that a block has come, an `empty` one that its consumers are done with it. The consumers
take turns at the matrix units: while one multiplies, the other takes exponentials.

Logits are kept in base 2: `scale` is log2(e) / sqrt(head_dim), and biases are multiplied by
log2(e). Shape legend: D head_dim. An argument that is None is absent from the compiled kernel.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    mbarrier,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from freqformer.ops.block_sparse.gluon.rings import (
    CONSUMERS,
    Q_STAGES,
    Matrices,
    Rings,
    fetch,
    fetch_keys,
    hand_over,
    new_ring,
    take_turn,
)
from freqformer.ops.block_sparse.gluon.softmax import first_step, softmax_step, start_logits
from freqformer.ops.block_sparse.gluon.tasks import (
    Given,
    extra_at,
    next_task,
    num_extras,
    num_tasks,
    tile_extent,
)
from freqformer.ops.block_sparse.gluon.writing import targets, write
from freqformer.ops.block_sparse.triton.blocks import UNSPECIALIZED, Segments, Sizes


@gluon.jit
def _produce(matrices, given, rings, blocks):
    """What the producer does: fetch, in the order in which consumers need it.

    What it needs to know of a task and of a tile is on its way while the one before is fetched.
    """
    sizes = given.sizes
    total = num_tasks(given, blocks)
    query_rows = sizes.video + sizes.text + sizes.low
    HALF: gl.constexpr = blocks.BLOCK_Q // CONSUMERS
    fetched = 0
    turn = 0
    number, task = next_task(gl.program_id(0), total, given, blocks)
    tile = gl.load(task.listed, mask=task.steps > 0, other=0)
    while number < total:
        for consumer in gl.static_range(CONSUMERS):
            row = task.row * query_rows + task.start + consumer * HALF
            slot = turn % Q_STAGES * CONSUMERS + consumer
            fetch(matrices.query, row, rings.query, slot, turn // Q_STAGES & 1)
        number, following = next_task(number + gl.num_programs(0), total, given, blocks)
        first_tile = gl.load(following.listed, mask=following.steps > 0, other=0)
        for step in range(task.steps):
            extent = tile_extent(given.tiles, tile, blocks.TILE_TOKENS)
            tile = gl.load(task.listed + gl.minimum(step + 1, task.steps - 1))
            fetch_keys(task.video_at + extent.start, matrices, rings, fetched, blocks)
            fetched += 1
        if blocks.EXTRAS:
            # A task has one block at least, if only one without keys.
            extras = gl.maximum(num_extras(task, blocks.BLOCK_K), gl.where(task.steps > 0, 0, 1))
            for step in range(extras):
                at = extra_at(step, task, given.segments, blocks.BLOCK_K).at
                fetch_keys(at, matrices, rings, fetched, blocks)
                fetched += 1
        turn += 1
        tile = first_tile
        task = following


@gluon.jit
def _consume(given, outputs, rings, scale, blocks, CONSUMER: gl.constexpr):
    """What a consumer does: attention of 64 queries of every task."""
    STAGES: gl.constexpr = blocks.STAGES
    total = num_tasks(given, blocks)
    number, task = next_task(gl.program_id(0), total, given, blocks)
    used = 0
    turn = 0
    if CONSUMER == 1:
        hand_over(CONSUMER)
    some = number < total
    mbarrier.wait(rings.query.full.index(CONSUMER), 0, pred=some)
    mbarrier.wait(rings.key.full.index(0), 0, pred=some)
    logits = start_logits(CONSUMER, used, rings, blocks)
    logits = warpgroup_mma_wait(0, deps=(logits,))
    mbarrier.arrive(rings.key.empty.index(0), pred=some)
    while number < total:
        slot = turn % Q_STAGES * CONSUMERS + CONSUMER
        state = first_step(logits, used, task, given, scale, blocks, rings.query.blocks.dtype)
        # What comes after this task is asked for long before it is needed.
        number, following = next_task(number + gl.num_programs(0), total, given, blocks)
        for step in range(1, task.steps):
            state = softmax_step(
                state, step, slot, task, given, rings, scale, blocks, CONSUMER, False
            )
        if blocks.EXTRAS:
            # In a loop of their own, so that tiles don't pay for biases.
            steps = task.steps + num_extras(task, blocks.BLOCK_K)
            for step in range(gl.maximum(task.steps, 1), steps):
                state = softmax_step(
                    state, step, slot, task, given, rings, scale, blocks, CONSUMER, True
                )
        used = state.used

        # The last product with values, and behind it the first with keys of the next task, which is
        # under way while this one is written.
        more = number < total
        before = (used - 1) % STAGES
        stage = used % STAGES
        next_slot = (turn + 1) % Q_STAGES * CONSUMERS + CONSUMER
        target = targets(task, given, outputs, blocks, CONSUMER)
        mbarrier.wait(rings.value.full.index(before), (used - 1) // STAGES & 1)
        take_turn(CONSUMER)
        acc = warpgroup_mma(state.p, rings.value.blocks.index(before), state.acc, is_async=True)
        mbarrier.wait(rings.query.full.index(next_slot), (turn + 1) // Q_STAGES & 1, pred=more)
        mbarrier.wait(rings.key.full.index(stage), used // STAGES & 1, pred=more)
        logits = start_logits(next_slot, used, rings, blocks)
        hand_over(CONSUMER)
        acc = warpgroup_mma_wait(1, deps=(acc,))
        mbarrier.arrive(rings.value.empty.index(before))
        # Nobody reads this task's queries any more: their place takes its results.
        staged = rings.query.blocks.index(slot)
        write(acc, state, target, task, given, outputs, staged, blocks, CONSUMER)
        mbarrier.arrive(rings.query.empty.index(slot))
        logits = warpgroup_mma_wait(0, deps=(logits,))
        mbarrier.arrive(rings.key.empty.index(stage), pred=more)
        task = following
        turn += 1
    if CONSUMER == 0:
        take_turn(CONSUMER)


@gluon.jit(do_not_specialize=UNSPECIALIZED)
def attention_kernel(
    query,
    key,
    value,
    outputs,
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
    high_length,
    mid_length,
    low_at,
    low_sums_at,
    mid_sums_at,
    high_sums_at,
    text_at,
    exact_at,
    key_rows,
    text_parts,
    blocks,
):
    """Attention of all tasks; launched with as many programs as the GPU has multiprocessors, or as
    there are tasks.

    Args:
        query, key, value: descriptors of the rows of all heads, in blocks of 64, 128 and 128.
        outputs, rows, tiles, lists, biases: `Outputs`, `Rows`, `Tiles`, `Lists` and `Biases` of the
            Triton kernel.
        scale: log2(e) / sqrt(head_dim).
        num_rows to text_parts: see `UNSPECIALIZED`.
        blocks: `Blocks`.
    """
    given = Given(
        rows=rows,
        tiles=tiles,
        lists=lists,
        biases=biases,
        sizes=Sizes(
            rows=num_rows, tiles=num_tiles, video=num_tokens, text=num_text, low=biases.num_low
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
        text_parts=text_parts,
        high_length=high_length,
        mid_length=mid_length,
    )
    matrices = Matrices(query=query, key=key, value=value)
    HALF: gl.constexpr = blocks.BLOCK_Q // CONSUMERS
    rings = Rings(
        query=new_ring(query, Q_STAGES * CONSUMERS, HALF, blocks.HEAD_DIM, 1),
        key=new_ring(key, blocks.STAGES, blocks.BLOCK_K, blocks.HEAD_DIM, CONSUMERS),
        value=new_ring(value, blocks.STAGES, blocks.BLOCK_K, blocks.HEAD_DIM, CONSUMERS),
    )
    # Registers go from the producer's warp group to the consumers.
    gl.warp_specialize(
        [
            (_consume, (given, outputs, rings, scale, blocks, 0)),
            (_consume, (given, outputs, rings, scale, blocks, 1)),
            (_produce, (matrices, given, rings, blocks)),
        ],
        [4, 1],
        [232, 40],
    )
