"""What a program that owns a block of queries has to do: the forward kernel and the one of their
gradients read it from the same number in the same way.

Shape legend: R rows, N video tokens, X text tokens, M low tokens, T tiles.
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
    Listed,
    Segment,
    listed_tiles,
    seen_summaries,
    tile_extent,
)
from freqformer.ops.block_sparse.triton.softmax import MASKED


class Task(NamedTuple):
    """A block of text, low or video queries of one row."""

    row: Any
    band: Any
    """The row's."""
    is_text: Any
    is_low: Any
    tile: Any
    """Of video queries; of others it means nothing."""
    part: Any
    """Of the list of a text query."""
    start: Any
    """Place of the first query in the row, which holds video, text and low queries in this
    order."""
    count: Any
    """Queries from there on to the end of the tile or of the text or low ones; below 1 where there
    is nothing to do."""


class Extras(NamedTuple):
    """Keys that come after the exact ones, four segments in the order in which they are met."""

    first: Segment
    """Low tokens or low summaries."""
    first_bias: Any
    """Pointer to one more bias for each of them, to base e."""
    mid: Segment
    high: Segment
    text: Segment


class Seen(NamedTuple):
    """The keys that a block of queries sees."""

    exact: Listed
    exact_at: Any
    """What is counted as the first video token, in the key buffer."""
    extras: Extras
    common: Any
    """Bias of all exact keys, in base 2, which they are spared."""


class Ends(NamedTuple):
    """Steps over `Extras` at which each segment ends."""

    first: Any
    mid: Any
    high: Any
    text: Any


class ExtraBlock(NamedTuple):
    """A block of keys of one `Segment`."""

    at: Any
    """Row of the first in the key buffer."""
    skip: Any
    """Keys of the segment that come before it."""
    left: Any
    """Keys of the segment from the first on."""
    shift: Any
    """Bias of them all, in base 2."""


@triton.jit
def task_of(
    program,
    rows,
    tiles,
    sizes,
    text_parts,
    blocks,
):
    """The `Task` of a program: text queries first, then low ones, then rows over their tiles."""
    is_text = False
    is_low = False
    # One grid for all kinds of queries: a launch for each would wait for the last program of the
    # one before.
    per_row = sizes.tiles * blocks.QUERY_BLOCKS
    if blocks.TEXT:
        # Text queries see everything: the longest lists, so they start first.
        text_tasks = tl.cdiv(sizes.text, blocks.BLOCK_Q) * text_parts
        is_text = program < sizes.rows * text_tasks
        per_row = tl.where(is_text, text_tasks, per_row)
        program -= tl.where(is_text, 0, sizes.rows * text_tasks)
    if blocks.LOWS:
        # Low queries see all low tokens, mostly more keys than a window or a choice of tiles holds.
        low_tasks = tl.cdiv(sizes.low, blocks.BLOCK_Q)
        is_low = (program < sizes.rows * low_tasks) & (not is_text)
        per_row = tl.where(is_low, low_tasks, per_row)
        # Numbers of the next kind begin at 0. Text programs have left their own count alone above.
        if not is_text:
            program -= tl.where(is_low, 0, sizes.rows * low_tasks)
    # Programs start about in the order of their numbers. Rows with long lists go first, so that
    # short ones fill the gaps at the end; blocks of one row are neighbours and share its keys in
    # the L2 cache.
    row = tl.load(rows.order + program // per_row)
    block = program % per_row
    # Read here and never on the host: a router's choice costs no wait.
    band = tl.load(rows.allocation + row)
    first_low = sizes.video + sizes.text
    part = 0
    if is_text:
        # Parts of one block of queries run side by side: X queries over all tiles are few programs,
        # and each would run long after the others.
        part = block % text_parts
        start = sizes.video + block // text_parts * blocks.BLOCK_Q
        count = first_low - start
    elif is_low:
        start = first_low + block * blocks.BLOCK_Q
        count = first_low + sizes.low - start
        if not blocks.BRANCH:
            # Which rows are LOW is known on the device only: programs of the others end at once.
            count = tl.where(band == LOW, count, 0)
    else:
        # A short tile has fewer blocks than a full one: those behind its end count 0 or less.
        skip = block % blocks.QUERY_BLOCKS * blocks.BLOCK_Q
        block = block // blocks.QUERY_BLOCKS
        extent = tile_extent(tiles, block, blocks.TILE_TOKENS)
        start = extent.start + skip
        count = extent.count - skip
        # LOW rows ask with low tokens in place of these.
        if blocks.LOWS:
            count = tl.where(band == LOW, 0, count)
    return Task(
        row=row,
        band=band,
        is_text=is_text,
        is_low=is_low,
        tile=block,
        part=part,
        start=start,
        count=count,
    )


@triton.jit
def keys_seen(
    task,
    lists,
    biases,
    sizes,
    segments,
    high_length,
    mid_length,
    text_parts,
    blocks,
    LOW_AS_TILES: tl.constexpr,
):
    """What the queries of a task see: `Seen`.

    LOW_AS_TILES: whether low queries take whole blocks of low tokens as if those were exact tiles.
    Where every tile is full all low tokens have one bias, so that these need neither bias nor mask.
    """
    # Every name that a branch sets exists before it, with its type: segments of no keys, somewhere.
    listed = lists.every
    length = 0
    exact_at = 0
    first = Segment(at=segments.text, count=0, shift=0.0)
    first_bias = biases.low
    mid = Segment(at=segments.text, count=0, shift=0.0)
    high = Segment(at=segments.text, count=0, shift=0.0)
    text_count = sizes.text
    common = 0.0
    if task.is_text:
        # All tiles, shared out evenly among the parts.
        # Both ends are rounded down alike: no tile is left out and none is taken twice.
        begin = sizes.tiles * task.part // text_parts
        listed = lists.every + begin
        length = sizes.tiles * (task.part + 1) // text_parts - begin
        if (task.band == MID) | (task.band == HIGH):
            # Band features may have filtered the keys that these rows hold as video tokens.
            exact_at = segments.exact
        # One part alone takes the text keys, or the join would count them once for each.
        if task.part > 0:
            text_count = 0
    elif task.is_low:
        # In every row low queries see what those of a LOW row do: no band's list, and no low
        # summaries in addition to all low tokens.
        summaries = seen_summaries(LOW, task.row, task.tile, sizes, segments, biases)
        mid = summaries.mid
        high = summaries.high
        passed = 0
        # softmax(s + c) = softmax(s): whole blocks are spared the bias c, the rest of the keys get
        # theirs less c, and c returns in the log-sum-exp alone.
        if LOW_AS_TILES:
            common = tl.load(biases.low) * LOG2_E
            exact_at = segments.low
            # With `exact_at` here the list 0, 1, ... of every tile names blocks of low tokens.
            length = sizes.low // blocks.TILE_TOKENS
            passed = length * blocks.TILE_TOKENS
        # What fills no whole block comes with the extras, where keys are masked.
        first = Segment(at=segments.low + passed, count=sizes.low - passed, shift=0.0)
        first_bias = biases.low + passed
    else:
        exact = listed_tiles(
            task.band, task.row, task.tile, sizes.tiles, lists, high_length, mid_length
        )
        listed = exact.tiles
        length = exact.length
        summaries = seen_summaries(task.band, task.row, task.tile, sizes, segments, biases)
        first = summaries.low
        first_bias = summaries.low_bias
        mid = summaries.mid
        high = summaries.high
    return Seen(
        exact=Listed(tiles=listed, length=length),
        exact_at=exact_at,
        extras=Extras(
            first=first,
            first_bias=first_bias,
            mid=mid,
            high=high,
            text=Segment(at=segments.text, count=text_count, shift=0.0),
        ),
        common=common,
    )


@triton.jit
def extra_ends(extras, blocks):
    """`Ends` of steps of BLOCK_K keys. A step never holds keys of two segments."""
    # Cumulative, so that a step finds its segment by three comparisons. Zero rows lie between
    # segments, so a block of two would hold keys that don't exist.
    first = tl.cdiv(extras.first.count, blocks.BLOCK_K)
    mid = first + tl.cdiv(extras.mid.count, blocks.BLOCK_K)
    high = mid + tl.cdiv(extras.high.count, blocks.BLOCK_K)
    return Ends(
        first=first, mid=mid, high=high, text=high + tl.cdiv(extras.text.count, blocks.BLOCK_K)
    )


@triton.jit
def extra_block(step, extras, ends, common, blocks):
    """The `ExtraBlock` of a step, its shift less the `common` bias that other keys were spared.

    One loop over all segments: four loops would be four times the code, each with a pipeline of its
    own to fill.
    """
    # Only a handful of scalars is chosen here; the loads and products after it are one piece of
    # code.
    segment = extras.first
    begin = 0
    if step >= ends.first:
        segment = extras.mid
        begin = ends.first
    if step >= ends.mid:
        segment = extras.high
        begin = ends.mid
    if step >= ends.high:
        segment = extras.text
        begin = ends.high
    skip = (step - begin) * blocks.BLOCK_K
    return ExtraBlock(
        at=segment.at + skip,
        skip=skip,
        left=segment.count - skip,
        shift=segment.shift - common,
    )


@triton.jit
def key_bias(block, column, more, text_mask, in_first, in_text):
    """Bias in base 2 of the keys of an `ExtraBlock`; -inf for those behind its segment's end, and
    for masked text.

    Args:
        more: one more bias for each key, to base e, read `in_first` only.
        text_mask: of the row's sample, read `in_text` only; None sees all.
    """
    place = block.skip + column
    # Not `place < count`, which the compiler would carry through its pipeline in registers.
    seen = column < block.left
    # Masked even for its address: the table ends with the segment, and other segments have none.
    bias = tl.load(more + place, mask=seen & in_first, other=0.0)
    if text_mask is not None:
        # Only text has a mask: keys of other segments read a 1.
        visible = tl.load(text_mask + place, mask=seen & in_text, other=1)
        seen &= visible != 0
    # -inf, not a large negative number: 2^-inf is exactly 0, so that a row of masked keys alone has
    # a sum of exactly 0, by which it is known.
    return tl.where(seen, bias * LOG2_E + block.shift, MASKED)


@triton.jit
def mask_tile_end(logits, left, blocks):
    """Logits (Q, K) of a block of keys of a tile, -inf from column `left` on, where the tile ends.

    In two steps: the first SAFE columns can be masked in short tiles only.
    """
    column = tl.arange(0, blocks.BLOCK_K)
    # The compiler drops this mask for columns below SAFE, known when it compiles. SAFE is a
    # multiple of 8: which group of 8 columns a register belongs to is fixed in a product's layout.
    logits = tl.where((column < blocks.SAFE)[None, :] | (column < left)[None, :], logits, MASKED)
    # The others are masked in a branch that only programs at short tiles take. One `where` over all
    # columns would cost every tile a comparison and a select for each logit.
    if left < blocks.SAFE:
        logits = tl.where(column[None, :] < left, logits, MASKED)
    return logits
