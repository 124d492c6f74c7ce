"""The first Triton kernel of the prologue: every token is read once and written where the attention reads it.

`triton.py` holds the host side. Shape legend: R rows (sample * H + head), N video and X text tokens, S rows of the key
buffer, M low tokens, T tiles, D head_dim, SLOTS tokens of a tile or of a part of it. An argument that is None is absent
from the compiled kernel.
"""

from __future__ import annotations

import triton
import triton.language as tl

from freqformer.ops.jit import cast
from freqformer.ops.prologue.triton_tokens import (
    DENSE,
    HIGH,
    LOW,
    MID,
    add_product,
    load_tokens,
    norm_tokens,
    project,
    rotary_tables,
    rotate_tokens,
    row_band,
    write_tokens,
)

FULL, VALUES, GAINS, STRICT = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2), tl.constexpr(3)


@triton.jit
def _band_features(x, band, gains, projectors, step, FEATURES: tl.constexpr, PARTS: tl.constexpr):
    """A MID or HIGH row's tokens of one tile with their bands weighted: float32 (SLOTS, D)."""
    size: tl.constexpr = x.shape[0] * x.shape[0]
    if FEATURES == STRICT:
        weighted = project(projectors + band * size, step, x, PARTS)
    else:
        low = project(projectors, step, x, PARTS)
        if FEATURES == VALUES:
            weighted = x.to(tl.float32) - low
        else:
            mid = project(projectors + size, step, x, PARTS)
            low_gain, mid_gain, high_gain = tl.load(gains), tl.load(gains + 1), tl.load(gains + 2)
            weighted = x.to(tl.float32) * high_gain + low * (low_gain - high_gain) + mid * (mid_gain - high_gain)
    return weighted


@triton.jit
def _lay_down(
    x,
    turned,
    turn,
    band,
    target,
    exact_start,
    place,
    live,
    gains,
    projectors,
    step,
    FEATURES: tl.constexpr,
    KEEP_EXACT: tl.constexpr,
    PARTS: tl.constexpr,
):
    """Tokens of one row, as a row of its band reads them.

    Args:
        x, turned: normalised tokens (SLOTS, D), and the same rotated.
        turn: cos and sin; None for values and without rotary embedding.
        target: the row's part of the buffer.
        exact_start: where MID and HIGH rows keep tokens with all bands for text queries; 0 for nowhere.
        place, live: places in tile order, and which of them hold a token.
        gains: of the head, (3,).
        projectors, step: of the class of the tile, and how far apart their summands are.
        KEEP_EXACT: whether there are text queries, which see every exact token of LOW rows too.
    """
    written = turned
    kept = live
    if not KEEP_EXACT:
        kept = live & (band != LOW)
    if FEATURES != FULL:
        if (band == MID) | (band == HIGH):
            weighted = cast(_band_features(x, band, gains, projectors, step, FEATURES, PARTS), x.dtype)
            if turn is not None:
                weighted = cast(rotate_tokens(weighted, turn), x.dtype)
            written = weighted
    if KEEP_EXACT:
        if (exact_start > 0) & ((band == MID) | (band == HIGH)):
            write_tokens(target + exact_start * x.shape[1], place, live, turned)
    write_tokens(target, place, kept, written)


@triton.jit
def _leave(reduced, band, target, low_place, sums):
    """What a tile's tokens were reduced to: low tokens of a LOW row, or the sum of them all in row 0."""
    if band == LOW:
        write_tokens(target, low_place, low_place >= 0, reduced)
    elif sums is not None:
        if band != DENSE:
            tl.store(sums + tl.arange(0, reduced.shape[1]), tl.sum(reduced, 0))


@triton.jit
def prepare_tiles(
    inputs,
    strides,
    allocation,
    allocation_strides,
    buffers,
    sums,
    layout,
    matrices,
    learned,
    sizes,
    segments,
    eps,
    SLOTS: tl.constexpr,
    CHUNK: tl.constexpr,
    LOW_SLOTS: tl.constexpr,
    D: tl.constexpr,
    RASTER: tl.constexpr,
    FEATURES: tl.constexpr,
    TEXT: tl.constexpr,
    PARTS: tl.constexpr,
):
    """One tile of one row, heads fastest so that neighbouring programs read neighbouring memory.

    Args:
        inputs, strides: query, key and value (B, N + X, H, D), and the first three strides of each.
        allocation, allocation_strides: the band of every (sample, head).
        buffers: query (R, N + X, D), key and value (R, S, D).
        sums: float32 (3, R, T, D), sums of queries, keys and values over tiles; None where nothing needs them.
        layout: tile offsets, raster places, classes of tiles and places of low tokens.
        matrices: reductions, how far apart their summands are, projectors or None, and the same of them. The reduction of a
            class is its analysis matrix, of a last class the sum.
        learned: norm weights of queries and keys, rotary tables and gains; each may be None.
        sizes: H, R, N + X, S, T, classes of tiles.
        segments: first rows of the low and the exact segment; 0 where there is no exact one.
        CHUNK: tokens taken at once: a few keep many loads in flight; band features need the whole tile.
        TEXT: whether there are text queries, which see every exact token whatever the band.
    """
    heads, rows, tokens, key_rows, tiles, classes = sizes
    query_norm, key_norm, rotary, gains = learned
    reduction, reduction_step, projectors, projector_step = matrices
    row, index = tl.program_id(0) % rows, tl.program_id(0) // rows
    sample, head = row // heads, row % heads
    band = row_band(allocation, allocation_strides, sample, head)
    first, last = tl.load(layout[0] + index), tl.load(layout[0] + index + 1)
    kind = tl.load(layout[2] + index)
    low_place = tl.load(layout[3] + index * LOW_SLOTS + tl.arange(0, LOW_SLOTS))
    reduction += tl.where(band == LOW, kind, classes) * LOW_SLOTS * SLOTS
    if projectors is not None:
        projectors += kind * 3 * SLOTS * SLOTS
    if gains is not None:
        gains += head * 3
    wide_row = row.to(tl.int64)
    query_out = buffers[0] + wide_row * tokens * D
    key_out, value_out = buffers[1] + wide_row * key_rows * D, buffers[2] + wide_row * key_rows * D
    TURNED_FEATURES: tl.constexpr = FULL if FEATURES == VALUES else FEATURES

    low_query, low_key = tl.zeros((LOW_SLOTS, D), tl.float32), tl.zeros((LOW_SLOTS, D), tl.float32)
    low_value = tl.zeros((LOW_SLOTS, D), tl.float32)
    for skip in range(0, SLOTS, CHUNK):
        own = first + skip + tl.arange(0, CHUNK)
        live = own < last
        place = own
        if RASTER:
            place = tl.load(layout[1] + own, mask=live, other=0)
        query = load_tokens(inputs[0], strides[0], sample, head, place, live, D)
        key = load_tokens(inputs[1], strides[1], sample, head, place, live, D)
        value = load_tokens(inputs[2], strides[2], sample, head, place, live, D)
        if query_norm is not None:
            query = norm_tokens(query, query_norm, eps, D)
        if key_norm is not None:
            key = norm_tokens(key, key_norm, eps, D)
        turned_query, turned_key, turn = query, key, None
        if rotary is not None:
            turn = rotary_tables(rotary, place, live, D)
            turned_query = cast(rotate_tokens(query, turn), query.dtype)
            turned_key = cast(rotate_tokens(key, turn), key.dtype)
        # fmt: off
        _lay_down(query, turned_query, turn, band, query_out, 0, own, live,
                  gains, projectors, projector_step, TURNED_FEATURES, False, PARTS)
        _lay_down(key, turned_key, turn, band, key_out, segments[1], own, live,
                  gains, projectors, projector_step, TURNED_FEATURES, TEXT, PARTS)
        _lay_down(value, value, None, band, value_out, segments[1], own, live,
                  gains, projectors, projector_step, FEATURES, TEXT, PARTS)
        # fmt: on
        low_query = add_product(low_query, reduction + skip, reduction_step, turned_query, SLOTS, PARTS)
        low_key = add_product(low_key, reduction + skip, reduction_step, turned_key, SLOTS, PARTS)
        low_value = add_product(low_value, reduction + skip, reduction_step, value, SLOTS, PARTS)
    query_sums, key_sums, value_sums = None, None, None
    if sums is not None:
        query_sums = sums + (wide_row * tiles + index) * D
        key_sums = query_sums + rows.to(tl.int64) * tiles * D
        value_sums = key_sums + rows.to(tl.int64) * tiles * D
    _leave(low_query, band, query_out, low_place, query_sums)
    _leave(low_key, band, key_out + segments[0] * D, low_place, key_sums)
    _leave(low_value, band, value_out + segments[0] * D, low_place, value_sums)
