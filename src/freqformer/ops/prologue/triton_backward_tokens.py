"""Gradients of the tokens of one tile of one row, as the prologue's backward kernels take them,
float32.

Shape legend: R rows (sample * H + head), T tiles, C cells, D head_dim, SLOTS tokens of a tile or of
a part of it. An argument that is None is absent from the compiled kernel.
"""

from __future__ import annotations

import triton
import triton.language as tl

from freqformer.ops.jit import cast, dot
from freqformer.ops.prologue.triton_tokens import DENSE, LOW, rotary_tables, rotate_tokens

FULL, VALUES, STRICT = tl.constexpr(0), tl.constexpr(1), tl.constexpr(3)
"""Band features; gains are the rest."""


@triton.jit
def places(first, last, raster, CHUNK: tl.constexpr):
    """Places of CHUNK tokens in tile order, in the order of the call, and which of them exist."""
    own = first + tl.arange(0, CHUNK)
    live = own < last
    place = own
    if raster is not None:
        place = tl.load(raster + own, mask=live, other=0)
    return own, place, live


@triton.jit
def given(grad, place, live, D: tl.constexpr):
    """Rows `place` of a gradient (rows, D), zero where not live."""
    entry = grad + place.to(tl.int64)[:, None] * D + tl.arange(0, D)[None, :]
    return tl.load(entry, mask=live[:, None], other=0.0)


@triton.jit
def turned_back(g, turn):
    """Gradients before the rotary embedding, a rotation, from those after it."""
    return rotate_tokens(g, (turn[0], -turn[1]))


@triton.jit
def add_block_product(total, matrix, step, x, WIDTH: tl.constexpr, PARTS: tl.constexpr):
    """total + a block of the sum of PARTS matrices, `step` elements apart and WIDTH wide, times x;
    float32."""
    entry = (
        matrix + tl.arange(0, total.shape[0])[:, None] * WIDTH + tl.arange(0, x.shape[0])[None, :]
    )
    for part in tl.static_range(PARTS):  # pyright: ignore[reportGeneralTypeIssues]
        total = dot(tl.load(entry + part * step), x, total)
    return total


@triton.jit
def add_wide_product(
    total, matrix, step, x, dtype: tl.constexpr, WIDTH: tl.constexpr, PARTS: tl.constexpr
):
    """`add_block_product` of float32 tokens: in two summands of `dtype` where products take no
    float32."""
    high = cast(x, dtype)
    total = add_block_product(total, matrix, step, high, WIDTH, PARTS)
    if PARTS > 1:
        total = add_block_product(
            total, matrix, step, cast(x - high.to(tl.float32), dtype), WIDTH, 1
        )
    return total


@triton.jit
def whole_block(matrix, step, SIDE: tl.constexpr, WIDTH: tl.constexpr, PARTS: tl.constexpr):
    """A square block of the sum of PARTS matrices, `step` elements apart and WIDTH wide,
    float32."""
    entry = matrix + tl.arange(0, SIDE)[:, None] * WIDTH + tl.arange(0, SIDE)[None, :]
    total = tl.load(entry).to(tl.float32)
    for part in tl.static_range(1, PARTS):  # pyright: ignore[reportGeneralTypeIssues]
        total += tl.load(entry + part * step).to(tl.float32)
    return total


@triton.jit
def exact_grads(
    grad,
    band,
    own,
    live,
    low_place,
    low_start,
    exact_start,
    mean,
    reduction,
    reduction_step,
    SLOTS: tl.constexpr,
    D: tl.constexpr,
    FEATURES: tl.constexpr,
    KEPT: tl.constexpr,
    BRANCH: tl.constexpr,
    PARTS: tl.constexpr,
):
    """Gradients of the rotated tokens of a tile with all bands: float32 (SLOTS, D).

    Args:
        grad: the row's part of a buffer's gradient.
        own, live: places in tile order, and which of them hold a token.
        low_place, low_start: places of the tile's low tokens, and the first row of low tokens.
        exact_start: where text queries see MID and HIGH rows' tokens with all bands; 0 for nowhere.
        mean: what the low summary's gradient gives to every token of its cell, (D,); None without
            summaries.
        reduction: the analysis matrix, its columns for these tokens.
        KEPT: whether text queries see the tokens of LOW rows.
        BRANCH: whether every row has low tokens.
    """
    g = tl.zeros((own.shape[0], D), tl.float32)
    if (band == LOW) | BRANCH:
        low = given(grad + low_start * D, low_place, low_place >= 0, D)
        slot, column = tl.arange(0, low_place.shape[0]), tl.arange(0, own.shape[0])
        entry = reduction + slot[None, :] * SLOTS + column[:, None]
        for part in tl.static_range(PARTS):  # pyright: ignore[reportGeneralTypeIssues]
            g = dot(tl.load(entry + part * reduction_step), low, g)
    if band == LOW:
        if KEPT:
            g += given(grad, own, live, D).to(tl.float32)
    else:
        if (FEATURES == FULL) | (band == DENSE):
            g += given(grad, own, live, D).to(tl.float32)
        if (exact_start > 0) & (band != DENSE):
            g += given(grad + exact_start * D, own, live, D).to(tl.float32)
    if mean is not None:
        g += mean[None, :]
    return g


@triton.jit
def feature_grads(
    grad,
    x,
    band,
    skip,
    extent,
    raster,
    rotary,
    gains,
    projectors,
    step,
    SLOTS: tl.constexpr,
    FEATURES: tl.constexpr,
    PARTS: tl.constexpr,
):
    """What the weighted bands of a MID or HIGH row give to its tokens x (CHUNK, D) and to the
    head's gains.

    Args:
        grad: gradients of the tokens with weighted bands, rotated; the row's part of a buffer.
        skip: the first of these tokens in its tile.
        extent: first token of the tile in tile order, and of the next tile.
        rotary: tables; None for values and without rotary embedding.
        projectors, step: of the class of the tile, and how far apart their summands are.
    """
    CHUNK: tl.constexpr = x.shape[0]
    D: tl.constexpr = x.shape[1]
    size: tl.constexpr = SLOTS * SLOTS
    low, mid = tl.zeros((CHUNK, D), tl.float32), tl.zeros((CHUNK, D), tl.float32)
    own = tl.zeros((CHUNK, D), tl.float32)
    # The projectors are symmetric, so they bring gradients back too.
    rows = projectors + skip * SLOTS
    for ahead in range(0, SLOTS, CHUNK):
        given_own, place, live = places(extent[0] + ahead, extent[1], raster, CHUNK)
        g = given(grad, given_own, live, D).to(tl.float32)
        if rotary is not None:
            g = turned_back(g, rotary_tables(rotary, place, live, D))
        if FEATURES == STRICT:
            own = add_wide_product(own, rows + band * size + ahead, step, g, x.dtype, SLOTS, PARTS)
        else:
            low = add_wide_product(low, rows + ahead, step, g, x.dtype, SLOTS, PARTS)
            own += tl.where(ahead == skip, 1.0, 0.0) * g
            if FEATURES != VALUES:
                mid = add_wide_product(mid, rows + size + ahead, step, g, x.dtype, SLOTS, PARTS)
    low_share, mid_share, high_share = 0.0, 0.0, 0.0
    if FEATURES == VALUES:
        own -= low
    elif FEATURES != STRICT:
        wide = x.to(tl.float32)
        low_share, mid_share = tl.sum(wide * low), tl.sum(wide * mid)
        high_share = tl.sum(wide * own) - low_share - mid_share
        low_gain, mid_gain, high_gain = tl.load(gains), tl.load(gains + 1), tl.load(gains + 2)
        own = own * high_gain + low * (low_gain - high_gain) + mid * (mid_gain - high_gain)
    return own, low_share, mid_share, high_share


@triton.jit
def pooled_key_grads(
    g,
    skip,
    extent,
    raster,
    rotary,
    weights,
    slopes,
    key_grad,
    query,
    projector,
    step,
    dtype: tl.constexpr,
    SLOTS: tl.constexpr,
    PARTS: tl.constexpr,
):
    """Gradients g (CHUNK, D) of normalised keys with what one pooled summary gives.

    Args:
        skip, extent, raster, rotary: as in `feature_grads`.
        weights, slopes: of every token of the tile in the pooling, see `pool_slopes`.
        key_grad: gradient of the pooled key, float32 (D,).
        query: the pooling query, float32 (D,).
        projector, step: of the band, and how far apart its summands are.
    """
    CHUNK: tl.constexpr = g.shape[0]
    D: tl.constexpr = g.shape[1]
    for ahead in range(0, SLOTS, CHUNK):
        own, place, live = places(  # pyright: ignore[reportGeneralTypeIssues]
            extent[0] + ahead, extent[1], raster, CHUNK
        )
        back = tl.zeros((CHUNK, D), tl.float32) + key_grad[None, :]
        if rotary is not None:
            back = turned_back(back, rotary_tables(rotary, place, live, D))
        weight = tl.load(weights + own, mask=live, other=0.0)
        slope = tl.load(slopes + own, mask=live, other=0.0)
        back = back * weight[:, None] + slope[:, None] * query[None, :]
        g = add_wide_product(g, projector + skip * SLOTS + ahead, step, back, dtype, SLOTS, PARTS)
    return g


@triton.jit
def pooled_value_grads(
    g, skip, extent, weights, value_grad, projector, step, SLOTS: tl.constexpr, PARTS: tl.constexpr
):
    """Gradients g (CHUNK, D) of values with what one pooled summary gives. Arguments as in
    `pooled_key_grads`."""
    CHUNK: tl.constexpr = g.shape[0]
    spread = tl.zeros((CHUNK,), tl.float32)
    for ahead in range(0, SLOTS, CHUNK):
        own = extent[0] + ahead + tl.arange(0, CHUNK)
        weight = tl.load(weights + own, mask=own < extent[1], other=0.0)
        spread += tl.sum(
            whole_block(projector + skip * SLOTS + ahead, step, CHUNK, SLOTS, PARTS)
            * weight[None, :],
            1,
        )
    return g + spread[:, None] * value_grad[None, :]


@triton.jit
def norm_grads(g, x, weight, eps, D: tl.constexpr):
    """Gradients of tokens x (SLOTS, D) and of the norm's weight (D,), from those of the normalised
    tokens."""
    wide = x.to(tl.float32)
    scale = tl.rsqrt(tl.sum(wide * wide, 1) / D + eps)
    unit = wide * scale[:, None]
    share = tl.sum(g * unit, 0)
    g *= tl.load(weight + tl.arange(0, D)).to(tl.float32)[None, :]
    return scale[:, None] * (g - unit * (tl.sum(g * unit, 1) / D)[:, None]), share
