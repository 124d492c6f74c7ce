"""What the Triton kernels of block-sparse attention share: where blocks lie, which keys a query
sees, and how blocks are read and written.

Shape legend: R rows, T tiles, C cells. An argument that is None is absent from the compiled kernel.
"""

from __future__ import annotations

import triton
import triton.language as tl

from freqformer.ops.jit import cast

LOW, MID, HIGH = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)
LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)

SIZES = [
    "rows",
    "heads",
    "tiles",
    "num_tokens",
    "num_text",
    "high_length",
    "mid_length",
    "mid_step",
    "mid_bias_step",
]
PLACES = [
    "low_at",
    "low_sums_at",
    "mid_sums_at",
    "high_sums_at",
    "text_at",
    "exact_at",
    "key_rows",
    "text_parts",
]
"""Arguments by which nothing is compiled anew: for what divides them, nearly every grid would."""


@triton.jit
def load_block(
    source, start, limit, ROWS: tl.constexpr, HEAD_DIM: tl.constexpr, DESCRIPTORS: tl.constexpr
):
    """ROWS rows from `start`; zeros from `limit` on, unless it is None because zero rows lie
    there."""
    if DESCRIPTORS:
        block = source.load([start, 0])
    else:
        place = start + tl.arange(0, ROWS)
        pointer = source + place[:, None] * HEAD_DIM + tl.arange(0, HEAD_DIM)[None, :]
        if limit is None:
            block = tl.load(pointer)
        else:
            block = tl.load(pointer, mask=place[:, None] < limit, other=0.0)
    return block


@triton.jit
def listed_tiles(band, row, block, tiles, lists):
    """Where the list of key tiles of a query tile starts, and its length."""
    every_tile, high_lists, high_length, mid_lists, mid_lengths, mid_length, mid_step = lists
    listed, length = every_tile, tiles
    if band == HIGH:
        listed, length = high_lists + block * high_length, high_length
    if mid_lists is not None:
        if band == MID:
            entry = row.to(tl.int64) * mid_step * tiles + block
            listed, length = mid_lists + entry * mid_length, mid_length
            if mid_lengths is not None:
                length = tl.load(mid_lengths + entry)
    return listed, length


@triton.jit
def tile_extent(tile_offsets, tile_counts, tile, TILE_TOKENS: tl.constexpr):
    """First token of a tile and how many it holds; TILE_TOKENS is 0 where tiles differ."""
    if TILE_TOKENS > 0:
        first, tokens = tile * TILE_TOKENS, TILE_TOKENS
    else:
        first = tl.load(tile_offsets + tile)
        # 8 bits, since the compiler would bring 32 through shared memory, with a barrier in every
        # step.
        tokens = tl.load(tile_counts + tile).to(tl.int32)
    return first, tokens


@triton.jit
def seen_summaries(band, row, block, tiles, cells, sums_at, biases):
    """Where the low, mid and high summaries that a row of `band` sees lie, how many, and their bias
    or shift."""
    low_at, mid_at, high_at = sums_at
    low_bias, high_bias, mid_bias, mid_bias_step, summary_offsets = biases
    low_count, bias, mid_count, high_count = 0, low_bias, 0, 0
    low_shift, mid_shift, high_shift = 0.0, 0.0, 0.0
    if high_bias is not None:
        if band == HIGH:
            low_count, bias = cells, high_bias + block * cells
        if mid_bias is not None:
            if band == MID:
                low_count, bias = (
                    cells,
                    mid_bias + (row.to(tl.int64) * mid_bias_step * tiles + block) * cells,
                )
        if (mid_at >= 0) & (band <= HIGH):
            mid_count = tl.where(band == MID, 0, cells)
            high_count = tl.where(band == HIGH, 0, cells)
        if summary_offsets is not None:
            low_shift = tl.load(summary_offsets + row * 3).to(tl.float32) * LOG2_E
            mid_shift = tl.load(summary_offsets + row * 3 + 1).to(tl.float32) * LOG2_E
            high_shift = tl.load(summary_offsets + row * 3 + 2).to(tl.float32) * LOG2_E
    return (
        (low_at, low_count, bias, low_shift),
        (mid_at, mid_count, mid_shift),
        (high_at, high_count, high_shift),
    )


@triton.jit
def store_rows(matrix, place, values, written, HEAD_DIM: tl.constexpr):
    """Rows of values to the given rows of a contiguous (rows, HEAD_DIM) matrix."""
    pointer = matrix + place[:, None].to(tl.int64) * HEAD_DIM + tl.arange(0, HEAD_DIM)[None, :]
    tl.store(pointer, cast(values, matrix.dtype.element_ty), mask=written[:, None])
