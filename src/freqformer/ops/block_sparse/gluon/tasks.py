# Gluon reads these functions, and its decorators hide what they take: pyright can't follow.
# pyright: reportCallIssue=false, reportOperatorIssue=false, reportArgumentType=false
# pyright: reportAssignmentType=false, reportGeneralTypeIssues=false
"""What one block of queries has to do: where it lies, and which keys it sees.

Every warp group of a program works this out for itself, from the same tables. Shape legend: R rows
(row = sample * heads + head), T tiles, C cells.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from freqformer.ops.block_sparse.triton.blocks import HIGH, LOG2_E, LOW, MID, Extent


class Blocks(NamedTuple):
    """What a kernel is compiled for."""

    HEAD_DIM: Any
    BLOCK_Q: Any
    """Queries of a task."""
    BLOCK_K: Any
    TILE_TOKENS: Any
    """Tokens of every tile, or 0 where they differ."""
    SAFE: Any
    """Columns that full tiles have for sure, a multiple of 8."""
    STAGES: Any
    """Blocks of keys, and of values, that shared memory holds."""
    TEXT: Any
    LOWS: Any
    BRANCH: Any
    EXTRAS: Any
    """Whether any task may see keys that are not tiles."""


class Given(NamedTuple):
    """All that tasks are worked out from, put together in the kernel."""

    rows: Any
    """`Rows`, and so on by these names:"""
    tiles: Any
    lists: Any
    biases: Any
    sizes: Any
    segments: Any
    num_heads: Any
    key_rows: Any
    """Rows of one head in the key buffer."""
    text_parts: Any
    """Parts that the keys of a text query are dealt out to."""
    high_length: Any
    """Tiles of every window."""
    mid_length: Any
    """Places of every MID list."""


class Task(NamedTuple):
    """One block of queries."""

    row: Any
    is_text: Any
    is_low: Any
    part: Any
    """Of a text query's keys."""
    start: Any
    """First query, counted in the queries of the row."""
    queries: Any
    """How many there are; none, or fewer, where there is nothing to do."""
    listed: Any
    """Its list of tiles,"""
    steps: Any
    """how many they are, and"""
    video_at: Any
    """the row of the key buffer that their offsets count from."""
    key_at: Any
    """First row of the head in the key buffer."""
    first_at: Any
    """Low tokens or low summaries: first row within the head,"""
    first_count: Any
    """number,"""
    first_bias: Any
    """bias of each, and"""
    first_shift: Any
    """of all."""
    mid_count: Any
    """Mid summaries,"""
    mid_shift: Any
    high_count: Any
    """high summaries,"""
    high_shift: Any
    text_count: Any
    """and text."""
    common: Any
    """Bias of the tiles, which they are spared: all other biases are less by it."""


@gluon.jit
def num_tasks(given, blocks):
    """Blocks of queries of all rows, those of rows without such queries too."""
    sizes = given.sizes
    per_row = sizes.tiles
    if blocks.TEXT:
        per_row += gl.cdiv(sizes.text, blocks.BLOCK_Q) * given.text_parts
    if blocks.LOWS:
        per_row += gl.cdiv(sizes.low, blocks.BLOCK_Q)
    return sizes.rows * per_row


@gluon.jit
def tile_extent(tiles, tile, TILE_TOKENS: gl.constexpr):
    """First token of a tile and how many it holds; TILE_TOKENS is 0 where tiles differ."""
    if TILE_TOKENS > 0:
        extent = Extent(start=tile * TILE_TOKENS, count=TILE_TOKENS)
    else:
        count = gl.load(tiles.counts + tile).to(gl.int32)
        extent = Extent(start=gl.load(tiles.offsets + tile), count=count)
    return extent


@gluon.jit
def task_at(number, given, blocks):
    """The task of a number below `num_tasks`.

    The longest come first: text queries see everything, low queries all low tokens, and rows are in
    the order of their lists' lengths.
    """
    BLOCK_Q: gl.constexpr = blocks.BLOCK_Q
    TILE_TOKENS: gl.constexpr = blocks.TILE_TOKENS
    sizes = given.sizes
    places = given.segments
    biases = given.biases
    first_low = sizes.video + sizes.text
    is_text = False
    is_low = False
    per_row = sizes.tiles
    if blocks.TEXT:
        text_tasks = gl.cdiv(sizes.text, BLOCK_Q) * given.text_parts
        is_text = number < sizes.rows * text_tasks
        per_row = gl.where(is_text, text_tasks, per_row)
        number -= gl.where(is_text, 0, sizes.rows * text_tasks)
    if blocks.LOWS:
        low_tasks = gl.cdiv(sizes.low, BLOCK_Q)
        is_low = (number < sizes.rows * low_tasks) & (not is_text)
        per_row = gl.where(is_low, low_tasks, per_row)
        number -= gl.where(is_low | is_text, 0, sizes.rows * low_tasks)
    row = gl.load(given.rows.order + number // per_row)
    block = number % per_row
    band = gl.load(given.rows.allocation + row)
    key_at = row * given.key_rows

    listed = given.lists.every
    steps = sizes.tiles
    video_at = key_at
    part = 0
    text_count = sizes.text
    first_at = places.text
    first_count = 0
    first_bias = biases.low
    first_shift = 0.0
    mid_count = 0
    mid_shift = 0.0
    high_count = 0
    high_shift = 0.0
    common = 0.0
    seen_as = band
    if is_text:
        part = block % given.text_parts
        start = sizes.video + block // given.text_parts * BLOCK_Q
        queries = first_low - start
        begin = sizes.tiles * part // given.text_parts
        listed = given.lists.every + begin
        steps = sizes.tiles * (part + 1) // given.text_parts - begin
        if (band == MID) | (band == HIGH):
            video_at = key_at + places.exact
        if part > 0:
            text_count = 0
        seen_as = 3
    elif is_low:
        start = first_low + block * BLOCK_Q
        queries = first_low + sizes.low - start
        if not blocks.BRANCH:
            queries = gl.where(band == LOW, queries, 0)
        seen_as = 0
        steps = 0
        first_at = places.low
        first_count = sizes.low
        if TILE_TOKENS == BLOCK_Q:
            # Every tile is full, so all low tokens have one bias: whole blocks of them go as tiles
            # do, without it.
            common = gl.load(biases.low) * LOG2_E
            video_at = key_at + places.low
            steps = sizes.low // BLOCK_Q
            first_at += steps * BLOCK_Q
            first_count -= steps * BLOCK_Q
            first_bias += steps * BLOCK_Q
    else:
        extent = tile_extent(given.tiles, block, TILE_TOKENS)
        start = extent.start
        queries = extent.count
        if blocks.LOWS and not blocks.BRANCH:
            queries = gl.where(band == LOW, 0, queries)
        if band == HIGH:
            listed = given.lists.high + block * given.high_length
            steps = given.high_length
        if given.lists.mid is not None:
            if band == MID:
                entry = row.to(gl.int64) * given.lists.mid_step * sizes.tiles + block
                listed = given.lists.mid + entry * given.mid_length
                steps = given.mid_length
                if given.lists.mid_lengths is not None:
                    steps = gl.load(given.lists.mid_lengths + entry)
        if biases.high is not None:
            if band == HIGH:
                first_at = places.low_summaries
                first_count = biases.cells
                first_bias = biases.high + block * biases.cells
            if biases.mid is not None:
                if band == MID:
                    first_at = places.low_summaries
                    first_count = biases.cells
                    entry = row.to(gl.int64) * biases.mid_step * sizes.tiles + block
                    first_bias = biases.mid + entry * biases.cells
    if biases.high is not None:
        if (places.mid_summaries >= 0) & (seen_as <= HIGH):
            mid_count = gl.where(seen_as == MID, 0, biases.cells)
            high_count = gl.where(seen_as == HIGH, 0, biases.cells)
        if biases.summary_offsets is not None:
            if seen_as <= HIGH:
                offsets = biases.summary_offsets + row * 3
                if seen_as != LOW:
                    first_shift = gl.load(offsets).to(gl.float32) * LOG2_E
                mid_shift = gl.load(offsets + 1).to(gl.float32) * LOG2_E
                high_shift = gl.load(offsets + 2).to(gl.float32) * LOG2_E
    return Task(
        row=row,
        is_text=is_text,
        is_low=is_low,
        part=part,
        start=start,
        queries=queries,
        listed=listed,
        steps=steps,
        video_at=video_at,
        key_at=key_at,
        first_at=first_at,
        first_count=first_count,
        first_bias=first_bias,
        first_shift=first_shift,
        mid_count=mid_count,
        mid_shift=mid_shift,
        high_count=high_count,
        high_shift=high_shift,
        text_count=text_count,
        common=common,
    )


@gluon.jit
def next_task(number, total, given, blocks):
    """The first task with queries, from this one on in the steps of a program, and its number."""
    task = task_at(gl.minimum(number, total - 1), given, blocks)
    if blocks.LOWS and not blocks.BRANCH:
        # LOW rows have no video queries, and the others no low ones.
        while (number < total) & (task.queries <= 0):
            number += gl.num_programs(0)
            task = task_at(gl.minimum(number, total - 1), given, blocks)
    return number, task


class Extra(NamedTuple):
    """One block of keys that are not tiles."""

    at: Any
    """First row in the key buffer."""
    left: Any
    """Keys of the segment from there on."""
    skip: Any
    """Keys of the segment before."""
    shift: Any
    """Bias of all of them."""
    is_first: Any
    """Whether they have a bias each."""
    is_text: Any


@gluon.jit
def num_extras(task, BLOCK_K: gl.constexpr):
    """Blocks of keys that are not tiles. Every segment begins a block."""
    return (
        gl.cdiv(task.first_count, BLOCK_K)
        + gl.cdiv(task.mid_count, BLOCK_K)
        + gl.cdiv(task.high_count, BLOCK_K)
        + gl.cdiv(task.text_count, BLOCK_K)
    )


@gluon.jit
def extra_at(step, task, segments, BLOCK_K: gl.constexpr):
    """The block of a number below `num_extras`; behind it one that holds no key."""
    first_end = gl.cdiv(task.first_count, BLOCK_K)
    mid_end = first_end + gl.cdiv(task.mid_count, BLOCK_K)
    high_end = mid_end + gl.cdiv(task.high_count, BLOCK_K)
    at = task.first_at
    left = task.first_count
    begin = 0
    shift = task.first_shift
    if step >= first_end:
        at = segments.mid_summaries
        left = task.mid_count
        begin = first_end
        shift = task.mid_shift
    if step >= mid_end:
        at = segments.high_summaries
        left = task.high_count
        begin = mid_end
        shift = task.high_shift
    if step >= high_end:
        at = segments.text
        left = task.text_count
        begin = high_end
        shift = 0.0
    skip = (step - begin) * BLOCK_K
    # A segment that doesn't exist lies at -1.
    return Extra(
        at=task.key_at + gl.maximum(at, 0) + skip,
        left=left - skip,
        skip=skip,
        shift=shift - task.common,
        is_first=step < first_end,
        is_text=step >= high_end,
    )
