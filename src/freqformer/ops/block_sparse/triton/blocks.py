"""What the Triton kernels of block-sparse attention share: their arguments, where blocks lie, which
keys a query sees, and how blocks are read and written.

Shape legend: R rows (one head of one sample each), N video tokens, X text tokens, M low tokens, T
tiles, C cells, D head_dim, W channels of a row of the buffers, D rounded up. An argument that is
None is absent from the compiled kernel.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from freqformer.ops.jit import cast, real_channels

# A kernel may read no other globals than `tl.constexpr`: a plain one could change after it was
# compiled.
LOW, MID, HIGH = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)
# A GPU's exponential has base 2, so logits are kept in it: natural ones would cost a multiplication
# for every weight.
LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)

NOT_READ = tl.constexpr(0)

# Triton compiles a kernel once more for an integer that 16 divides, and again for a 1, unless told
# not to.
UNSPECIALIZED = [
    "num_rows",
    "num_heads",
    "num_tiles",
    "num_tokens",
    "num_text",
    "num_low",
    "cells",
    "high_length",
    "mid_length",
    "low_at",
    "low_sums_at",
    "mid_sums_at",
    "high_sums_at",
    "text_at",
    "exact_at",
    "key_rows",
    "text_parts",
    "region_at",
    "region_rows",
    "num_parts",
]
"""Integers by which nothing is compiled anew: for what divides them, nearly every grid would.
`do_not_specialize` holds for whole parameters and not for fields of a NamedTuple, so that kernels
take these one by one, and put them into `Sizes` and `Segments` themselves."""


class Blocks(NamedTuple):
    """What a kernel is compiled for, each a `tl.constexpr`; a kernel that doesn't read a field gets
    its default, so that it isn't compiled once more for another value."""

    HEAD_DIM: Any
    """Channels of a row of the buffers, W: all that products run over. Zeros follow the real
    ones."""
    BLOCK_Q: Any
    """Queries of one block, and"""
    BLOCK_K: Any
    """keys."""
    DESCRIPTORS: Any
    """Whether blocks are read by tensor descriptors or by pointers."""
    STAGES: Any
    """Of the pipelines over blocks."""
    TILE_TOKENS: Any
    """Tokens of every tile, 0 where tiles differ."""
    QUERY_BLOCKS: Any
    """Blocks of queries of the largest tile, and"""
    KEY_BLOCKS: Any = NOT_READ
    """blocks of keys."""
    SAFE: Any = NOT_READ
    """Columns of a tile's last block of keys that only short tiles leave empty."""
    TEXT: Any = NOT_READ
    """Whether there are text tokens."""
    LOWS: Any = NOT_READ
    """Whether any row may have low queries: LOW rows do in place of video queries."""
    BRANCH: Any = NOT_READ
    """Whether every row does, for the LOW branch of its head."""
    CHANNELS: Any = NOT_READ
    """Channels of an output, D."""


class Rows(NamedTuple):
    """The rows of a call, each a head of a sample."""

    order: Tensor
    """int32 (R,), those with the longest lists first."""
    allocation: Tensor
    """`Band` of every row, int32 (R,)."""


class Tiles(NamedTuple):
    """Where tiles lie among the video tokens."""

    offsets: Tensor
    """First token of every tile, and N: int32 (T + 1,)."""
    counts: Tensor
    """Tokens of every tile, uint8 (T,)."""


class Lists(NamedTuple):
    """Key tiles that each query tile sees exactly, int32."""

    every: Tensor
    """0 to T - 1: the list of DENSE rows and text queries, (T,)."""
    high: Tensor
    """(T, high_length)."""
    mid: Tensor | None
    """(R or 1, T, mid_length); None where MID rows see every tile."""
    mid_lengths: Tensor | None
    """(R or 1, T); None where every list has mid_length tiles."""
    mid_step: int
    """1 where every row has lists of its own, 0 where all share."""


class Biases(NamedTuple):
    """What is added to the logits of keys that stand for other tokens, and which text is seen."""

    low: Tensor
    """log(tokens that a low token stands for), float32 (M,)."""
    high: Tensor | None
    """log(tokens of a cell that the query tile doesn't see exactly), float32 (T, C), for HIGH rows;
    None without cells."""
    mid: Tensor | None
    """The same for MID rows, (R or 1, T, C); None where they see every tile."""
    mid_step: int
    """As in `Lists`."""
    summary_offsets: Tensor | None
    """Learned, of the low, mid and high summaries, float (R, 3)."""
    text_mask: Tensor | None
    """(B, X), nonzero where a text token may be seen."""


class Sizes(NamedTuple):
    """How much of everything a call has, put together in a kernel."""

    rows: Any
    tiles: Any
    video: Any
    text: Any
    low: Any
    cells: Any


class Segments(NamedTuple):
    """First row of segments of the key buffer, see `KeyLayout`, put together in a kernel."""

    low: Any
    low_summaries: Any
    mid_summaries: Any
    high_summaries: Any
    text: Any
    exact: Any


class Matrix(NamedTuple):
    """Vectors of one row of a buffer: number i lies at `at + i`."""

    source: Any
    """A descriptor of the whole buffer; or a pointer to the row's first vector, and `at` is 0."""
    at: Any


class Extent(NamedTuple):
    """Neighbours in a sequence."""

    start: Any
    count: Any


class Listed(NamedTuple):
    """A list of tiles."""

    tiles: Any
    """Pointer to the first."""
    length: Any


class Segment(NamedTuple):
    """Keys that a block of queries sees, one after another in the key buffer."""

    at: Any
    count: Any
    shift: Any
    """Bias of them all, in base 2."""


class Summaries(NamedTuple):
    """The summaries that a block of queries sees."""

    low: Segment
    low_bias: Any
    """Pointer to one more bias for each of the low ones, to base e."""
    mid: Segment
    high: Segment


@triton.jit
def row_of(source, row, rows, blocks):
    """The vectors of one row of a buffer (R, rows, D): `Matrix`."""
    # A constant decides: the other branch isn't compiled, so that `source` may be a descriptor here
    # and a pointer there. The tuple is gone after compilation: only fields that are read cost a
    # register.
    if blocks.DESCRIPTORS:
        # A descriptor can't be moved; its coordinates are int32, which the host has checked.
        matrix = Matrix(source=source, at=row * rows)
    else:
        # A pointer is moved once, in 64 bits, so that offsets within the row may be 32.
        matrix = Matrix(source=source + row.to(tl.int64) * rows * blocks.HEAD_DIM, at=0)
    return matrix


@triton.jit
def load_block(source, start, limit, ROWS: tl.constexpr, blocks):
    """ROWS vectors of a `Matrix.source` from `start`.

    A block may read past its tile or segment, into neighbours or the zeros after them. A pointer
    gives zeros from `limit` on, None for no limit; a descriptor gives what lies there. Both are
    finite, and the caller masks them or gives them weight 0.
    """
    if blocks.DESCRIPTORS:
        # The copy engine fetches the block for one thread that asks: no pointer for each number.
        # After the end of the buffer it gives zeros.
        block = source.load([start, 0])
    else:
        place = start + tl.arange(0, ROWS)
        channel = tl.arange(0, blocks.HEAD_DIM)[None, :]
        # Vectors are contiguous: neighbouring threads take neighbouring channels, and a warp reads
        # whole cache lines.
        pointer = source + place[:, None] * blocks.HEAD_DIM + channel
        # None is known when the kernel is compiled, so that a load without a mask costs no test.
        if limit is None:
            block = tl.load(pointer)
        else:
            block = tl.load(pointer, mask=place[:, None] < limit, other=0.0)
    return block


@triton.jit
def listed_tiles(band, row, tile, num_tiles, lists, high_length, mid_length):
    """The key tiles that a query tile of a row of `band` sees exactly: `Listed`."""
    listed = lists.every
    length = num_tiles
    # Bands lie on the device, so this is a branch of the whole program. What it sets must have a
    # value of the same type before: DENSE rows keep this one.
    if band == HIGH:
        listed = lists.high + tile * high_length
        length = high_length
    # Settled when the kernel is compiled: without lists the code below doesn't exist, and MID rows
    # see every tile.
    if lists.mid is not None:
        if band == MID:
            # Entries of all rows together may be beyond 32 bits.
            entry = row.to(tl.int64) * lists.mid_step * num_tiles + tile
            listed = lists.mid + entry * mid_length
            length = mid_length
            if lists.mid_lengths is not None:
                length = tl.load(lists.mid_lengths + entry)
    return Listed(tiles=listed, length=length)


@triton.jit
def tile_extent(tiles, tile, TILE_TOKENS: tl.constexpr):
    """First token of a tile and how many it holds: `Extent`; TILE_TOKENS is 0 where tiles
    differ."""
    if TILE_TOKENS > 0:
        # Reckoned, not loaded: one load fewer in the chain from the list to the tile to its keys.
        extent = Extent(start=tile * TILE_TOKENS, count=TILE_TOKENS)
    else:
        # Counts are 8 bits, since the compiler would bring 32 through shared memory, with a barrier
        # in every step.
        extent = Extent(
            start=tl.load(tiles.offsets + tile),
            count=tl.load(tiles.counts + tile).to(tl.int32),
        )
    return extent


@triton.jit
def tile_skip(step, PER_TILE: tl.constexpr, SIDE: tl.constexpr):
    """Tokens of a tile before the block that a step takes, where every tile has PER_TILE blocks of
    SIDE tokens."""
    # The interpreter counts steps in Python's integers, which know no % of a constexpr.
    # PER_TILE is a constant: no division is left in the loop.
    return tl.cast(step, tl.int32) % PER_TILE * SIDE


@triton.jit
def seen_summaries(band, row, tile, sizes, segments, biases):
    """The summaries that the queries of a tile see in a row of `band`: `Summaries`."""
    cells = sizes.cells
    # A segment of 0 keys takes no step of the loop over extras, so that nothing else needs to know
    # what a band doesn't see.
    low_count = 0
    low_bias = biases.low
    mid_count = 0
    high_count = 0
    low_shift = 0.0
    mid_shift = 0.0
    high_shift = 0.0
    if biases.high is not None:
        # Low summaries stand for what the lists of HIGH and MID rows leave out. DENSE rows leave
        # nothing out, and LOW rows see all low tokens.
        if band == HIGH:
            low_count = cells
            # One number for each cell: -inf where the list holds all of it, and its summary gets
            # weight 0.
            low_bias = biases.high + tile * cells
        if biases.mid is not None:
            if band == MID:
                low_count = cells
                # With a step of 0 all rows read the same static lists, with 1 each reads its own
                # choice.
                entry = row.to(tl.int64) * biases.mid_step * sizes.tiles + tile
                low_bias = biases.mid + entry * cells
        # Learned summaries tell a row of the other bands: it sees its own band in exact tokens.
        if (segments.mid_summaries >= 0) & (band <= HIGH):
            mid_count = tl.where(band == MID, 0, cells)
            high_count = tl.where(band == HIGH, 0, cells)
        if biases.summary_offsets is not None:
            # Learned in any float dtype, and added to natural logits: log2(e) brings them to base
            # 2.
            offset = biases.summary_offsets + row * 3
            low_shift = tl.load(offset).to(tl.float32) * LOG2_E
            mid_shift = tl.load(offset + 1).to(tl.float32) * LOG2_E
            high_shift = tl.load(offset + 2).to(tl.float32) * LOG2_E
    return Summaries(
        low=Segment(at=segments.low_summaries, count=low_count, shift=low_shift),
        low_bias=low_bias,
        mid=Segment(at=segments.mid_summaries, count=mid_count, shift=mid_shift),
        high=Segment(at=segments.high_summaries, count=high_count, shift=high_shift),
    )


@triton.jit
def store_rows(matrix, place, values, written, CHANNELS: tl.constexpr):
    """Rows of values to the given rows of a contiguous (rows, CHANNELS) matrix, so many of each."""
    WIDTH: tl.constexpr = values.shape[1]
    # Here all rows of a call are one matrix, which may hold more than 2^31 numbers.
    pointer = matrix + place[:, None].to(tl.int64) * CHANNELS + tl.arange(0, WIDTH)[None, :]
    # The only rounding of what was summed in float32. The mask keeps a short tile's block from
    # overwriting what the next tile's program wrote.
    mask = real_channels(written, CHANNELS, WIDTH)
    tl.store(pointer, cast(values, matrix.dtype.element_ty), mask=mask)
