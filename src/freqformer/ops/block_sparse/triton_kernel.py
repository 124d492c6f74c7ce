"""The Triton kernels of block-sparse attention, forward: `triton.py` holds the host side, README.md
the derivation.

Logits are kept in base 2: `scale` is log2(e) / sqrt(head_dim), and biases are multiplied by
log2(e). An argument that is None is absent from the compiled kernel.
"""

from __future__ import annotations

import triton
import triton.language as tl

from freqformer.ops.block_sparse.triton_blocks import (
    HIGH,
    LN_2,
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
from freqformer.ops.block_sparse.triton_softmax import MASKED, accumulate, product, scaled
from freqformer.ops.jit import cast


@triton.jit
def _attend_tiles(
    q,
    state,
    key,
    value,
    seen,
    scale,
    HEAD_DIM: tl.constexpr,
    BLOCK_K: tl.constexpr,
    TILE_BLOCKS: tl.constexpr,
    TILE_TOKENS: tl.constexpr,
    SAFE: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
    STAGES: tl.constexpr,
):
    """The softmax state after the exact tokens of the listed tiles."""
    acc, top, total = state
    key_at, listed, length, tile_offsets, tile_counts = seen
    column = tl.arange(0, BLOCK_K)
    # Where the keys of the next step lie is loaded a step ahead, and the tile of the step after it.
    steps = length * TILE_BLOCKS
    tile = tl.load(listed, mask=steps > 0, other=0)
    token, tokens = tile_extent(tile_offsets, tile_counts, tile, TILE_TOKENS)  # pyright: ignore[reportGeneralTypeIssues]
    tile = tl.load(listed + 1 // TILE_BLOCKS, mask=steps > 1, other=0)
    for step in tl.range(0, steps, num_stages=STAGES):
        skip = step % TILE_BLOCKS * BLOCK_K
        at, left = key_at + token + skip, tokens - skip
        token, tokens = tile_extent(tile_offsets, tile_counts, tile, TILE_TOKENS)  # pyright: ignore[reportGeneralTypeIssues]
        tile = tl.load(listed + tl.minimum(step + 2, steps - 1) // TILE_BLOCKS)
        logits = product(q, load_block(key, at, None, BLOCK_K, HEAD_DIM, DESCRIPTORS))
        if TILE_TOKENS != TILE_BLOCKS * BLOCK_K:
            # Columns below SAFE are masked in short tiles alone: the compiler drops the first mask
            # there.
            logits = tl.where((column < SAFE)[None, :] | (column < left)[None, :], logits, MASKED)
            if left < SAFE:
                logits = tl.where(column[None, :] < left, logits, MASKED)
        v = load_block(value, at, None, BLOCK_K, HEAD_DIM, DESCRIPTORS)
        if v.dtype == tl.float32:
            acc, top, total = accumulate(
                scaled(logits, scale, tl.zeros([1, 1], tl.float32)), 1.0, v, acc, top, total, False
            )
        else:
            acc, top, total = accumulate(logits, scale, v, acc, top, total, False)
    return acc, top, total


@triton.jit
def _attend_extras(
    q,
    state,
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
    """The softmax state after low tokens or low summaries, mid summaries, high summaries and text.

    Each has its bias, less the `common` bias of the keys before them, which they were spared.
    """
    acc, top, total = state
    first, mid_sums, high_sums, text, common = extras
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
        at, shift = at + key_at + skip, shift - common
        place = skip + column
        bias = tl.load(
            first_bias + place, mask=(place < first_count) & (step < first_end), other=0.0
        )
        # Not `place < left`, which the compiler would carry through its pipeline in registers.
        seen = column < left - skip
        if text_mask is not None:
            visible = tl.load(
                text_mask + place, mask=(place < text_count) & (step >= high_end), other=1
            )
            seen &= visible != 0
        bias = tl.where(seen, bias * LOG2_E + shift, MASKED)
        logits = product(q, load_block(key, at, None, BLOCK_K, HEAD_DIM, DESCRIPTORS))
        v = load_block(value, at, None, BLOCK_K, HEAD_DIM, DESCRIPTORS)
        if v.dtype == tl.float32:
            logits = scaled(logits, scale, bias[None, :])
        else:
            logits = logits * scale + bias[None, :]
        acc, top, total = accumulate(logits, 1.0, v, acc, top, total, True)
    return acc, top, total


# Not compiled anew for what divides these, or nearly every grid would; for biases it makes wider
# loads.
@triton.jit(do_not_specialize=SIZES + PLACES)
def attention_kernel(
    query,
    key,
    value,
    outputs,
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
    high_length,
    mid_length,
    mid_step,
    mid_bias_step,
    low_at,
    low_sums_at,
    mid_sums_at,
    high_sums_at,
    text_at,
    exact_at,
    key_rows,
    text_parts,
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
    """One block of queries of one row: over its listed tiles, then over low tokens, summaries and
    text.

    LOWS: whether any row may have low queries: LOW rows do in place of video queries. BRANCH:
    whether every row does, for the LOW branch of its head.
    """
    out, raster, low_out, lse, part_out, part_lse, remainder = outputs
    first_low = num_tokens + num_text
    query_rows = first_low + num_low
    program = tl.program_id(0)
    is_text, is_low = False, False
    per_row = tiles * QUERY_BLOCKS
    if TEXT:
        # Text queries see everything, in parts: the longest lists, so they start first.
        text_tasks = tl.cdiv(num_text, BLOCK_Q) * text_parts
        is_text = program < rows * text_tasks
        per_row = tl.where(is_text, text_tasks, per_row)
        program -= tl.where(is_text, 0, rows * text_tasks)
    if LOWS:
        # Low queries see all low tokens, mostly more keys than a window or a choice of tiles holds.
        low_tasks = tl.cdiv(num_low, BLOCK_Q)
        is_low = (program < rows * low_tasks) & (not is_text)
        per_row = tl.where(is_low, low_tasks, per_row)
        if not is_text:
            program -= tl.where(is_low, 0, rows * low_tasks)
    row = tl.load(order + program // per_row)
    block = program % per_row
    band = tl.load(allocation + row)
    head = row % heads
    if DESCRIPTORS:
        query_at, key_at = row * query_rows, row * key_rows
    else:
        query += row.to(tl.int64) * query_rows * HEAD_DIM
        key += row.to(tl.int64) * key_rows * HEAD_DIM
        value += row.to(tl.int64) * key_rows * HEAD_DIM
        query_at, key_at = 0, 0

    every_tile, high_lists, mid_lists, mid_lengths = lists
    lists = (every_tile, high_lists, high_length, mid_lists, mid_lengths, mid_length, mid_step)
    low_bias, high_bias, mid_bias, summary_offsets = biases
    biases = (low_bias, high_bias, mid_bias, mid_bias_step, summary_offsets)
    sums_at = (low_sums_at, mid_sums_at, high_sums_at)
    listed, length, video_at, part, text_count = every_tile, 0, key_at, 0, num_text
    first, mid_sums, high_sums = (text_at, 0, low_bias, 0.0), (text_at, 0, 0.0), (text_at, 0, 0.0)
    common = 0.0
    if is_text:
        part = block % text_parts
        start = num_tokens + block // text_parts * BLOCK_Q
        count = first_low - start
        begin = tiles * part // text_parts
        listed, length = every_tile + begin, tiles * (part + 1) // text_parts - begin
        if (band == MID) | (band == HIGH):
            video_at = key_at + exact_at
        if part > 0:
            text_count = 0
    elif is_low:
        start = first_low + block * BLOCK_Q
        count = query_rows - start
        if not BRANCH:
            count = tl.where(band == LOW, count, 0)
        _, mid_sums, high_sums = seen_summaries(  # pyright: ignore[reportGeneralTypeIssues]
            LOW, row, block, tiles, cells, sums_at, biases
        )
        if (TILE_TOKENS == TILE_BLOCKS * BLOCK_K) and (out.dtype.element_ty != tl.float32):
            # Every tile is full, so all low tokens have one bias: whole blocks of them go as tiles
            # do, without it.
            common = tl.load(low_bias) * LOG2_E
            video_at, length = key_at + low_at, num_low // TILE_TOKENS
            passed = length * TILE_TOKENS
            first = (low_at + passed, num_low - passed, low_bias + passed, 0.0)
        else:
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

    q = load_block(query, query_at + start, query_rows, BLOCK_Q, HEAD_DIM, DESCRIPTORS)
    target = start + tl.arange(0, BLOCK_Q)
    written = tl.arange(0, BLOCK_Q) < count
    if raster is not None:
        # Loaded now, since the store at the end would wait for it.
        if (not is_text) & (not is_low):
            target = tl.load(raster + target, mask=written, other=0)
    top = tl.full([BLOCK_Q], MASKED, tl.float32)
    total = tl.zeros([BLOCK_Q], tl.float32)
    state = (tl.zeros([BLOCK_Q, HEAD_DIM], tl.float32), top, total)
    seen = (video_at, listed, length, tile_offsets, tile_counts)
    state = _attend_tiles(
        q,
        state,
        key,
        value,
        seen,
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
    extras = (first, mid_sums, high_sums, (text_at, text_count), common)
    acc, top, total = _attend_extras(
        q,
        state,
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

    # A query that saw no key: zeros, and the logarithm of no weight.
    some = total > 0
    total = tl.where(some, total, 1.0)
    acc = acc * (1.0 / total)[:, None]
    log_sum = tl.where(some, (top + common + tl.log2(total)) * LN_2, MASKED)
    if part_out is not None:
        if is_text:
            target += (row * text_parts + part) * num_text - num_tokens
            tl.store(part_lse + target, log_sum, mask=written)
            store_rows(part_out, target, acc, written, HEAD_DIM)
            return
    own = row.to(tl.int64) * query_rows + start + tl.arange(0, BLOCK_Q)
    tl.store(lse + own, log_sum, mask=written)
    if remainder is not None:
        # What the backward needs to the last bit where few keys take nearly all weight.
        if remainder.dtype.element_ty == tl.float32:
            tl.store(remainder + own * 2, tl.where(some, top, MASKED), mask=written)
            tl.store(remainder + own * 2 + 1, tl.where(some, 1.0 / total, 0.0), mask=written)
        else:
            store_rows(
                remainder,
                own,
                acc - cast(acc, remainder.dtype.element_ty).to(tl.float32),
                written,
                HEAD_DIM,
            )
    matrix, begin, hop = out, (row // heads).to(tl.int64) * first_low * heads + head, heads
    # Asked anew, not remembered: a scalar that lives through the loop costs the loop a register.
    if start >= num_tokens + num_text:
        matrix, begin, hop = low_out, row.to(tl.int64) * num_low - num_tokens - num_text, 1
    store_rows(matrix, begin + target.to(tl.int64) * hop, acc, written, HEAD_DIM)
