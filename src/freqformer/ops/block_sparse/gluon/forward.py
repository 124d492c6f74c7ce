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
    next_work,
    num_extras,
    num_tasks,
)
from freqformer.ops.block_sparse.gluon.writing import targets, write
from freqformer.ops.block_sparse.triton.blocks import (
    UNSPECIALIZED,
    Segments,
    Sizes,
    tile_extent,
)


@gluon.jit
def _produce(matrices, given, rings, blocks, EXTRAS: gl.constexpr):
    """What the producer does: fetch, in the order in which consumers need it.

    What it needs to know of a task and of a tile is on its way while the one before is fetched.
    """
    sizes = given.sizes
    total = num_tasks(given, blocks)
    query_rows = sizes.video + sizes.text + sizes.low
    HALF: gl.constexpr = blocks.BLOCK_Q // CONSUMERS
    fetched = 0
    turn = 0
    number, work = next_work(gl.program_id(0), total, given, blocks)
    # An empty list must not be read.
    tile = gl.load(work.seen.exact.tiles, mask=work.seen.exact.length > 0, other=0)
    while number < total:
        # Each consumer has its own half of the queries, and frees it when its own results are out.
        for consumer in gl.static_range(CONSUMERS):
            row = work.task.row * query_rows + work.task.start + consumer * HALF
            slot = turn % Q_STAGES * CONSUMERS + consumer
            fetch(matrices.query, row, rings.query, slot, turn // Q_STAGES & 1)
        number, following = next_work(number + gl.num_programs(0), total, given, blocks)
        first_tile = gl.load(
            following.seen.exact.tiles, mask=following.seen.exact.length > 0, other=0
        )
        exact = work.seen.exact
        key_at = work.task.row * given.key_rows
        for step in range(exact.length):
            extent = tile_extent(given.tiles, tile, blocks.TILE_TOKENS)
            # The last step loads the last tile again: nothing after the list is read.
            tile = gl.load(exact.tiles + gl.minimum(step + 1, exact.length - 1))
            at = key_at + work.seen.exact_at + extent.start
            fetch_keys(at, matrices, rings, fetched, blocks)
            fetched += 1
        if EXTRAS:
            # A task has one block at least, if only one without keys: consumers wait for a first.
            extras = gl.maximum(num_extras(work, blocks), gl.where(exact.length > 0, 0, 1))
            for step in range(extras):
                # A segment that doesn't exist lies at -1.
                at = gl.maximum(extra_at(step, work, blocks).at, 0)
                fetch_keys(key_at + at, matrices, rings, fetched, blocks)
                fetched += 1
        turn += 1
        tile = first_tile
        work = following


@gluon.jit
def _consume(given, outputs, rings, scale, blocks, CONSUMER: gl.constexpr, EXTRAS: gl.constexpr):
    """What a consumer does: attention of 64 queries of every task."""
    STAGES: gl.constexpr = blocks.STAGES
    total = num_tasks(given, blocks)
    number, work = next_work(gl.program_id(0), total, given, blocks)
    used = 0
    turn = 0
    # The first turn is consumer 0's.
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
        exact = work.seen.exact.length
        state = first_step(
            logits, used, work, given, scale, blocks, rings.query.blocks.dtype, EXTRAS
        )
        # What comes after this task is asked for long before it is needed.
        number, following = next_work(number + gl.num_programs(0), total, given, blocks)
        for step in range(1, exact):
            state = softmax_step(
                state, step, slot, work, given, rings, scale, blocks, CONSUMER, False
            )
        if EXTRAS:
            # In a loop of their own, so that tiles don't pay for biases.
            steps = exact + num_extras(work, blocks)
            for step in range(gl.maximum(exact, 1), steps):
                state = softmax_step(
                    state, step, slot, work, given, rings, scale, blocks, CONSUMER, True
                )
        used = state.used

        # The last product with values, and behind it the first with keys of the next task, which is
        # under way while this one is written. After the last task it multiplies what lies there,
        # for nobody: a branch around it would keep the compiler from overlapping the two.
        more = number < total
        before = (used - 1) % STAGES
        stage = used % STAGES
        next_slot = (turn + 1) % Q_STAGES * CONSUMERS + CONSUMER
        target = targets(work.task, given, outputs, blocks, CONSUMER)
        mbarrier.wait(rings.value.full.index(before), (used - 1) // STAGES & 1)
        take_turn(CONSUMER)
        acc = warpgroup_mma(state.p, rings.value.blocks.index(before), state.acc, is_async=True)
        mbarrier.wait(rings.query.full.index(next_slot), (turn + 1) // Q_STAGES & 1, pred=more)
        mbarrier.wait(rings.key.full.index(stage), used // STAGES & 1, pred=more)
        logits = start_logits(next_slot, used, rings, blocks)
        hand_over(CONSUMER)
        # Products end in the order in which they began: all but the last one are done.
        acc = warpgroup_mma_wait(1, deps=(acc,))
        mbarrier.arrive(rings.value.empty.index(before))
        # Nobody reads this task's queries any more: their place takes its results.
        staged = rings.query.blocks.index(slot)
        write(acc, state, target, work, given, outputs, staged, blocks, CONSUMER)
        mbarrier.arrive(rings.query.empty.index(slot))
        logits = warpgroup_mma_wait(0, deps=(logits,))
        mbarrier.arrive(rings.key.empty.index(stage), pred=more)
        work = following
        turn += 1
    # As many turns are taken as were handed over, or the barrier would be left half full.
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
    text_parts,
    blocks,
    EXTRAS: gl.constexpr,
):
    """Attention of all tasks; launched with as many programs as the GPU has multiprocessors, or as
    there are tasks.

    Args:
        query, key, value: descriptors of the rows of all heads, in blocks of 64, 128 and 128.
        outputs, rows, tiles, lists, biases: `Outputs`, `Rows`, `Tiles`, `Lists` and `Biases` of the
            Triton kernel.
        scale: log2(e) / sqrt(head_dim).
        num_rows to text_parts: see `UNSPECIALIZED`.
        blocks: `Blocks` of the Triton kernel.
        EXTRAS: whether any task may see keys that are not tiles.
    """
    text = num_text
    if not blocks.TEXT:
        # A constant costs no register, and a parameter of 0 does. Gradients of queries go without:
        # of one form of theirs CUDA 12.8's assembler then made wrong code (DESIGN.md).
        text = gl.to_tensor(0)
    given = Given(
        rows=rows,
        tiles=tiles,
        lists=lists,
        biases=biases,
        sizes=Sizes(
            rows=num_rows,
            tiles=num_tiles,
            video=num_tokens,
            text=text,
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
    # Four warps for the first consumer, four for the second, one for the producer. The producer's
    # registers go to the consumers, whose products fill theirs: 64 rows of 128 columns in float32
    # are 64 registers a thread, once for outputs and once for logits, and 32 for weights.
    gl.warp_specialize(
        [
            (_consume, (given, outputs, rings, scale, blocks, 0, EXTRAS)),
            (_consume, (given, outputs, rings, scale, blocks, 1, EXTRAS)),
            (_produce, (matrices, given, rings, blocks, EXTRAS)),
        ],
        [4, 1],
        [232, 40],
    )
