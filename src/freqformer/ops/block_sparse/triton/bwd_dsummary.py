"""The Triton kernels of block-sparse attention, backward: gradients of low tokens, summaries and
text keys.

Every query of a row sees them, so a row's queries are taken in parts and the parts' sums are joined
in order. The mathematics is in `bwd_dq`. Shape legend: R rows, P parts, C cells, M low tokens, D
head_dim.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from freqformer.ops.block_sparse.triton.blocks import (
    HIGH,
    LOG2_E,
    LOW,
    MID,
    UNSPECIALIZED,
    Segments,
    Sizes,
    load_block,
    row_of,
    store_rows,
    tile_extent,
    tile_skip,
)
from freqformer.ops.block_sparse.triton.bwd_dkv import KeyGrads, key_step
from freqformer.ops.block_sparse.triton.bwd_gather import Statistics, load_statistics
from freqformer.ops.block_sparse.triton.tasks import ExtraBlock, key_bias

# Numbered as their learned offsets lie, (R, 3).
LOW_SUMMARIES, MID_SUMMARIES, HIGH_SUMMARIES = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)
OTHERS = tl.constexpr(3)
"""Low tokens or text: keys without a learned offset."""


class KeyTask(NamedTuple):
    """A block of extra keys of one row, and which part of its queries."""

    row: Any
    band: Any
    """The row's."""
    is_low: Any
    """Whether they are low tokens, which have one part."""
    kind: Any
    """`LOW_SUMMARIES`, `MID_SUMMARIES`, `HIGH_SUMMARIES` or `OTHERS`."""
    block: Any
    """Number of the block in its segment."""
    part: Any
    at: Any
    """First row of the segment in the key buffer."""
    count: Any
    """Keys of the segment."""
    bias: Any
    """Pointer to one bias for each key of low tokens or low summaries, to base e."""
    bias_step: Any
    """How far apart those of neighbouring query tiles lie."""
    text: Any
    """Text queries to take, which the last part of text keys does."""
    seen: Any
    """Whether a query of the row sees the segment."""


class QueryRuns(NamedTuple):
    """The queries of a `KeyTask`, in blocks: tiles, then low queries, then text."""

    tile: Any
    """First tile."""
    video: Any
    """Blocks of the tiles' queries."""
    low: Any
    """First block of low queries."""
    banded: Any
    """Blocks of tiles and of low queries together."""
    all: Any


@triton.jit
def _key_task(
    program,
    rows,
    biases,
    sizes,
    segments,
    num_parts,
    blocks,
):
    """The `KeyTask` of a program: blocks of low, mid and high summaries and of text, each in parts,
    row by row; then blocks of low tokens."""
    # C cells are a few blocks of keys, and N queries see each: a program for each block would be
    # few programs and long ones. So queries are cut into parts as well.
    cells = sizes.cells
    cell_blocks = tl.cdiv(cells, blocks.BLOCK_K)
    # A segment that doesn't exist starts at -1, and takes no programs.
    learned_blocks = tl.where(segments.mid_summaries >= 0, cell_blocks, 0)
    text_first = cell_blocks + 2 * learned_blocks
    per_row = (text_first + tl.cdiv(sizes.text, blocks.BLOCK_K)) * num_parts
    # Low tokens come after the others, each block in one part: only low queries see them, M and not
    # N, and there are mostly more blocks of them than of summaries.
    is_low = program >= sizes.rows * per_row
    if is_low:
        program -= sizes.rows * per_row
        per_row = tl.cdiv(sizes.low, blocks.BLOCK_K)
    row = tl.load(rows.order + program // per_row)
    block = program % per_row
    # As low tokens need it; what other keys need instead is set below.
    part = 0
    band = tl.load(rows.allocation + row)
    kind = OTHERS
    bias_step = 0
    text = 0
    bias = biases.low
    at = segments.low
    count = sizes.low
    seen = (band == LOW) | blocks.BRANCH
    if not is_low:
        # Parts of one block of keys are neighbours: each reads other queries, over other tiles.
        part = block % num_parts
        block = block // num_parts
        if block < cell_blocks:
            kind = LOW_SUMMARIES
            at = segments.low_summaries
            count = cells
            # DENSE rows see every tile and LOW rows all low tokens: a summary stands for nothing
            # there.
            seen = (band == MID) | (band == HIGH)
            bias_step = cells
            # What a list leaves of a cell is another number for every query tile.
            if biases.high is not None:
                # Without cells there are no such programs, but the name needs a pointer all the
                # same.
                bias = biases.high
            if biases.mid is not None:
                if band == MID:
                    entry = row.to(tl.int64) * biases.mid_step * sizes.tiles
                    bias = biases.mid + entry * cells
        elif block < cell_blocks + learned_blocks:
            block -= cell_blocks
            kind = MID_SUMMARIES
            at = segments.mid_summaries
            count = cells
            # A row's own band is seen in exact tokens, by video queries: low ones see summaries of
            # it too.
            seen = (band == LOW) | (band == HIGH) | blocks.BRANCH
        elif block < text_first:
            block -= cell_blocks + learned_blocks
            kind = HIGH_SUMMARIES
            at = segments.high_summaries
            count = cells
            seen = (band == LOW) | (band == MID) | blocks.BRANCH
        else:
            block -= text_first
            at = segments.text
            count = sizes.text
            seen = True
            # Text queries are few and see nothing else of the extras: one part takes them all.
            if part == num_parts - 1:
                text = sizes.text
    return KeyTask(
        row=row,
        band=band,
        is_low=is_low,
        kind=kind,
        block=block,
        part=part,
        at=at,
        count=count,
        bias=bias,
        bias_step=bias_step,
        text=text,
        seen=seen,
    )


@triton.jit
def _query_runs(
    task,
    sizes,
    num_parts,
    EVERY_TILE: tl.constexpr,
    blocks,
):
    """The `QueryRuns` of a task. EVERY_TILE: whether MID rows see every tile, and so no low
    summaries."""
    # `keys_seen` turned round: a query that sees a key there gives it a gradient here.
    video_seen = (task.band != LOW) & (not task.is_low)
    low_seen = ((task.band == LOW) | blocks.BRANCH) & (task.kind != LOW_SUMMARIES)
    if task.kind == LOW_SUMMARIES:
        if EVERY_TILE:
            video_seen = video_seen & (task.band != MID)
    # Video queries see learned summaries of other bands than their own, and DENSE ones none.
    if task.kind == MID_SUMMARIES:
        video_seen = task.band == HIGH
    if task.kind == HIGH_SUMMARIES:
        video_seen = task.band == MID
    # Both ends rounded down alike: no tile is left out and none is taken twice.
    begin = sizes.tiles * task.part // num_parts
    video = 0
    if video_seen:
        video = (sizes.tiles * (task.part + 1) // num_parts - begin) * blocks.QUERY_BLOCKS
    low_blocks = tl.cdiv(sizes.low, blocks.BLOCK_Q)
    low_begin = 0
    low_end = low_blocks
    if not task.is_low:
        low_begin = low_blocks * task.part // num_parts
        low_end = low_blocks * (task.part + 1) // num_parts
    # Cumulative, so that the loop tells the runs apart by two comparisons.
    banded = video + tl.where(low_seen, low_end - low_begin, 0)
    return QueryRuns(
        tile=begin,
        video=video,
        low=low_begin,
        banded=banded,
        all=banded + tl.cdiv(task.text, blocks.BLOCK_Q),
    )


@triton.jit(do_not_specialize=UNSPECIALIZED)
def extra_grads_kernel(
    query,
    key,
    value,
    grad,
    statistics,
    grads,
    partial,
    rows,
    tiles,
    biases,
    scale,
    blocks,
    num_rows,
    num_heads,
    num_tiles,
    num_tokens,
    num_text,
    num_low,
    cells,
    low_at,
    low_sums_at,
    mid_sums_at,
    high_sums_at,
    text_at,
    exact_at,
    key_rows,
    region_at,
    region_rows,
    num_parts,
):
    """Gradients of one block of summaries or text keys of one row from a part of its queries, or of
    one of low tokens.

    Args:
        query, key, value, grad, statistics: as in `query_grads_kernel`.
        grads: `KeyGrads`, written for low tokens.
        partial: `KeyParts`, written for the others.
        rows, tiles, biases, scale, blocks, low_at, ..., key_rows: as in `attention_kernel`.
        region_at, region_rows: the first row of summaries and text in the key buffer, and E.
        num_parts: of the queries of a row, which all see these keys: few programs would take long.
    """
    sizes = Sizes(
        rows=num_rows, tiles=num_tiles, video=num_tokens, text=num_text, low=num_low, cells=cells
    )
    segments = Segments(
        low=low_at,
        low_summaries=low_sums_at,
        mid_summaries=mid_sums_at,
        high_summaries=high_sums_at,
        text=text_at,
        exact=exact_at,
    )
    task = _key_task(tl.program_id(0), rows, biases, sizes, segments, num_parts, blocks)
    # Nothing is written then; the join tells by the same rule which places hold anything.
    if not task.seen:
        return
    row = task.row
    shift = 0.0
    if biases.summary_offsets is not None:
        if task.kind < OTHERS:
            shift = tl.load(biases.summary_offsets + row * 3 + task.kind).to(tl.float32) * LOG2_E

    first_low = num_tokens + num_text
    query_rows = first_low + sizes.low
    # Pointers are moved to the row once, in 64 bits, so that the loop adds 32.
    statistic = row.to(tl.int64) * tl.multiple_of(statistics.rows, 16)
    residual = statistics.rounding_residual
    if residual is not None:
        residual += statistic
    own_statistics = Statistics(
        lse=statistics.lse + statistic,
        delta=statistics.delta + statistic,
        rounding_residual=residual,
        rows=statistics.rows,
    )
    queries = row_of(query, row, query_rows, blocks)
    grad_rows = row_of(grad, row, query_rows, blocks)
    keys = row_of(key, row, key_rows, blocks)
    values = row_of(value, row, key_rows, blocks)
    own = tl.arange(0, blocks.BLOCK_K)
    skip = task.block * blocks.BLOCK_K
    at = keys.at + task.at + skip
    k = load_block(keys.source, at, None, blocks.BLOCK_K, blocks)
    v = load_block(values.source, at, None, blocks.BLOCK_K, blocks)
    # For `key_bias`, which rounds as in the forward kernel: weights must be the same.
    block = ExtraBlock(at=task.at, skip=skip, left=task.count - skip, shift=shift)
    sums = KeyGrads(
        key=tl.zeros([blocks.BLOCK_K, blocks.HEAD_DIM], tl.float32),
        value=tl.zeros([blocks.BLOCK_K, blocks.HEAD_DIM], tl.float32),
    )
    ds = tl.zeros([blocks.BLOCK_K], tl.float32)
    text_mask = biases.text_mask
    if text_mask is not None:
        text_mask += row // num_heads * num_text

    # One loop over three runs, as the forward has one over four segments: code and pipeline once.
    runs = _query_runs(task, sizes, num_parts, biases.mid is None, blocks)
    column = tl.arange(0, blocks.BLOCK_Q)
    for step in tl.range(0, runs.all, num_stages=blocks.STAGES):
        # After the last tile 0 stands in: it exists, and its extent is loaded and dropped.
        tile = tl.where(step < runs.video, runs.tile + step // blocks.QUERY_BLOCKS, 0)
        extent = tile_extent(tiles, tile, blocks.TILE_TOKENS)
        start = extent.start + tile_skip(step, blocks.QUERY_BLOCKS, blocks.BLOCK_Q)
        limit = extent.start + extent.count
        if step >= runs.video:
            start = first_low + (runs.low + step - runs.video) * blocks.BLOCK_Q
            # Each run ends at a limit of its own: a block must not count queries of the next run.
            limit = query_rows
        if step >= runs.banded:
            start = num_tokens + (step - runs.banded) * blocks.BLOCK_Q
            limit = first_low
        place = start + column
        # Read in every step: a low summary's bias is of a query tile and a cell.
        # Low queries see low tokens under their own bias, whatever the tile: its step is 0.
        bias = key_bias(
            block,
            own,
            task.bias + tile * task.bias_step,
            text_mask,
            task.is_low | (task.kind == LOW_SUMMARIES),
            text_at == task.at,
        )
        made = key_step(
            k,
            v,
            queries,
            grad_rows,
            start,
            limit,
            load_statistics(own_statistics, place, place < limit),
            bias,
            scale,
            sums,
            blocks,
        )
        sums = made.sums
        # An offset is added to all logits of its kind, so that its gradient is the sum of theirs.
        ds += tl.sum(made.ds, 1)

    dk = sums.key * (scale / LOG2_E)
    # The last block of a segment reaches into the zeros after it, whose gradients nobody wants.
    held = own < task.count - skip
    # All queries are in: rounded once and final.
    if task.is_low:
        target = row.to(tl.int64) * key_rows + task.at + skip + own
        store_rows(grads.key, target, dk, held, blocks.HEAD_DIM)
        store_rows(grads.value, target, sums.value, held, blocks.HEAD_DIM)
    else:
        # Each part has rows of its own, (R, P, E, D), in float32: `bwd_join` adds them in order,
        # where atomic sums would round in another order every time.
        entry = row.to(tl.int64) * num_parts + task.part
        target = entry * region_rows + task.at - region_at + skip + own
        store_rows(partial.key, target, dk, held, blocks.HEAD_DIM)
        store_rows(partial.value, target, sums.value, held, blocks.HEAD_DIM)
        if partial.ds is not None:
            if task.kind < OTHERS:
                # An offset is one number for all keys of its kind: the host adds the blocks up.
                cell_blocks = tl.cdiv(sizes.cells, blocks.BLOCK_K)
                number = ((row * 3 + task.kind) * cell_blocks + task.block) * num_parts + task.part
                tl.store(partial.ds + number, tl.sum(tl.where(held, ds, 0.0), 0))
