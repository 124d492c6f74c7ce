"""The first Triton kernel of the prologue: every token is read once and written where the attention
reads it.

`triton.py` holds the host side. Shape legend: R rows (sample * H + head), N video and X text
tokens, S rows of the key buffer, M low tokens, T tiles, D head_dim, SLOTS tokens of a tile or of a
part of it. An argument that is None is absent from the compiled kernel.
"""

from __future__ import annotations

import triton
import triton.language as tl

from freqformer.ops.jit import cast, load_tokens, norm_tokens
from freqformer.ops.prologue.triton_tokens import (
    HIGH,
    LOW,
    MID,
    add_product,
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
            weighted = (
                x.to(tl.float32) * high_gain
                + low * (low_gain - high_gain)
                + mid * (mid_gain - high_gain)
            )
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
        exact_start: where MID and HIGH rows keep tokens with all bands for text queries; 0 for
            nowhere.
        place, live: places in tile order, and which of them hold a token.
        gains: of the head, (3,).
        projectors, step: of the class of the tile, and how far apart their summands are.
        KEEP_EXACT: whether there are text queries, which see every exact token of LOW rows too.
    """
    written = turned
    kept = live
    if not KEEP_EXACT:
        # Compared after it is broadcast: Triton 3.9's interpreter makes int32 of a boolean that it
        # broadcasts, no mask.
        kept = live & (tl.broadcast_to(band, place.shape) != LOW)
    if FEATURES != FULL:
        if (band == MID) | (band == HIGH):
            weighted = cast(
                _band_features(x, band, gains, projectors, step, FEATURES, PARTS), x.dtype
            )
            if turn is not None:
                weighted = cast(rotate_tokens(weighted, turn), x.dtype)
            written = weighted
    if KEEP_EXACT:
        if (exact_start > 0) & ((band == MID) | (band == HIGH)):
            write_tokens(target + exact_start * x.shape[1], place, live, turned)
    write_tokens(target, place, kept, written)


@triton.jit
def _take(
    reduced,
    source,
    strides,
    head,
    tile,
    norm,
    eps,
    turn,
    band,
    target,
    exact_start,
    reduction,
    reduction_step,
    projectors,
    projector_step,
    gains,
    SLOTS: tl.constexpr,
    D: tl.constexpr,
    FEATURES: tl.constexpr,
    KEEP_EXACT: tl.constexpr,
    PARTS: tl.constexpr,
):
    """Move some tokens of one tensor to the row's part of its buffer, and add them to what the tile
    is reduced to.

    Args:
        reduced: low tokens or sums so far, float32 (LOW_SLOTS, D); returned with these tokens
            added.
        source, strides: the tensor.
        head: (sample, head).
        tile: places of the tokens in tile order, their places in the call, and which of them exist.
        turn: cos and sin of the tokens; None for values and without rotary embedding.
        reduction: its columns for these tokens.
    """
    own, place, live = tile
    x = load_tokens(source, strides, head[0], head[1], place, live, D)
    if norm is not None:
        x = norm_tokens(x, norm, eps, D)
    turned = x
    if turn is not None:
        turned = cast(rotate_tokens(x, turn), x.dtype)
    # fmt: off
    _lay_down(x, turned, turn, band, target, exact_start, own, live,
              gains, projectors, projector_step, FEATURES, KEEP_EXACT, PARTS)
    # fmt: on
    return add_product(reduced, reduction, reduction_step, turned, SLOTS, PARTS, True)


@triton.jit
def _leave(reduced, band, target, low_place, sums, BRANCH: tl.constexpr):
    """Write what a tile was reduced to: low tokens, and the sum of all, which is in the last
    row."""
    if (band == LOW) | BRANCH:
        write_tokens(target, low_place, low_place >= 0, reduced)
    if sums is not None:
        if (band == MID) | (band == HIGH):
            last = tl.arange(0, reduced.shape[0]) == reduced.shape[0] - 1
            total = tl.sum(tl.where(last[:, None], reduced, 0.0), 0)
            tl.store(sums + tl.arange(0, reduced.shape[1]), total)


@triton.jit
def _places(first, last, raster, CHUNK: tl.constexpr):
    """Places of CHUNK tokens in tile order, in the order of the call, and which of them exist."""
    own = first + tl.arange(0, CHUNK)
    live = own < last
    place = own
    if raster is not None:
        place = tl.load(raster + own, mask=live, other=0)
    return own, place, live


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
    BRANCH: tl.constexpr,
    PARTS: tl.constexpr,
):
    """One tile of one row, heads fastest so that neighbouring programs read neighbouring memory.

    Args:
        inputs, strides: query, key and value (B, N + X, H, D), and the first three strides of each.
        allocation, allocation_strides: the band of every (sample, head).
        buffers: query (R, N + X + M, D), key and value (R, S, D).
        sums: float32 (3, R, T, D), sums of queries, keys and values over tiles; None where nothing
            needs them.
        layout: tile offsets, raster places, classes of tiles and places of low tokens.
        matrices: reductions, how far apart their summands are, projectors or None, and the same of
            them. The reduction of a class is its analysis matrix over a row of ones.
        learned: norm weights of queries and keys, rotary tables and gains; each may be None.
        sizes: H, R, N + X, N + X + M, S, T.
        segments: first rows of the low and the exact segment; 0 where there is no exact one.
        CHUNK: tokens taken at once: a few keep many loads in flight; band features need the whole
            tile.
        TEXT: whether there are text queries, which see every exact token whatever the band.
        BRANCH: whether every row has low tokens, for the LOW branch of its head.
    """
    heads, rows, tokens, query_rows, key_rows, tiles = sizes
    query_norm, key_norm, rotary, gains = learned
    reduction, reduction_step, projectors, projector_step = matrices
    row, index = tl.program_id(0) % rows, tl.program_id(0) // rows
    sample, head = row // heads, row % heads
    band = row_band(allocation, allocation_strides, sample, head)
    first, last = tl.load(layout[0] + index), tl.load(layout[0] + index + 1)
    kind = tl.load(layout[2] + index)
    low_place = tl.load(layout[3] + index * LOW_SLOTS + tl.arange(0, LOW_SLOTS))
    reduction += kind * LOW_SLOTS * SLOTS
    if projectors is not None:
        projectors += kind * 3 * SLOTS * SLOTS
    if gains is not None:
        gains += head * 3
    wide_row = row.to(tl.int64)
    query_out = buffers[0] + wide_row * query_rows * D
    key_out, value_out = buffers[1] + wide_row * key_rows * D, buffers[2] + wide_row * key_rows * D
    TURNED_FEATURES: tl.constexpr = FULL if FEATURES == VALUES else FEATURES

    raster = None
    if RASTER:
        raster = layout[1]
    low_query, low_key = tl.zeros((LOW_SLOTS, D), tl.float32), tl.zeros((LOW_SLOTS, D), tl.float32)
    low_value = tl.zeros((LOW_SLOTS, D), tl.float32)
    for skip in range(0, SLOTS, CHUNK):
        tile = _places(first + skip, last, raster, CHUNK)
        # Queries and keys share the rotary tables, whose bytes are as many as theirs.
        turn = None
        if rotary is not None:
            turn = rotary_tables(rotary, tile[1], tile[2], D)
        # fmt: off
        low_query = _take(
            low_query, inputs[0], strides[0], (sample, head), tile, query_norm, eps, turn, band,
            query_out, 0,
            reduction + skip, reduction_step, projectors, projector_step, gains, SLOTS, D,
            TURNED_FEATURES, False, PARTS)
        low_key = _take(
            low_key, inputs[1], strides[1], (sample, head), tile, key_norm, eps, turn, band,
            key_out, segments[1],
            reduction + skip, reduction_step, projectors, projector_step, gains, SLOTS, D,
            TURNED_FEATURES, TEXT, PARTS)
        low_value = _take(
            low_value, inputs[2], strides[2], (sample, head), tile, None, eps, None, band,
            value_out, segments[1],
            reduction + skip, reduction_step, projectors, projector_step, gains, SLOTS, D,
            FEATURES, TEXT, PARTS)
        # fmt: on
    query_sums, key_sums, value_sums = None, None, None
    if sums is not None:
        query_sums = sums + (wide_row * tiles + index) * D
        key_sums = query_sums + rows.to(tl.int64) * tiles * D
        value_sums = key_sums + rows.to(tl.int64) * tiles * D
    _leave(low_query, band, query_out + tokens * D, low_place, query_sums, BRANCH)
    _leave(low_key, band, key_out + segments[0] * D, low_place, key_sums, BRANCH)
    _leave(low_value, band, value_out + segments[0] * D, low_place, value_sums, BRANCH)
