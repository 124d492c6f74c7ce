"""The second Triton kernel of the prologue: summaries, and all else that no single tile can do.

`launch.py` holds the host side, `arguments.py` the shape legend. An argument that is None is absent
from the compiled kernel.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from freqformer.ops.jit import cast
from freqformer.ops.prologue.triton.tokens import (
    HIGH,
    LOW,
    MID,
    finite_where_masked,
    load_tokens,
    normed,
    rotary_tables,
    rotate_tokens,
    row_band,
    seen_text,
    sees_summaries,
    summaries_of,
    this_program,
    write_tokens,
)


class Jobs(NamedTuple):
    """What a row has to do: its cells first, then its text, its zero rows, and its place among all
    rows."""

    cell_tiles: Tensor
    """int32 (C, longest), tiles of every cell, -1 after the last."""
    cell_counts: Tensor
    """int32 (C,), tokens of every cell."""
    longest: int
    """Most tiles of a cell."""
    text_mask: Tensor | None
    """(B, X), 0 where a text token may not be seen; None where all may."""
    text: int
    """Programs for text tokens."""
    zero_rows: Tensor
    """int32 (zeros,), first rows of runs of PAD zero rows."""
    zeros: int
    band_blocks: Tensor
    """int32 (4,), key blocks of a row by its band."""


class RowBlocks(NamedTuple):
    """What the kernel over rows knows at compile time, each a `tl.constexpr`."""

    D: tl.constexpr
    W: tl.constexpr
    """D, rounded up: channels of a row of the buffers."""
    STEP: tl.constexpr
    """Tiles of a cell that are added at once."""
    TEXT_SLOTS: tl.constexpr
    """Text tokens of one program."""
    PAD: tl.constexpr
    ROWS: tl.constexpr
    """R, rounded up."""
    BRANCH: tl.constexpr
    """Whether every row has low tokens, for the LOW branch of its head."""
    SUMS: tl.constexpr
    """Whether tiles have sums."""
    POOLS: tl.constexpr
    """Whether summaries are learned."""


class Row(NamedTuple):
    """One row's part of the buffers, rows of W numbers each."""

    query: tl.tensor
    key: tl.tensor
    value: tl.tensor


class Pooled(NamedTuple):
    """Where a learned summary goes: key and value (W,), and log-sum-exp of its scores."""

    key: tl.tensor
    value: tl.tensor
    lse: tl.tensor


@triton.jit
def _average(rows, row, program, sizes, jobs, blocks):
    """The mean key and value of a cell's tokens, from sums over its tiles, to a `Row`."""
    W: tl.constexpr = blocks.W
    cell = program.part
    channel = tl.arange(0, W)
    key = tl.zeros((W,), tl.float32)
    value = tl.zeros((W,), tl.float32)
    # Sums of queries come first, (3, R, T, W): keys begin R rows on, and values R rows after them.
    first_tile = (sizes.rows + program.wide_row) * sizes.tiles
    value_sums = rows.sums + tl.cast(sizes.rows, tl.int64) * sizes.tiles * W
    for first in range(0, jobs.longest, blocks.STEP):
        step = first + tl.arange(0, blocks.STEP)
        tile = tl.load(
            jobs.cell_tiles + cell * jobs.longest + step, mask=step < jobs.longest, other=-1
        )
        entry = (first_tile + tile.to(tl.int64))[:, None] * W + channel[None, :]
        # Cells at the grid's border have fewer tiles, and -1 stands for those that they lack.
        real = (tile >= 0)[:, None]
        key += tl.sum(tl.load(rows.sums + entry, mask=real, other=0.0), 0)
        value += tl.sum(tl.load(value_sums + entry, mask=real, other=0.0), 0)
    # By tokens and not by tiles: tiles at the border hold fewer.
    count = tl.load(jobs.cell_counts + cell).to(tl.float32)
    place = (sizes.segments.low_summaries + cell) * W
    tl.store(row.key + place + channel, cast(key / count, row.key.dtype.element_ty))
    tl.store(row.value + place + channel, cast(value / count, row.value.dtype.element_ty))


@triton.jit
def _join(pools, target, program, sizes, jobs, blocks, OTHER: tl.constexpr):
    """The softmax pooling of the mid or high band of a cell, from those of its tiles.

    Args:
        pools: `Pools`.
        target: `Pooled`.
        OTHER: the band.
    """
    W: tl.constexpr = blocks.W
    channel = tl.arange(0, W)
    first_tile = program.wide_row * sizes.tiles
    # A running softmax over tiles: the largest score so far, and sums relative to it.
    m_i = float("-inf")
    l_i = 0.0
    key = tl.zeros((W,), tl.float32)
    value = tl.zeros((W,), tl.float32)
    for first in range(0, jobs.longest, blocks.STEP):
        step = first + tl.arange(0, blocks.STEP)
        tile = tl.load(
            jobs.cell_tiles + program.part * jobs.longest + step,
            mask=step < jobs.longest,
            other=-1,
        )
        # Cells at the grid's border have fewer tiles, and -1 stands for those that they lack.
        real = tile >= 0
        entry = (first_tile + tile.to(tl.int64)) * 2 + OTHER - 1
        top = tl.load(pools.softmax + entry * 2, mask=real, other=float("-inf"))
        # The first tile of a cell exists, so m_i is finite from the first step on.
        new_m_i = tl.maximum(m_i, tl.max(top, 0))
        decay = tl.exp(m_i - new_m_i)
        weight = tl.exp(top - new_m_i)
        weights = tl.load(pools.softmax + entry * 2 + 1, mask=real, other=0.0)
        sums = pools.sums + entry[:, None] * 2 * W + channel[None, :]
        keys = tl.load(sums, mask=real[:, None], other=0.0)
        values = tl.load(sums + W, mask=real[:, None], other=0.0)
        key = key * decay + tl.sum(keys * weight[:, None], 0)
        value = value * decay + tl.sum(values * weight[:, None], 0)
        l_i = l_i * decay + tl.sum(weights * weight, 0)
        m_i = new_m_i
    tl.store(target.key + channel, cast(key / l_i, target.key.dtype.element_ty))
    tl.store(target.value + channel, cast(value / l_i, target.value.dtype.element_ty))
    # From this the backward has every weight again without a pass over the cell.
    tl.store(target.lse, m_i + tl.log(l_i))


@triton.jit
def _write_text(qkv, row, program, learned, sizes, jobs, blocks):
    """Text tokens to a `Row`, normalised and turned where the call asks for it; text has no
    bands."""
    D: tl.constexpr = blocks.D
    W: tl.constexpr = blocks.W
    sample = program.sample
    head = program.head
    num_text = sizes.tokens - sizes.video
    # Text comes after the cells among a row's jobs.
    block = program.part - sizes.cells
    slot = block * blocks.TEXT_SLOTS + tl.arange(0, blocks.TEXT_SLOTS)
    # Text follows the video's tokens, in the call and in the query buffer.
    place = sizes.video + slot
    live = slot < num_text
    seen = seen_text(jobs.text_mask, sample, num_text, slot, live)
    query = load_tokens(qkv.query, sample, head, place, live, D, W)
    if jobs.text_mask is not None:
        query = finite_where_masked(query, seen)
    # Masked keys and values weigh nothing, but 0 times NaN is NaN.
    key = load_tokens(qkv.key, sample, head, place, seen, D, W)
    value = load_tokens(qkv.value, sample, head, place, seen, D, W)
    if qkv.query.NORMS_TEXT:
        query = normed(query, qkv.query, sample, head, place, live, sizes.tokens, learned.eps, D)
    if qkv.key.NORMS_TEXT:
        key = normed(key, qkv.key, sample, head, place, live, sizes.tokens, learned.eps, D)
    if learned.TURNS:
        if learned.rotary.TURNS_TEXT:
            turn = rotary_tables(learned.rotary, sample, head, place, live, W)
            query = cast(rotate_tokens(query, turn), query.dtype)
            key = cast(rotate_tokens(key, turn), key.dtype)
    target = sizes.segments.text + slot
    write_tokens(row.query, place, live, query)
    write_tokens(row.key, target, live, key)
    write_tokens(row.value, target, live, value)


@triton.jit
def _write_zeros(row, run, band, sizes, jobs, blocks):
    """One run of zeros among the keys and values of a `Row`, where a block that begins in the
    segment before may end; and with the first run those of its queries."""
    W: tl.constexpr = blocks.W
    channel = tl.arange(0, W)
    place = tl.load(jobs.zero_rows + run) + tl.arange(0, blocks.PAD)
    # Within one row numbers fit into an int32: only the row's own offset is wide.
    entry = place[:, None] * W + channel[None, :]
    nothing = tl.zeros((blocks.PAD, W), row.key.dtype.element_ty)
    tl.store(row.key + entry, nothing)
    tl.store(row.value + entry, nothing)
    if run == 0:
        # Backward, blocks of the queries before read so far behind their end; what they read counts
        # for nothing, if finite. A row without low queries is empty after its text.
        start = sizes.tokens
        count = sizes.low
        if (band == LOW) | blocks.BRANCH:
            count = 0
        # A LOW row asks with no video token, and blocks of them may begin all the same.
        if band == LOW:
            start = 0
            count = sizes.video
        slot = tl.arange(0, blocks.PAD)
        write_tokens(row.query, start + slot, slot < count, nothing)


@triton.jit
def _rank(allocation, rows, program, sizes, jobs, blocks):
    """The place of a row when rows run by descending length of their key lists, ties by number."""
    # Every row counts those before it: rows are few, and a sort would need a launch of its own.
    other = tl.arange(0, blocks.ROWS)
    known = other < sizes.rows
    band = row_band(allocation, program.sample, program.head)
    others = row_band(
        allocation,
        tl.where(known, other // sizes.heads, 0),
        tl.where(known, other % sizes.heads, 0),
    )
    mine = tl.load(jobs.band_blocks + band)
    theirs = tl.load(jobs.band_blocks + others)
    # The longest rows go first, so that the attention launch doesn't end with one of them alone.
    earlier = known & ((theirs > mine) | ((theirs == mine) & (other < program.row)))
    tl.store(rows.order + tl.sum(earlier.to(tl.int32), 0), program.row)
    tl.store(rows.bands + program.row, band)


@triton.jit
def finish_rows(qkv, allocation, rows, pools, learned, sizes, jobs, blocks):
    """One job of one row: a cell's summaries, some text tokens, a run of zero rows, or the row's
    place in the order.

    Launched over jobs and rows, rows fastest. They are one launch since each is too short for its
    own: what a launch costs would be most of their time.

    Args:
        qkv, allocation, learned, sizes: see `arguments.py`.
        rows: `PreparedRows`; tile sums are read, all but those and video tokens are written.
        pools: `Pools`, None without learned summaries.
        jobs, blocks: `Jobs`, `RowBlocks`.
    """
    W: tl.constexpr = blocks.W
    program = this_program(sizes)
    job = program.part
    band = row_band(allocation, program.sample, program.head)
    row = Row(
        query=rows.query + program.wide_row * sizes.query_rows * W,
        key=rows.key + program.wide_row * sizes.key_rows * W,
        value=rows.value + program.wide_row * sizes.key_rows * W,
    )
    if job < sizes.cells:
        if blocks.SUMS:
            # LOW rows have every low token instead of low summaries, and DENSE rows see all.
            if (band == MID) | (band == HIGH):
                _average(rows, row, program, sizes, jobs, blocks)
        if blocks.POOLS:
            # Unrolled over MID and HIGH, since each has a segment of its own.
            for other in tl.static_range(1, 3):  # pyright: ignore[reportGeneralTypeIssues]
                if sees_summaries(band, other, blocks.BRANCH):
                    place = summaries_of(sizes.segments, other) + job
                    cell = program.wide_row * sizes.cells + job
                    target = Pooled(
                        key=row.key + place * W,
                        value=row.value + place * W,
                        lse=rows.pool_lse + cell * 2 + other - 1,
                    )
                    _join(pools, target, program, sizes, jobs, blocks, other)
    elif job < sizes.cells + jobs.text:
        _write_text(qkv, row, program, learned, sizes, jobs, blocks)
    elif job < sizes.cells + jobs.text + jobs.zeros:
        _write_zeros(row, job - sizes.cells - jobs.text, band, sizes, jobs, blocks)
    else:
        _rank(allocation, rows, program, sizes, jobs, blocks)
