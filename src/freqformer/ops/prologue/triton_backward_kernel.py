"""The Triton kernels of the prologue's backward: `triton_backward.py` holds the host side.

A program takes one tile of one row back from what the attention read to the tokens of the call, in
float32 in between.

Shape legend: R rows (sample * H + head), N video and X text tokens, S rows of the key buffer, M low
tokens, T tiles, C cells, D head_dim, SLOTS tokens of a tile or of a part of it. An argument that is
None is absent from the compiled kernel.
"""

from __future__ import annotations

import triton
import triton.language as tl

from freqformer.ops.jit import load_tokens, norm_tokens
from freqformer.ops.prologue.triton_backward_tokens import (
    FULL,
    VALUES,
    add_block_product,
    exact_grads,
    feature_grads,
    given,
    norm_grads,
    places,
    pooled_key_grads,
    pooled_value_grads,
    turned_back,
    whole_block,
)
from freqformer.ops.prologue.triton_tokens import (
    DENSE,
    HIGH,
    MID,
    finite_where_masked,
    rotary_tables,
    seen_text,
    write_tokens,
)


@triton.jit
def pool_slopes(
    inputs,
    strides,
    bands,
    summaries,
    summary_grads,
    pool_lse,
    pools,
    shares,
    layout,
    cell_of_tile,
    key_norm,
    rotary,
    pooling,
    projectors,
    projector_step,
    sizes,
    sums_at,
    eps,
    SLOTS: tl.constexpr,
    CHUNK: tl.constexpr,
    D: tl.constexpr,
    RASTER: tl.constexpr,
    BRANCH: tl.constexpr,
    PARTS: tl.constexpr,
):
    """How the tokens of one tile of one row take part in the pooled summaries that the row sees.

    A token of weight w has w (its rotated key . gradient of the pooled key + its value . gradient
    of the pooled value - the same of the pooled pair) as the slope of its score. Keys and values
    are those of one band, P k and P v.

    Args:
        summaries, summary_grads: keys and values (R, S, D), which hold the pooled pairs, and their
            gradients.
        pool_lse: log-sum-exp of the scores of every cell, float32 (R, C, 2).
        pools: float32 (R, 2, 2, N) by band, in tile order: weights, and slopes of k . pooling
            query.
        shares: what the tile gives to the gradient of the pooling queries, float32 (R, T, 2, D).
        layout: tile offsets, raster places and classes of tiles.
        sizes: H, R, N, S, T, C.
        The rest as in `tile_grads`.
    """
    heads, rows, video, key_rows, tiles, cells = sizes
    row, index = tl.program_id(0) % rows, tl.program_id(0) // rows
    sample, head, wide_row = row // heads, row % heads, row.to(tl.int64)
    band = tl.load(bands + row)
    if band == DENSE:
        if not BRANCH:
            return
    channel = tl.arange(0, D)
    raster = None
    if RASTER:
        raster = layout[1]
    first, last = tl.load(layout[0] + index), tl.load(layout[0] + index + 1)
    cell = tl.load(cell_of_tile + index)
    projectors += tl.load(layout[2] + index) * 3 * SLOTS * SLOTS
    for other in tl.static_range(1, 3):  # pyright: ignore[reportGeneralTypeIssues]
        if (band != other) | BRANCH:
            summary = wide_row * key_rows * D + (sums_at[other] + cell) * D + channel
            key_grad = tl.load(summary_grads[0] + summary).to(tl.float32)
            value_grad = tl.load(summary_grads[1] + summary).to(tl.float32)
            delta = tl.sum(tl.load(summaries[0] + summary).to(tl.float32) * key_grad, 0)
            delta += tl.sum(tl.load(summaries[1] + summary).to(tl.float32) * value_grad, 0)
            log_sum = tl.load(pool_lse + (wide_row * cells + cell) * 2 + other - 1)
            query = tl.load(pooling + (head * 2 + other - 1) * D + channel).to(tl.float32)
            vectors = pools + (wide_row * 2 + other - 1) * 2 * video
            share = tl.zeros((D,), tl.float32)
            for skip in range(0, SLOTS, CHUNK):
                passed, agree = tl.zeros((CHUNK, D), tl.float32), tl.zeros((CHUNK,), tl.float32)
                for ahead in range(0, SLOTS, CHUNK):
                    projector = projectors + other * SLOTS * SLOTS + skip * SLOTS + ahead
                    _own, place, live = places(first + ahead, last, raster, CHUNK)
                    key = load_tokens(inputs[1], strides[1], sample, head, place, live, D)
                    if key_norm is not None:
                        key = norm_tokens(key, key_norm, eps, D)
                    passed = add_block_product(passed, projector, projector_step, key, SLOTS, PARTS)
                    value = load_tokens(inputs[2], strides[2], sample, head, place, live, D).to(
                        tl.float32
                    )
                    agreed = tl.sum(value * value_grad[None, :], 1)
                    matrix = whole_block(projector, projector_step, CHUNK, SLOTS, PARTS)
                    agree += tl.sum(matrix * agreed[None, :], 1)
                own, place, live = places(first + skip, last, raster, CHUNK)
                score = tl.sum(passed * query[None, :], 1) * (D**-0.5)
                weight = tl.where(live, tl.exp(score - log_sum), 0.0)
                back = tl.zeros((CHUNK, D), tl.float32) + key_grad[None, :]
                if rotary is not None:
                    back = turned_back(back, rotary_tables(rotary, place, live, D))
                slope = weight * (tl.sum(passed * back, 1) + agree - delta) * (D**-0.5)
                share += tl.sum(passed * slope[:, None], 0)
                tl.store(vectors + own, weight, mask=live)
                tl.store(vectors + video + own, slope, mask=live)
            tl.store(shares + ((wide_row * tiles + index) * 2 + other - 1) * D + channel, share)


@triton.jit
def _token_grads(
    x,
    grad,
    band,
    tile,
    skip,
    extent,
    raster,
    rotary,
    low,
    exact_start,
    mean,
    reduction,
    reduction_step,
    projectors,
    projector_step,
    gains,
    SLOTS: tl.constexpr,
    D: tl.constexpr,
    FEATURES: tl.constexpr,
    KEPT: tl.constexpr,
    BRANCH: tl.constexpr,
    PARTS: tl.constexpr,
):
    """Gradients of normalised tokens x (CHUNK, D) of one tile, and what they give to the gains of
    the head.

    Args:
        tile: places of the tokens in tile order, in the order of the call, and which of them exist.
        skip, extent, raster: the first of these tokens in its tile, and as in `feature_grads`.
        rotary: tables; None for values and without rotary embedding.
        low: places of the tile's low tokens, and the first row of low tokens.
        The rest as in `exact_grads` and `feature_grads`.
    """
    own, place, live = tile
    # fmt: off
    g = exact_grads(grad, band, own, live, low[0], low[1], exact_start, mean,
                    reduction + skip, reduction_step, SLOTS, D, FEATURES, KEPT, BRANCH,
                    PARTS)
    low_share, mid_share, high_share = 0.0, 0.0, 0.0
    if rotary is not None:
        g = turned_back(g, rotary_tables(rotary, place, live, D))
    if FEATURES != FULL:
        if (band == MID) | (band == HIGH):
            weighted, low_share, mid_share, high_share = feature_grads(
                grad, x, band, skip, extent, raster, rotary, gains, projectors, projector_step,
                SLOTS, FEATURES, PARTS)
            g += weighted
    # fmt: on
    return g, low_share, mid_share, high_share


@triton.jit
def tile_grads(
    inputs,
    strides,
    bands,
    buffer_grads,
    grads,
    shares,
    layout,
    cells,
    matrices,
    learned,
    pools,
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
    """Gradients of one tile of one row, heads fastest as in the forward kernel.

    Args:
        inputs, strides: query, key and value (B, N + X, H, D), and the first three strides of each.
        bands: `Band` of every row, int32 (R,).
        buffer_grads: gradients of the buffers, query (R, N + X + M, D), key and value (R, S, D).
        grads: gradients of the inputs, (B, N + X, H, D) contiguous.
        shares: what the tile gives to the gradients of query norm and key norm (R, shares of a row,
            D) and gains (R, T, 3), float32; None for what isn't learned.
        layout: tile offsets, raster places, classes of tiles and places of low tokens.
        cells: cell of every tile, and tokens of every cell; None without summaries.
        matrices: reductions, how far apart their summands are, projectors or None, and the same of
            them.
        learned: norm weights of queries and keys, rotary tables, gains and pooling queries; each
            may be None.
        pools: what `pool_slopes` wrote.
        sizes: H, R, N + X, N + X + M, N, S, T, shares of a row.
        segments: first rows of low tokens, of the three summaries, and of the exact segment, 0
            where there is none.
        CHUNK: tokens taken at once.
    """
    heads, rows, tokens, query_rows, video, key_rows, tiles, row_shares = sizes
    query_norm, key_norm, rotary, gains, pooling = learned
    reduction, reduction_step, projectors, projector_step = matrices
    low_at, sums_at, exact_at = segments
    row, index = tl.program_id(0) % rows, tl.program_id(0) // rows
    sample, head, wide_row = row // heads, row % heads, row.to(tl.int64)
    channel = tl.arange(0, D)
    band = tl.load(bands + row)
    first, last = tl.load(layout[0] + index), tl.load(layout[0] + index + 1)
    kind = tl.load(layout[2] + index)
    low_place = tl.load(layout[3] + index * LOW_SLOTS + tl.arange(0, LOW_SLOTS))
    reduction += kind * LOW_SLOTS * SLOTS
    if projectors is not None:
        projectors += kind * 3 * SLOTS * SLOTS
    if gains is not None:
        gains += head * 3
    query_grad, key_grad = (
        buffer_grads[0] + wide_row * query_rows * D,
        buffer_grads[1] + wide_row * key_rows * D,
    )
    value_grad = buffer_grads[2] + wide_row * key_rows * D
    own_grads = (sample.to(tl.int64) * tokens * heads + head) * D
    TURNED: tl.constexpr = FULL if FEATURES == VALUES else FEATURES
    raster = None
    if RASTER:
        raster = layout[1]

    key_mean, value_mean = None, None
    summary = channel
    if cells is not None:
        cell = tl.load(cells[0] + index)
        summary = cell * D + channel
        banded, count = (band == MID) | (band == HIGH), tl.load(cells[1] + cell).to(tl.float32)
        key_mean = (
            tl.load(key_grad + sums_at[0] * D + summary, mask=banded, other=0.0).to(tl.float32)
            / count
        )
        value_mean = (
            tl.load(value_grad + sums_at[0] * D + summary, mask=banded, other=0.0).to(tl.float32)
            / count
        )
    query_share, key_share = tl.zeros((D,), tl.float32), tl.zeros((D,), tl.float32)
    low_gain, mid_gain, high_gain = 0.0, 0.0, 0.0
    extent = (first, last)
    # fmt: off
    for skip in range(0, SLOTS, CHUNK):
        tile = places(first + skip, last, raster, CHUNK)
        _own, place, live = tile
        raw = load_tokens(inputs[0], strides[0], sample, head, place, live, D)
        x = raw
        if query_norm is not None:
            x = norm_tokens(raw, query_norm, eps, D)
        g, low, mid, high = _token_grads(
            x, query_grad, band, tile, skip, extent, raster, rotary, (low_place, tokens), 0, None,
            reduction, reduction_step, projectors, projector_step, gains, SLOTS, D, TURNED, False,
            BRANCH, PARTS)
        if query_norm is not None:
            g, share = norm_grads(g, raw, query_norm, eps, D)
            query_share += share
        write_tokens(grads[0] + own_grads, place * heads, live, g)
        low_gain, mid_gain, high_gain = low_gain + low, mid_gain + mid, high_gain + high

        raw = load_tokens(inputs[1], strides[1], sample, head, place, live, D)
        x = raw
        if key_norm is not None:
            x = norm_tokens(raw, key_norm, eps, D)
        g, low, mid, high = _token_grads(
            x, key_grad, band, tile, skip, extent, raster, rotary, (low_place, low_at), exact_at,
            key_mean,
            reduction, reduction_step, projectors, projector_step, gains, SLOTS, D, TURNED, TEXT,
            BRANCH, PARTS)
        low_gain, mid_gain, high_gain = low_gain + low, mid_gain + mid, high_gain + high
        if pooling is not None:
            for other in tl.static_range(1, 3):
                if ((band != other) & (band != DENSE)) | BRANCH:
                    vectors = pools + (wide_row * 2 + other - 1) * 2 * video
                    g = pooled_key_grads(
                        g, skip, extent, raster, rotary, vectors, vectors + video,
                        tl.load(key_grad + sums_at[other] * D + summary).to(tl.float32),
                        tl.load(pooling + (head * 2 + other - 1) * D + channel).to(tl.float32),
                        projectors + other * SLOTS * SLOTS, projector_step, x.dtype, SLOTS, PARTS)
        if key_norm is not None:
            g, share = norm_grads(g, raw, key_norm, eps, D)
            key_share += share
        write_tokens(grads[1] + own_grads, place * heads, live, g)

        x = load_tokens(inputs[2], strides[2], sample, head, place, live, D)
        g, low, mid, high = _token_grads(
            x, value_grad, band, tile, skip, extent, raster, None, (low_place, low_at), exact_at,
            value_mean,
            reduction, reduction_step, projectors, projector_step, gains, SLOTS, D, FEATURES, TEXT,
            BRANCH, PARTS)
        low_gain, mid_gain, high_gain = low_gain + low, mid_gain + mid, high_gain + high
        if pooling is not None:
            for other in tl.static_range(1, 3):
                if ((band != other) & (band != DENSE)) | BRANCH:
                    g = pooled_value_grads(
                        g, skip, extent, pools + (wide_row * 2 + other - 1) * 2 * video,
                        tl.load(value_grad + sums_at[other] * D + summary).to(tl.float32),
                        projectors + other * SLOTS * SLOTS, projector_step, SLOTS, PARTS)
        write_tokens(grads[2] + own_grads, place * heads, live, g)
    # fmt: on
    if query_norm is not None:
        tl.store(shares[0] + (wide_row * row_shares + index) * D + channel, query_share)
    if key_norm is not None:
        tl.store(shares[1] + (wide_row * row_shares + index) * D + channel, key_share)
    if gains is not None:
        own_share = shares[2] + (wide_row * tiles + index) * 3
        tl.store(own_share, low_gain)
        tl.store(own_share + 1, mid_gain)
        tl.store(own_share + 2, high_gain)


@triton.jit
def text_grads(
    inputs,
    strides,
    buffer_grads,
    grads,
    shares,
    norms,
    text_mask,
    sizes,
    text_at,
    eps,
    TEXT_SLOTS: tl.constexpr,
    D: tl.constexpr,
):
    """Gradients of TEXT_SLOTS text tokens of one row. Arguments as in `tile_grads`.

    Args:
        norms: norm weights of queries and keys, each may be None.
        text_mask: as in `finish_rows`.
        sizes: H, R, N + X, N + X + M, N, S, T, shares of a row.
        text_at: first row of the text in the key buffer.
    """
    heads, rows, tokens, query_rows, video, key_rows, tiles, row_shares = sizes
    row, block = tl.program_id(0) % rows, tl.program_id(0) // rows
    sample, head, wide_row = row // heads, row % heads, row.to(tl.int64)
    slot = block * TEXT_SLOTS + tl.arange(0, TEXT_SLOTS)
    place, live = video + slot, slot < tokens - video
    own_grads = (sample.to(tl.int64) * tokens * heads + head) * D
    share_at = (wide_row * row_shares + tiles + block) * D + tl.arange(0, D)
    seen = seen_text(text_mask, sample, tokens - video, slot, live)
    g = given(buffer_grads[0] + wide_row * query_rows * D, place, live, D).to(tl.float32)
    if norms[0] is not None:
        raw = load_tokens(inputs[0], strides[0], sample, head, place, live, D)
        if text_mask is not None:
            raw = finite_where_masked(raw, seen)
        g, share = norm_grads(g, raw, norms[0], eps, D)
        tl.store(shares[0] + share_at, share)
    write_tokens(grads[0] + own_grads, place * heads, live, g)
    g = given(buffer_grads[1] + (wide_row * key_rows + text_at) * D, slot, live, D).to(tl.float32)
    if norms[1] is not None:
        raw = load_tokens(inputs[1], strides[1], sample, head, place, seen, D)
        g, share = norm_grads(g, raw, norms[1], eps, D)
        tl.store(shares[1] + share_at, share)
    write_tokens(grads[1] + own_grads, place * heads, live, g)
    g = given(buffer_grads[2] + (wide_row * key_rows + text_at) * D, slot, live, D).to(tl.float32)
    write_tokens(grads[2] + own_grads, place * heads, live, g)
