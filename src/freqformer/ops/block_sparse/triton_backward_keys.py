"""The Triton kernel of block-sparse attention, backward: gradients of exact keys and values.

The mathematics is in `triton_backward_queries`.
"""

from __future__ import annotations

import triton
import triton.language as tl

from freqformer.ops.block_sparse.triton_backward_queries import UNSEEN
from freqformer.ops.block_sparse.triton_blocks import (
    HIGH,
    LOG2_E,
    LOW,
    MID,
    PLACES,
    SIZES,
    load_block,
    store_rows,
    tile_extent,
)
from freqformer.ops.block_sparse.triton_softmax import add_product, exp2, product, scaled


@triton.jit
def key_step(
    keys,
    sources,
    at,
    limit,
    statistics,
    bias,
    scale,
    sums,
    BLOCK_Q: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
):
    """Add what one block of queries gives to the gradients of keys and values; also its slopes
    (keys, queries).

    Args:
        keys: a block of keys and values.
        sources, at, limit: queries and output gradients, where the block starts, and where to read
            zeros from.
        statistics: of `statistics_of`.
        bias: of the keys, None for none.
        sums: gradients so far.
    """
    k, v = keys
    log_sum, rest, delta = statistics
    dk, dv = sums
    q = load_block(sources[0], at, limit, BLOCK_Q, HEAD_DIM, DESCRIPTORS)
    g = load_block(sources[1], at, limit, BLOCK_Q, HEAD_DIM, DESCRIPTORS)
    logits = product(k, q)
    if q.dtype == tl.float32:
        added = tl.zeros([1, 1], tl.float32) if bias is None else bias[:, None]
        weight = exp2(scaled(logits, scale, added) - log_sum[None, :], True) * rest[None, :]
    else:
        logits = logits * scale - log_sum[None, :]
        if bias is not None:
            logits += bias[:, None]
        weight = tl.exp2(logits)
    dv = add_product(dv, weight, g)
    slope = weight * (product(v, g) - delta[None, :])
    dk = add_product(dk, slope, q)
    return (dk, dv), slope


@triton.jit
def statistics_of(log_sums, rests, deltas, place, live):
    """Log-sum-exp, rest (read in float32 alone) and delta of some queries; those not live count for
    nothing."""
    if live is None:
        log_sum, delta = tl.load(log_sums + place), tl.load(deltas + place)
    else:
        log_sum = tl.load(log_sums + place, mask=live, other=UNSEEN)
        delta = tl.load(deltas + place, mask=live, other=0.0)
    rest = log_sum
    if rests is not None:
        rest = (
            tl.load(rests + place) if live is None else tl.load(rests + place, mask=live, other=0.0)
        )
    return log_sum, rest, delta


@triton.jit
def _listing_tiles(band, row, tile, tiles, lists, mid_step):
    """Where the list of query tiles that list a key tile starts, and its length."""
    every_tile, high_starts, high_queries, mid_starts, mid_queries = lists
    listed, length = every_tile, tiles
    if band == HIGH:
        begin = tl.load(high_starts + tile)
        listed, length = (
            high_queries + begin,
            (tl.load(high_starts + tile + 1) - begin).to(tl.int32),
        )
    if mid_starts is not None:
        if band == MID:
            entry = row.to(tl.int64) * mid_step * tiles + tile
            begin = tl.load(mid_starts + entry)
            listed, length = (
                mid_queries + begin,
                (tl.load(mid_starts + entry + 1) - begin).to(tl.int32),
            )
    if band == LOW:
        length = 0
    return listed, length


@triton.jit(do_not_specialize=[*SIZES[:5], "num_low", "cells", "mid_step", *PLACES[:7]])
def video_grads_kernel(
    query,
    key,
    value,
    grad,
    log_sums,
    deltas,
    rests,
    grad_key,
    grad_value,
    order,
    allocation,
    tile_offsets,
    tile_counts,
    lists,
    scale,
    rows,
    heads,
    tiles,
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
    mid_step,
    statistic_rows,
    HEAD_DIM: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr,
    QUERY_BLOCKS: tl.constexpr,
    KEY_BLOCKS: tl.constexpr,
    TILE_TOKENS: tl.constexpr,
    TEXT: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Gradients of one block of exact video keys and values of one row, over the query tiles that
    list their tile.

    Behind the programs of the video segment come as many for the exact segment, if there is one:
    text queries alone see it.
    """
    program = tl.program_id(0)
    is_exact = program >= rows * tiles * KEY_BLOCKS
    task = program % (rows * tiles * KEY_BLOCKS)
    place = tl.load(order + task // KEY_BLOCKS)
    row, tile = place // tiles, place % tiles
    band = tl.load(allocation + row)
    skip = task % KEY_BLOCKS * BLOCK_K
    token, tokens = tile_extent(tile_offsets, tile_counts, tile, TILE_TOKENS)  # pyright: ignore[reportGeneralTypeIssues]
    start, count = token + skip, tokens - skip
    listed, length = _listing_tiles(  # pyright: ignore[reportGeneralTypeIssues]
        band, row, tile, tiles, lists, mid_step
    )
    banded = (band == MID) | (band == HIGH)
    text_count = num_text
    if is_exact:
        start += exact_at
        length = 0
    if exact_at > 0:
        if banded != is_exact:
            text_count = 0
    # Keys of LOW rows and of the exact segment serve text queries alone: without those, nothing was
    # there to read.
    if (count <= 0) | ((is_exact | (band == LOW)) & (text_count == 0)):
        return

    query_rows = num_tokens + num_text + num_low
    wide_row = row.to(tl.int64)
    # Rows of the statistics start at multiples of 16, so that neighbours are loaded together.
    statistic_at = wide_row * tl.multiple_of(statistic_rows, 16)
    log_sums += statistic_at
    deltas += statistic_at
    if rests is not None:
        rests += statistic_at
    if DESCRIPTORS:
        query_at, key_at = row * query_rows, row * key_rows
    else:
        query += wide_row * query_rows * HEAD_DIM
        grad += wide_row * query_rows * HEAD_DIM
        key += wide_row * key_rows * HEAD_DIM
        value += wide_row * key_rows * HEAD_DIM
        query_at, key_at = 0, 0
    k = load_block(key, key_at + start, None, BLOCK_K, HEAD_DIM, DESCRIPTORS)
    v = load_block(value, key_at + start, None, BLOCK_K, HEAD_DIM, DESCRIPTORS)
    sums = (tl.zeros([BLOCK_K, HEAD_DIM], tl.float32), tl.zeros([BLOCK_K, HEAD_DIM], tl.float32))
    sources = (query, grad)
    column = tl.arange(0, BLOCK_Q)

    # A step knows where its queries lie, and the next tile is on its way.
    steps = length * QUERY_BLOCKS
    other = tl.load(listed, mask=steps > 0, other=0)
    token, tokens = tile_extent(tile_offsets, tile_counts, other, TILE_TOKENS)
    other = tl.load(listed + 1 // QUERY_BLOCKS, mask=steps > 1, other=0)
    for step in tl.range(0, steps, num_stages=STAGES):
        ahead = step % QUERY_BLOCKS * BLOCK_Q
        at, left = token + ahead, tokens - ahead
        token, tokens = tile_extent(tile_offsets, tile_counts, other, TILE_TOKENS)
        other = tl.load(listed + tl.minimum(step + 2, steps - 1) // QUERY_BLOCKS)
        live = None
        if TILE_TOKENS != QUERY_BLOCKS * BLOCK_Q:
            live = column < left
        statistics = statistics_of(log_sums, rests, deltas, at + column, live)
        sums, _slope = key_step(
            (k, v),
            sources,
            query_at + at,
            at + left,
            statistics,
            None,
            scale,
            sums,
            BLOCK_Q,
            HEAD_DIM,
            DESCRIPTORS,
        )
    if TEXT:
        for step in tl.range(0, tl.cdiv(text_count, BLOCK_Q), num_stages=1):
            at, left = num_tokens + step * BLOCK_Q, num_text - step * BLOCK_Q
            statistics = statistics_of(log_sums, rests, deltas, at + column, column < left)
            sums, _slope = key_step(
                (k, v),
                sources,
                query_at + at,
                at + left,
                statistics,
                None,
                scale,
                sums,
                BLOCK_Q,
                HEAD_DIM,
                DESCRIPTORS,
            )

    own = tl.arange(0, BLOCK_K)
    target = wide_row * key_rows + start + own
    store_rows(grad_key, target, sums[0] * (scale / LOG2_E), own < count, HEAD_DIM)
    store_rows(grad_value, target, sums[1], own < count, HEAD_DIM)
