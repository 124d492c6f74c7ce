"""The Triton kernels of block-sparse attention, backward: gradients of queries. `triton_backward.py` holds the host side.

With the weights w_ij = exp(logit_ij - lse_i) computed again from the log-sum-exp, and delta_i = out_i . grad_i:

    slope_ij = w_ij (v_j . grad_i - delta_i)      the gradient of a logit
    grad_query_i = sum_j slope_ij k_j / sqrt(D)
    grad_key_j = sum_i slope_ij q_i / sqrt(D)     grad_value_j = sum_i w_ij grad_i

Logits are kept in base 2 as in the forward kernel. Every sum runs in a fixed order and nothing is added atomically, so that
the same inputs give the same bits. An argument that is None is absent from the compiled kernel.
"""

from __future__ import annotations

import triton
import triton.language as tl

from freqformer.ops.block_sparse.triton_kernel import (
    HIGH,
    LOG2_E,
    LOW,
    MASKED,
    MID,
    _block,
    _listed_tiles,
    _store,
)
from freqformer.ops.jit import cast, dot

UNSEEN = tl.constexpr(float("inf"))
"""The log-sum-exp of a query that counts for nothing: all its weights are 0."""


@triton.jit
def gather_grads_kernel(
    outputs, grads, targets, lse, raster, allocation, sizes, ROWS: tl.constexpr, HEAD_DIM: tl.constexpr
):
    """ROWS output gradients of one row in the places of its queries, with their log-sum-exp in base 2 and their delta.

    Args:
        outputs, grads: out (B, N + X, H, D) and low_out (R, M, D), and their gradients.
        targets: gradients (R, N + X, D) as the queries lie; log_sums and deltas, float32 (R, N + X).
        lse: float32 (R, N + X).
        raster: place in `out` of every video token in tile order; None where that is its own.
        sizes: R, H, N, X, M.
    """
    rows, heads, num_tokens, num_text, num_low = sizes
    row = (tl.program_id(0) % rows).to(tl.int64)
    place = tl.program_id(0) // rows * ROWS + tl.arange(0, ROWS)
    video = place < num_tokens
    low = video & (tl.load(allocation + row) == LOW)
    live = (place < num_tokens + num_text) & ((place < num_low) | ~low)
    source = place
    if raster is not None:
        source = tl.where(video, tl.load(raster + place, mask=live & video, other=0), place)
    query_rows = num_tokens + num_text
    at = ((row // heads * query_rows + source) * heads + row % heads)[:, None] * HEAD_DIM
    low_at = (row * num_low + place)[:, None] * HEAD_DIM
    channel = tl.arange(0, HEAD_DIM)[None, :]
    out = tl.load(tl.where(low[:, None], outputs[1] + low_at, outputs[0] + at) + channel, mask=live[:, None], other=0.0)
    grad = tl.load(tl.where(low[:, None], grads[1] + low_at, grads[0] + at) + channel, mask=live[:, None], other=0.0)
    target = row * query_rows + place
    _store(targets[0], target, grad, live, HEAD_DIM)
    log_sum = tl.load(lse + target, mask=live, other=0.0)
    tl.store(targets[1] + target, tl.where(log_sum == MASKED, UNSEEN, log_sum * LOG2_E), mask=live)
    tl.store(targets[2] + target, tl.sum(out.to(tl.float32) * grad.to(tl.float32), 1), mask=live)


@triton.jit
def key_bias(first_bias, place, seen, shift, text_mask, in_first, in_text):
    """Bias of keys in base 2: their entry of `first_bias` if they are in the first segment, -inf where not seen."""
    bias = tl.load(first_bias + place, mask=seen & in_first, other=0.0) * LOG2_E + shift
    if text_mask is not None:
        seen = seen & (tl.load(text_mask + place, mask=seen & in_text, other=1) != 0)
    return tl.where(seen, bias, MASKED)


@triton.jit
def summary_shifts(summary_offsets, head):
    """The learned offsets of the low, mid and high summaries in base 2."""
    low, mid, high = 0.0, 0.0, 0.0
    if summary_offsets is not None:
        offsets = summary_offsets + head * 3
        low = tl.load(offsets).to(tl.float32) * LOG2_E
        mid = tl.load(offsets + 1).to(tl.float32) * LOG2_E
        high = tl.load(offsets + 2).to(tl.float32) * LOG2_E
    return low, mid, high


@triton.jit
def query_grads_kernel(
    query,
    key,
    value,
    grad,
    log_sums,
    deltas,
    grad_query,
    order,
    allocation,
    tile_offsets,
    lists,
    biases,
    text_mask,
    sizes,
    segments,
    scale,
    HEAD_DIM: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr,
    QUERY_BLOCKS: tl.constexpr,
    TILE_BLOCKS: tl.constexpr,
    TILE_TOKENS: tl.constexpr,
    TEXT: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Gradients of one block of queries of one row, over the keys that the forward kernel took."""
    rows, heads, tiles, num_tokens, num_text, num_low, cells = sizes
    low_at, low_sums_at, mid_sums_at, high_sums_at, text_at, exact_at, key_rows = segments
    low_bias, high_bias, mid_bias, mid_bias_step, summary_offsets = biases
    program = tl.program_id(0)
    is_text = False
    per_row = tiles * QUERY_BLOCKS
    if TEXT:
        text_tasks = tl.cdiv(num_text, BLOCK_Q)
        is_text = program < rows * text_tasks
        per_row = tl.where(is_text, text_tasks, per_row)
        program -= tl.where(is_text, 0, rows * text_tasks)
    row = tl.load(order + program // per_row)
    block = program % per_row
    band = tl.load(allocation + row)

    video_at = 0
    first_at, first_count, first_bias, first_shift = text_at, 0, low_bias, 0.0
    listed, length = lists[0], 0
    if is_text:
        start, count = num_tokens + block * BLOCK_Q, num_text - block * BLOCK_Q
        length = tiles
        if (band == MID) | (band == HIGH):
            video_at = exact_at
    elif band == LOW:
        start, count = block * BLOCK_Q, num_low - block * BLOCK_Q
        first_at, first_count = low_at, num_low
    else:
        skip = block % QUERY_BLOCKS * BLOCK_Q
        block = block // QUERY_BLOCKS
        if TILE_TOKENS > 0:
            start, count = block * TILE_TOKENS + skip, TILE_TOKENS - skip
        else:
            token = tl.load(tile_offsets + block)
            start, count = token + skip, tl.load(tile_offsets + block + 1) - token - skip
        listed, length = _listed_tiles(  # pyright: ignore[reportGeneralTypeIssues]
            band, row, block, tiles, lists
        )
    if count <= 0:
        return  # a LOW row has fewer query blocks than tiles, and a short tile fewer than a full one

    mid_count, high_count, mid_shift, high_shift = 0, 0, 0.0, 0.0
    if high_bias is not None:
        if (not is_text) & (band <= HIGH):
            low_shift, mid_shift, high_shift = summary_shifts(  # pyright: ignore[reportGeneralTypeIssues]
                summary_offsets, row % heads
            )
            if band != LOW:
                first_shift = low_shift
            if band == HIGH:
                first_at, first_count, first_bias = low_sums_at, cells, high_bias + block * cells
            if mid_bias is not None:
                if band == MID:
                    first_at, first_count = low_sums_at, cells
                    first_bias = mid_bias + (row.to(tl.int64) * mid_bias_step * tiles + block) * cells
            if mid_sums_at >= 0:
                mid_count = tl.where(band == MID, 0, cells)
                high_count = tl.where(band == HIGH, 0, cells)

    query_rows = num_tokens + num_text
    if DESCRIPTORS:
        query_at, key_at = row * query_rows, row * key_rows
    else:
        query += row.to(tl.int64) * query_rows * HEAD_DIM
        grad += row.to(tl.int64) * query_rows * HEAD_DIM
        key += row.to(tl.int64) * key_rows * HEAD_DIM
        value += row.to(tl.int64) * key_rows * HEAD_DIM
        query_at, key_at = 0, 0
    place = start + tl.arange(0, BLOCK_Q)
    live = tl.arange(0, BLOCK_Q) < count
    target = row.to(tl.int64) * query_rows + place
    q = _block(query, query_at + start, start + count, BLOCK_Q, HEAD_DIM, DESCRIPTORS)
    g = _block(grad, query_at + start, start + count, BLOCK_Q, HEAD_DIM, DESCRIPTORS)
    log_sum = tl.load(log_sums + target, mask=live, other=UNSEEN)
    delta = tl.load(deltas + target, mask=live, other=0.0)
    acc = tl.zeros([BLOCK_Q, HEAD_DIM], tl.float32)
    column = tl.arange(0, BLOCK_K)

    for step in tl.range(0, length * TILE_BLOCKS, num_stages=STAGES):
        tile = tl.load(listed + step // TILE_BLOCKS)
        skip = step % TILE_BLOCKS * BLOCK_K
        if TILE_TOKENS > 0:
            at, left = key_at + video_at + tile * TILE_TOKENS + skip, TILE_TOKENS - skip
        else:
            token = tl.load(tile_offsets + tile)
            at, left = key_at + video_at + token + skip, tl.load(tile_offsets + tile + 1) - token - skip
        k = _block(key, at, None, BLOCK_K, HEAD_DIM, DESCRIPTORS)
        v = _block(value, at, None, BLOCK_K, HEAD_DIM, DESCRIPTORS)
        logits = dot(q, k.T, None)
        if TILE_TOKENS != TILE_BLOCKS * BLOCK_K:
            if left < BLOCK_K:
                logits = tl.where(column[None, :] < left, logits, MASKED)
        weight = tl.exp2(logits * scale - log_sum[:, None])
        slope = weight * (dot(g, v.T, None) - delta[:, None])
        acc = dot(cast(slope, k.dtype), k, acc)

    first_end = tl.cdiv(first_count, BLOCK_K)
    mid_end = first_end + tl.cdiv(mid_count, BLOCK_K)
    high_end = mid_end + tl.cdiv(high_count, BLOCK_K)
    for step in tl.range(0, high_end + tl.cdiv(num_text, BLOCK_K), num_stages=STAGES):
        at, left, begin, shift = first_at, first_count, 0, first_shift
        if step >= first_end:
            at, left, begin, shift = mid_sums_at, cells, first_end, mid_shift
        if step >= mid_end:
            at, left, begin, shift = high_sums_at, cells, mid_end, high_shift
        if step >= high_end:
            at, left, begin, shift = text_at, num_text, high_end, 0.0
        own = (step - begin) * BLOCK_K + column
        mask = text_mask
        if text_mask is not None:
            mask = text_mask + row // heads * num_text
        bias = key_bias(first_bias, own, own < left, shift, mask, step < first_end, step >= high_end)
        at += key_at + (step - begin) * BLOCK_K
        k = _block(key, at, None, BLOCK_K, HEAD_DIM, DESCRIPTORS)
        v = _block(value, at, None, BLOCK_K, HEAD_DIM, DESCRIPTORS)
        logits = dot(q, k.T, None)
        weight = tl.exp2(logits * scale + bias[None, :] - log_sum[:, None])
        slope = weight * (dot(g, v.T, None) - delta[:, None])
        acc = dot(cast(slope, k.dtype), k, acc)

    _store(grad_query, target, acc * (scale / LOG2_E), live, HEAD_DIM)
