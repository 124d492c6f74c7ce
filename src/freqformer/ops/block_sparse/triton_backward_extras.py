"""The Triton kernels of block-sparse attention, backward: gradients of low tokens, summaries and
text keys.

Every query of a row sees them, so a row's queries are taken in parts and the parts' sums are joined
in order. See `triton_backward_queries`.
"""

from __future__ import annotations

import triton
import triton.language as tl

from freqformer.ops.block_sparse.triton_backward_keys import key_step, statistics_of
from freqformer.ops.block_sparse.triton_backward_queries import key_bias
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


@triton.jit(
    do_not_specialize=[
        *SIZES[:5],
        "mid_bias_step",
        "region_at",
        "region_rows",
        *PLACES[:7],
        "parts",
    ]
)
def extra_grads_kernel(
    query,
    key,
    value,
    grad,
    log_sums,
    deltas,
    rests,
    grad_key,
    grad_value,
    partial,
    order,
    allocation,
    tile_offsets,
    tile_counts,
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
    mid_bias_step,
    region_at,
    region_rows,
    parts,
    statistic_rows,
    HEAD_DIM: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr,
    QUERY_BLOCKS: tl.constexpr,
    TILE_TOKENS: tl.constexpr,
    BRANCH: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Gradients of one block of summaries or text keys of one row from a part of its queries, or of
    one of low tokens.

    Args:
        partial: what the parts give to keys and values, float32 (R, parts, E, D) each, and their
            slopes, float32 (R, 3, blocks of cells, parts), None without learned offsets.
        region_at, region_rows: the first of these rows in the key buffer, and E.
        parts: of the queries of a row: every query sees these keys, and few programs would take
            long.
    """
    low_bias, high_bias, mid_bias, summary_offsets = biases
    part_key, part_value, part_offsets = partial
    cell_blocks = tl.cdiv(cells, BLOCK_K)
    learned_blocks = tl.where(mid_sums_at >= 0, cell_blocks, 0)
    text_first = cell_blocks + 2 * learned_blocks
    per_row = (text_first + tl.cdiv(num_text, BLOCK_K)) * parts
    program = tl.program_id(0)
    is_low = program >= rows * per_row
    if is_low:
        program -= rows * per_row
        per_row = tl.cdiv(num_low, BLOCK_K)
    row = tl.load(order + program // per_row)
    block, part = program % per_row, 0
    band = tl.load(allocation + row)
    kind, shift, bias_step, text_queries = 3, 0.0, 0, 0
    bias, at, left = low_bias, low_at, num_low
    seen = (band == LOW) | BRANCH
    if not is_low:
        block, part = block // parts, block % parts
        if block < cell_blocks:
            kind, at, left = 0, low_sums_at, cells
            seen = (band == MID) | (band == HIGH)
            bias_step = cells
            if high_bias is not None:
                bias = high_bias
            if mid_bias is not None:
                if band == MID:
                    bias = mid_bias + row.to(tl.int64) * mid_bias_step * tiles * cells
        elif block < cell_blocks + learned_blocks:
            block -= cell_blocks
            kind, at, left = 1, mid_sums_at, cells
            seen = (band == LOW) | (band == HIGH) | BRANCH
        elif block < text_first:
            block -= cell_blocks + learned_blocks
            kind, at, left = 2, high_sums_at, cells
            seen = (band == LOW) | (band == MID) | BRANCH
        else:
            block -= text_first
            at, left, seen = text_at, num_text, True
            if part == parts - 1:
                text_queries = num_text
    if not seen:
        return
    if summary_offsets is not None:
        if kind < 3:
            shift = tl.load(summary_offsets + row * 3 + kind).to(tl.float32) * LOG2_E

    first_low = num_tokens + num_text
    query_rows = first_low + num_low
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
    own = tl.arange(0, BLOCK_K)
    skip = block * BLOCK_K
    k = load_block(key, key_at + at + skip, None, BLOCK_K, HEAD_DIM, DESCRIPTORS)
    v = load_block(value, key_at + at + skip, None, BLOCK_K, HEAD_DIM, DESCRIPTORS)
    sums = (tl.zeros([BLOCK_K, HEAD_DIM], tl.float32), tl.zeros([BLOCK_K, HEAD_DIM], tl.float32))
    sources = (query, grad)
    slopes = tl.zeros([BLOCK_K], tl.float32)
    if text_mask is not None:
        text_mask += row // heads * num_text

    # Three runs of query blocks: the tiles that see these keys, QUERY_BLOCKS blocks each, the low
    # tokens, and in the last part of a text key the text.
    video_seen = (band != LOW) & (not is_low)
    low_seen = ((band == LOW) | BRANCH) & (kind != 0)
    if kind == 0:
        if mid_bias is None:
            # where MID sees every tile, no query reads its low summaries
            video_seen = video_seen & (band != MID)
    if kind == 1:
        video_seen = band == HIGH
    if kind == 2:
        video_seen = band == MID
    begin, video_steps = tiles * part // parts, 0
    if video_seen:
        video_steps = (tiles * (part + 1) // parts - begin) * QUERY_BLOCKS
    low_blocks = tl.cdiv(num_low, BLOCK_Q)
    low_begin, low_end = 0, low_blocks
    if not is_low:
        low_begin, low_end = low_blocks * part // parts, low_blocks * (part + 1) // parts
    steps = video_steps + tl.where(low_seen, low_end - low_begin, 0)
    column = tl.arange(0, BLOCK_Q)
    for step in tl.range(0, steps + tl.cdiv(text_queries, BLOCK_Q), num_stages=STAGES):
        unit = tl.where(step < video_steps, begin + step // QUERY_BLOCKS, 0)
        token, tokens = tile_extent(tile_offsets, tile_counts, unit, TILE_TOKENS)
        start, limit = token + step % QUERY_BLOCKS * BLOCK_Q, token + tokens
        if step >= video_steps:
            start = first_low + (low_begin + step - video_steps) * BLOCK_Q
            limit = query_rows
        if step >= steps:
            start, limit = num_tokens + (step - steps) * BLOCK_Q, first_low
        query_place = start + column
        live = query_place < limit
        statistics = statistics_of(log_sums, rests, deltas, query_place, live)
        in_first = is_low | (kind == 0)
        added = key_bias(
            bias + unit * bias_step, skip, own, left, shift, text_mask, in_first, text_at == at
        )
        sums, slope = key_step(
            (k, v),
            sources,
            query_at + start,
            limit,
            statistics,
            added,
            scale,
            sums,
            BLOCK_Q,
            HEAD_DIM,
            DESCRIPTORS,
        )
        slopes += tl.sum(slope, 1)

    dk, dv = sums[0] * (scale / LOG2_E), sums[1]
    held = own < left - skip
    if is_low:
        target = wide_row * key_rows + at + skip + own
        store_rows(grad_key, target, dk, held, HEAD_DIM)
        store_rows(grad_value, target, dv, held, HEAD_DIM)
    else:
        target = (wide_row * parts + part) * region_rows + at - region_at + skip + own
        store_rows(part_key, target, dk, held, HEAD_DIM)
        store_rows(part_value, target, dv, held, HEAD_DIM)
        if part_offsets is not None:
            if kind < 3:
                entry = ((row * 3 + kind) * cell_blocks + block) * parts + part
                tl.store(part_offsets + entry, tl.sum(tl.where(held, slopes, 0.0), 0))


@triton.jit(
    do_not_specialize=[
        *SIZES[:5],
        "num_low",
        "cells",
        "region_at",
        "region_rows",
        *PLACES[:7],
        "parts",
    ]
)
def join_extra_grads_kernel(
    partial,
    grad_key,
    grad_value,
    allocation,
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
    region_at,
    region_rows,
    parts,
    ROWS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BRANCH: tl.constexpr,
):
    """ROWS gradients of summaries and text keys of one row, as the sums of their parts in order.

    `partial` and the region are those of `extra_grads_kernel`.
    """
    part_key, part_value, _ = partial
    row = (tl.program_id(0) % rows).to(tl.int64)
    own = tl.program_id(0) // rows * ROWS + tl.arange(0, ROWS)
    band = tl.load(allocation + row)
    place = region_at + own
    used = (text_at >= 0) & (place >= text_at) & (place < text_at + num_text)
    if (band == MID) | (band == HIGH):
        used |= (low_sums_at >= 0) & (place >= low_sums_at) & (place < low_sums_at + cells)
    if (band == LOW) | (band == HIGH) | BRANCH:
        used |= (mid_sums_at >= 0) & (place >= mid_sums_at) & (place < mid_sums_at + cells)
    if (band == LOW) | (band == MID) | BRANCH:
        used |= (high_sums_at >= 0) & (place >= high_sums_at) & (place < high_sums_at + cells)
    dk = tl.zeros([ROWS, HEAD_DIM], tl.float32)
    dv = tl.zeros([ROWS, HEAD_DIM], tl.float32)
    for part in range(parts):
        source = ((row * parts + part) * region_rows + own)[:, None] * HEAD_DIM + tl.arange(
            0, HEAD_DIM
        )[None, :]
        dk += tl.load(part_key + source, mask=used[:, None], other=0.0)
        dv += tl.load(part_value + source, mask=used[:, None], other=0.0)
    target = row * key_rows + place
    store_rows(grad_key, target, dk, used, HEAD_DIM)
    store_rows(grad_value, target, dv, used, HEAD_DIM)
