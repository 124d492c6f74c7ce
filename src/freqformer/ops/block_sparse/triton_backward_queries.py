"""The Triton kernels of block-sparse attention, backward: gradients of queries.
`triton_backward.py` holds the host side.

With the weights w_ij = exp(logit_ij - lse_i) computed again from the log-sum-exp, and delta_i =
out_i . grad_i:

    slope_ij = w_ij (v_j . grad_i - delta_i)      the gradient of a logit
    grad_query_i = sum_j slope_ij k_j / sqrt(D)
    grad_key_j = sum_i slope_ij q_i / sqrt(D)     grad_value_j = sum_i w_ij grad_i

Logits are kept in base 2 as in the forward kernel. Every sum runs in a fixed order and nothing is
added atomically, so that the same inputs give the same bits. An argument that is None is absent
from the compiled kernel.
"""

from __future__ import annotations

import triton
import triton.language as tl

from freqformer.ops.block_sparse.triton_blocks import (
    HIGH,
    LOG2_E,
    LOW,
    MID,
    PLACES,
    SIZES,
    listed_tiles,
    load_block,
    seen_summaries,
    store_rows,
    tile_extent,
)
from freqformer.ops.block_sparse.triton_softmax import MASKED, add_product, exp2, product, scaled

UNSEEN = tl.constexpr(float("inf"))
"""The log-sum-exp of a query that counts for nothing: all its weights are 0."""


@triton.jit
def _tile_slopes(
    acc,
    queries,
    key,
    value,
    key_at,
    listed,
    length,
    tile_offsets,
    tile_counts,
    scale,
    HEAD_DIM: tl.constexpr,
    BLOCK_K: tl.constexpr,
    TILE_BLOCKS: tl.constexpr,
    TILE_TOKENS: tl.constexpr,
    SAFE: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
    STAGES: tl.constexpr,
):
    """acc plus slopes times keys over the exact tokens of the listed tiles."""
    q, g, log_sum, rest, delta = queries
    column = tl.arange(0, BLOCK_K)
    # As in the forward kernel, a step knows where its keys lie, and the next tile is on its way.
    steps = length * TILE_BLOCKS
    tile = tl.load(listed, mask=steps > 0, other=0)
    token, tokens = tile_extent(tile_offsets, tile_counts, tile, TILE_TOKENS)  # pyright: ignore[reportGeneralTypeIssues]
    tile = tl.load(listed + 1 // TILE_BLOCKS, mask=steps > 1, other=0)
    for step in tl.range(0, steps, num_stages=STAGES):
        skip = step % TILE_BLOCKS * BLOCK_K
        at, left = key_at + token + skip, tokens - skip
        token, tokens = tile_extent(tile_offsets, tile_counts, tile, TILE_TOKENS)  # pyright: ignore[reportGeneralTypeIssues]
        tile = tl.load(listed + tl.minimum(step + 2, steps - 1) // TILE_BLOCKS)
        k = load_block(key, at, None, BLOCK_K, HEAD_DIM, DESCRIPTORS)
        v = load_block(value, at, None, BLOCK_K, HEAD_DIM, DESCRIPTORS)
        logits = product(q, k)
        if TILE_TOKENS != TILE_BLOCKS * BLOCK_K:
            logits = tl.where((column < SAFE)[None, :] | (column < left)[None, :], logits, MASKED)
            if left < SAFE:
                logits = tl.where(column[None, :] < left, logits, MASKED)
        if q.dtype == tl.float32:
            weight = (
                exp2(scaled(logits, scale, tl.zeros([1, 1], tl.float32)) - log_sum[:, None], True)
                * rest[:, None]
            )
        else:
            weight = tl.exp2(logits * scale - log_sum[:, None])
        slope = weight * (product(g, v) - delta[:, None])
        acc = add_product(acc, slope, k)
    return acc


@triton.jit
def _extra_slopes(
    acc,
    queries,
    key,
    value,
    key_at,
    extras,
    text_mask,
    scale,
    HEAD_DIM: tl.constexpr,
    BLOCK_K: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
    STAGES: tl.constexpr,
):
    """acc plus slopes times keys over low tokens or low summaries, mid summaries, high summaries
    and text."""
    q, g, log_sum, rest, delta = queries
    first, mid_sums, high_sums, text = extras
    first_at, first_count, first_bias, first_shift = first
    mid_at, mid_count, mid_shift = mid_sums
    high_at, high_count, high_shift = high_sums
    text_at, text_count = text
    column = tl.arange(0, BLOCK_K)
    first_end = tl.cdiv(first_count, BLOCK_K)
    mid_end = first_end + tl.cdiv(mid_count, BLOCK_K)
    high_end = mid_end + tl.cdiv(high_count, BLOCK_K)
    for step in tl.range(0, high_end + tl.cdiv(text_count, BLOCK_K), num_stages=STAGES):
        at, left, begin, shift = first_at, first_count, 0, first_shift
        if step >= first_end:
            at, left, begin, shift = mid_at, mid_count, first_end, mid_shift
        if step >= mid_end:
            at, left, begin, shift = high_at, high_count, mid_end, high_shift
        if step >= high_end:
            at, left, begin, shift = text_at, text_count, high_end, 0.0
        skip = (step - begin) * BLOCK_K
        at += key_at + skip
        bias = key_bias(
            first_bias, skip, column, left, shift, text_mask, step < first_end, step >= high_end
        )
        k = load_block(key, at, None, BLOCK_K, HEAD_DIM, DESCRIPTORS)
        v = load_block(value, at, None, BLOCK_K, HEAD_DIM, DESCRIPTORS)
        logits = product(q, k)
        if q.dtype == tl.float32:
            weight = (
                exp2(scaled(logits, scale, bias[None, :]) - log_sum[:, None], True) * rest[:, None]
            )
        else:
            # The log-sum-exp first: the difference is small, and the bias is added to its last bit.
            weight = tl.exp2(logits * scale - log_sum[:, None] + bias[None, :])
        slope = weight * (product(g, v) - delta[:, None])
        acc = add_product(acc, slope, k)
    return acc


@triton.jit
def key_bias(first_bias, skip, column, left, shift, text_mask, in_first, in_text):
    """Bias in base 2 of the keys `skip + column` of a segment that holds `left`; -inf for those
    behind it, or masked text.

    Keys of the first segment have their entry of `first_bias` beside `shift`.
    """
    place = skip + column
    seen = column < left - skip
    bias = tl.load(first_bias + place, mask=seen & in_first, other=0.0)
    if text_mask is not None:
        seen &= tl.load(text_mask + place, mask=seen & in_text, other=1) != 0
    return tl.where(seen, bias * LOG2_E + shift, MASKED)


# As in the forward kernel, one compilation serves many grids.
@triton.jit(
    do_not_specialize=[
        *SIZES[:5],
        "high_length",
        "mid_length",
        "mid_step",
        "mid_bias_step",
        *PLACES[:7],
    ]
)
def query_grads_kernel(
    query,
    key,
    value,
    grad,
    log_sums,
    deltas,
    rests,
    grad_query,
    order,
    allocation,
    tile_offsets,
    tile_counts,
    lists,
    biases,
    text_mask,
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
    high_length,
    mid_length,
    mid_step,
    mid_bias_step,
    statistic_rows,
    HEAD_DIM: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr,
    QUERY_BLOCKS: tl.constexpr,
    TILE_BLOCKS: tl.constexpr,
    TILE_TOKENS: tl.constexpr,
    SAFE: tl.constexpr,
    TEXT: tl.constexpr,
    LOWS: tl.constexpr,
    BRANCH: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Gradients of one block of queries of one row, over the keys that the forward kernel took."""
    sums_at = (low_sums_at, mid_sums_at, high_sums_at)
    every_tile, high_lists, mid_lists, mid_lengths = lists
    lists = (every_tile, high_lists, high_length, mid_lists, mid_lengths, mid_length, mid_step)
    low_bias, high_bias, mid_bias, summary_offsets = biases
    biases = (low_bias, high_bias, mid_bias, mid_bias_step, summary_offsets)
    first_low = num_tokens + num_text
    query_rows = first_low + num_low
    program = tl.program_id(0)
    is_text, is_low = False, False
    per_row = tiles * QUERY_BLOCKS
    if TEXT:
        # Text queries see everything: the longest lists, so they start first.
        text_tasks = tl.cdiv(num_text, BLOCK_Q)
        is_text = program < rows * text_tasks
        per_row = tl.where(is_text, text_tasks, per_row)
        program -= tl.where(is_text, 0, rows * text_tasks)
    if LOWS:
        low_tasks = tl.cdiv(num_low, BLOCK_Q)
        is_low = (program < rows * low_tasks) & (not is_text)
        per_row = tl.where(is_low, low_tasks, per_row)
        if not is_text:
            program -= tl.where(is_low, 0, rows * low_tasks)
    row = tl.load(order + program // per_row)
    block = program % per_row
    band = tl.load(allocation + row)

    if DESCRIPTORS:
        query_at, key_at = row * query_rows, row * key_rows
    else:
        query += row.to(tl.int64) * query_rows * HEAD_DIM
        grad += row.to(tl.int64) * query_rows * HEAD_DIM
        key += row.to(tl.int64) * key_rows * HEAD_DIM
        value += row.to(tl.int64) * key_rows * HEAD_DIM
        query_at, key_at = 0, 0

    listed, length, video_at = every_tile, 0, key_at
    first, mid_sums, high_sums = (text_at, 0, low_bias, 0.0), (text_at, 0, 0.0), (text_at, 0, 0.0)
    if is_text:
        start = num_tokens + block * BLOCK_Q
        count = first_low - start
        length = tiles
        if (band == MID) | (band == HIGH):
            video_at = key_at + exact_at
    elif is_low:
        start = first_low + block * BLOCK_Q
        count = query_rows - start
        if not BRANCH:
            count = tl.where(band == LOW, count, 0)
        _, mid_sums, high_sums = seen_summaries(  # pyright: ignore[reportGeneralTypeIssues]
            LOW, row, block, tiles, cells, sums_at, biases
        )
        first = (low_at, num_low, low_bias, 0.0)
    else:
        skip = block % QUERY_BLOCKS * BLOCK_Q
        block = block // QUERY_BLOCKS
        start, count = tile_extent(tile_offsets, tile_counts, block, TILE_TOKENS)  # pyright: ignore[reportGeneralTypeIssues]
        start, count = start + skip, count - skip
        if LOWS:
            count = tl.where(band == LOW, 0, count)
        listed, length = listed_tiles(band, row, block, tiles, lists)
        first, mid_sums, high_sums = seen_summaries(band, row, block, tiles, cells, sums_at, biases)
    if count <= 0:
        # a row without such queries, or a short tile, which has fewer blocks than a full one
        return

    live = tl.arange(0, BLOCK_Q) < count
    target = start + tl.arange(0, BLOCK_Q)
    statistic = row.to(tl.int64) * statistic_rows + target
    q = load_block(query, query_at + start, start + count, BLOCK_Q, HEAD_DIM, DESCRIPTORS)
    g = load_block(grad, query_at + start, start + count, BLOCK_Q, HEAD_DIM, DESCRIPTORS)
    log_sum = tl.load(log_sums + statistic, mask=live, other=UNSEEN)
    delta = tl.load(deltas + statistic, mask=live, other=0.0)
    rest = log_sum  # read in float32 alone
    if rests is not None:
        rest = tl.load(rests + statistic, mask=live, other=0.0)
    queries = (q, g, log_sum, rest, delta)
    acc = _tile_slopes(
        tl.zeros([BLOCK_Q, HEAD_DIM], tl.float32),
        queries,
        key,
        value,
        video_at,
        listed,
        length,
        tile_offsets,
        tile_counts,
        scale,
        HEAD_DIM,
        BLOCK_K,
        TILE_BLOCKS,
        TILE_TOKENS,
        SAFE,
        DESCRIPTORS,
        STAGES,
    )
    if text_mask is not None:
        text_mask += row // heads * num_text
    extras = (first, mid_sums, high_sums, (text_at, num_text))
    acc = _extra_slopes(
        acc,
        queries,
        key,
        value,
        key_at,
        extras,
        text_mask,
        scale,
        HEAD_DIM,
        BLOCK_K,
        DESCRIPTORS,
        STAGES,
    )
    target += row.to(tl.int64) * query_rows
    store_rows(grad_query, target, acc * (scale / LOG2_E), live, HEAD_DIM)
