"""The Triton kernels of block-sparse attention, backward: gradients of keys and values, see `triton_backward_queries`."""

from __future__ import annotations

import triton
import triton.language as tl

from freqformer.ops.block_sparse.triton_backward_queries import UNSEEN, key_bias
from freqformer.ops.block_sparse.triton_kernel import HIGH, LOG2_E, LOW, MID, _block, _extent, _store
from freqformer.ops.jit import cast, dot


@triton.jit
def _key_step(
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
    """Add what one block of queries gives to the gradients of keys and values; also its slopes (keys, queries).

    Args:
        keys: a block of keys and values.
        sources, at, limit: queries and output gradients, where the block starts, and where to read zeros from.
        statistics: of `_statistics`.
        bias: of the keys, None for none.
        sums: gradients so far.
    """
    k, v = keys
    log_sum, rest, delta = statistics
    dk, dv = sums
    q = _block(sources[0], at, limit, BLOCK_Q, HEAD_DIM, DESCRIPTORS)
    g = _block(sources[1], at, limit, BLOCK_Q, HEAD_DIM, DESCRIPTORS)
    logits = dot(k, q.T, None) * scale - log_sum[None, :]
    if bias is not None:
        logits += bias[:, None]
    if q.dtype == tl.float32:
        logits -= rest[None, :]
    weight = tl.exp2(logits)
    dv = dot(cast(weight, g.dtype), g, dv)
    slope = weight * (dot(v, g.T, None) - delta[None, :])
    dk = dot(cast(slope, q.dtype), q, dk)
    return (dk, dv), slope


@triton.jit
def _statistics(log_sums, rests, deltas, place, live):
    """Log-sum-exp, what it lacks (read in float32 alone) and delta of some queries; those not live count for nothing."""
    if live is None:
        log_sum, delta = tl.load(log_sums + place), tl.load(deltas + place)
    else:
        log_sum = tl.load(log_sums + place, mask=live, other=UNSEEN)
        delta = tl.load(deltas + place, mask=live, other=0.0)
    rest = log_sum
    if rests is not None:
        rest = tl.load(rests + place) if live is None else tl.load(rests + place, mask=live, other=0.0)
    return log_sum, rest, delta


@triton.jit
def _listing_tiles(band, row, tile, tiles, lists):
    """Where the list of query tiles that list a key tile starts, and its length."""
    every_tile, high_starts, high_queries, mid_starts, mid_queries, mid_step = lists
    listed, length = every_tile, tiles
    if band == HIGH:
        begin = tl.load(high_starts + tile)
        listed, length = high_queries + begin, (tl.load(high_starts + tile + 1) - begin).to(tl.int32)
    if mid_starts is not None:
        if band == MID:
            entry = row.to(tl.int64) * mid_step * tiles + tile
            begin = tl.load(mid_starts + entry)
            listed, length = mid_queries + begin, (tl.load(mid_starts + entry + 1) - begin).to(tl.int32)
    if band == LOW:
        length = 0
    return listed, length


@triton.jit
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
    sizes,
    segments,
    scale,
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
    """Gradients of one block of exact video keys and values of one row, over the query tiles that list their tile.

    Behind the programs of the video segment come as many for the exact segment, if there is one: text queries alone see it.
    """
    rows, _, tiles, num_tokens, num_text, _, _ = sizes
    _, _, _, exact_at, key_rows = segments
    program = tl.program_id(0)
    is_exact = program >= rows * tiles * KEY_BLOCKS
    task = program % (rows * tiles * KEY_BLOCKS)
    place = tl.load(order + task // KEY_BLOCKS)
    row, tile = place // tiles, place % tiles
    band = tl.load(allocation + row)
    skip = task % KEY_BLOCKS * BLOCK_K
    token, tokens = _extent(tile_offsets, tile_counts, tile, TILE_TOKENS)  # pyright: ignore[reportGeneralTypeIssues]
    start, count = token + skip, tokens - skip
    listed, length = _listing_tiles(  # pyright: ignore[reportGeneralTypeIssues]
        band, row, tile, tiles, lists
    )
    banded = (band == MID) | (band == HIGH)
    text_count = num_text
    if is_exact:
        start += exact_at
        length = 0
    if exact_at > 0:
        if banded != is_exact:
            text_count = 0
    # Keys of LOW rows and of the exact segment serve text queries alone: without those, nothing was there to read.
    if (count <= 0) | ((is_exact | (band == LOW)) & (text_count == 0)):
        return

    query_rows = num_tokens + num_text
    wide_row = row.to(tl.int64)
    log_sums += wide_row * query_rows
    deltas += wide_row * query_rows
    if rests is not None:
        rests += wide_row * query_rows
    if DESCRIPTORS:
        query_at, key_at = row * query_rows, row * key_rows
    else:
        query += wide_row * query_rows * HEAD_DIM
        grad += wide_row * query_rows * HEAD_DIM
        key += wide_row * key_rows * HEAD_DIM
        value += wide_row * key_rows * HEAD_DIM
        query_at, key_at = 0, 0
    k = _block(key, key_at + start, None, BLOCK_K, HEAD_DIM, DESCRIPTORS)
    v = _block(value, key_at + start, None, BLOCK_K, HEAD_DIM, DESCRIPTORS)
    sums = (tl.zeros([BLOCK_K, HEAD_DIM], tl.float32), tl.zeros([BLOCK_K, HEAD_DIM], tl.float32))
    sources = (query, grad)
    column = tl.arange(0, BLOCK_Q)

    # A step knows where its queries lie, and the next tile is on its way.
    steps = length * QUERY_BLOCKS
    other = tl.load(listed, mask=steps > 0, other=0)
    token, tokens = _extent(tile_offsets, tile_counts, other, TILE_TOKENS)
    other = tl.load(listed + 1 // QUERY_BLOCKS, mask=steps > 1, other=0)
    for step in tl.range(0, steps, num_stages=STAGES):
        ahead = step % QUERY_BLOCKS * BLOCK_Q
        at, left = token + ahead, tokens - ahead
        token, tokens = _extent(tile_offsets, tile_counts, other, TILE_TOKENS)
        other = tl.load(listed + tl.minimum(step + 2, steps - 1) // QUERY_BLOCKS)
        live = None
        if TILE_TOKENS != QUERY_BLOCKS * BLOCK_Q:
            live = column < left
        statistics = _statistics(log_sums, rests, deltas, at + column, live)
        sums, _slope = _key_step(
            (k, v), sources, query_at + at, at + left, statistics, None, scale, sums, BLOCK_Q, HEAD_DIM, DESCRIPTORS
        )
    if TEXT:
        for step in tl.range(0, tl.cdiv(text_count, BLOCK_Q), num_stages=1):
            at, left = num_tokens + step * BLOCK_Q, num_text - step * BLOCK_Q
            statistics = _statistics(log_sums, rests, deltas, at + column, column < left)
            sums, _slope = _key_step(
                (k, v), sources, query_at + at, at + left, statistics, None, scale, sums, BLOCK_Q, HEAD_DIM, DESCRIPTORS
            )

    own = tl.arange(0, BLOCK_K)
    target = wide_row * key_rows + start + own
    _store(grad_key, target, sums[0] * (scale / LOG2_E), own < count, HEAD_DIM)
    _store(grad_value, target, sums[1], own < count, HEAD_DIM)


@triton.jit
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
    sizes,
    segments,
    scale,
    parts,
    HEAD_DIM: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr,
    QUERY_BLOCKS: tl.constexpr,
    TILE_TOKENS: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Gradients of one block of summaries or text keys of one row from a part of its queries, or of one of low tokens.

    Args:
        partial: what the parts give to keys and values, float32 (R, parts, E, D) each; the first of these E rows of the key
            buffer; E; and their slopes, float32 (R, 3, blocks of cells, parts), None without learned offsets.
        parts: of the queries of a row: every query sees these keys, and few programs would take long.
    """
    rows, heads, tiles, num_tokens, num_text, num_low, cells = sizes
    low_at, sums_at, text_at, _, key_rows = segments
    low_sums_at, mid_sums_at, high_sums_at = sums_at
    low_bias, high_bias, mid_bias, mid_bias_step, summary_offsets = biases
    part_key, part_value, region_at, region_rows, part_offsets = partial
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
    seen = band == LOW
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
            seen = (band == LOW) | (band == HIGH)
        elif block < text_first:
            block -= cell_blocks + learned_blocks
            kind, at, left = 2, high_sums_at, cells
            seen = (band == LOW) | (band == MID)
        else:
            block -= text_first
            at, left, seen = text_at, num_text, True
            if part == parts - 1:
                text_queries = num_text
    if not seen:
        return
    if summary_offsets is not None:
        if kind < 3:
            shift = tl.load(summary_offsets + row % heads * 3 + kind).to(tl.float32) * LOG2_E

    query_rows = num_tokens + num_text
    wide_row = row.to(tl.int64)
    log_sums += wide_row * query_rows
    deltas += wide_row * query_rows
    if rests is not None:
        rests += wide_row * query_rows
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
    k = _block(key, key_at + at + skip, None, BLOCK_K, HEAD_DIM, DESCRIPTORS)
    v = _block(value, key_at + at + skip, None, BLOCK_K, HEAD_DIM, DESCRIPTORS)
    sums = (tl.zeros([BLOCK_K, HEAD_DIM], tl.float32), tl.zeros([BLOCK_K, HEAD_DIM], tl.float32))
    sources = (query, grad)
    slopes = tl.zeros([BLOCK_K], tl.float32)
    if text_mask is not None:
        text_mask += row // heads * num_text

    # Queries come in units: blocks of low tokens, or tiles of QUERY_BLOCKS blocks.
    units, blocks = tiles, QUERY_BLOCKS
    if band == LOW:
        units, blocks = tl.cdiv(num_low, BLOCK_Q), 1
    begin, end = 0, units
    if not is_low:
        begin, end = units * part // parts, units * (part + 1) // parts
        if mid_bias is None:
            if (band == MID) & (kind == 0):
                end = begin  # where MID sees every tile, no query reads its low summaries
    steps = (end - begin) * blocks
    column = tl.arange(0, BLOCK_Q)
    for step in tl.range(0, steps + tl.cdiv(text_queries, BLOCK_Q), num_stages=STAGES):
        unit = begin + step // blocks
        first = unit * BLOCK_Q
        limit = num_low
        if band != LOW:
            unit = tl.where(step < steps, unit, 0)
            token, tokens = _extent(tile_offsets, tile_counts, unit, TILE_TOKENS)
            first, limit = token + step % blocks * BLOCK_Q, token + tokens
        if step >= steps:
            first, limit = num_tokens + (step - steps) * BLOCK_Q, query_rows
        start = first
        if DESCRIPTORS:
            # Behind the low tokens of a row may lie anything: its last block starts earlier, and skips what it saw before.
            if band == LOW:
                if step < steps:
                    start = tl.minimum(first, num_low - BLOCK_Q)
        query_place = start + column
        live = (query_place >= first) & (query_place < limit)
        statistics = _statistics(log_sums, rests, deltas, query_place, live)
        in_first = is_low | (kind == 0)
        added = key_bias(bias + unit * bias_step, skip, own, left, shift, text_mask, in_first, text_at == at)
        sums, slope = _key_step(
            (k, v), sources, query_at + start, limit, statistics, added, scale, sums, BLOCK_Q, HEAD_DIM, DESCRIPTORS
        )
        slopes += tl.sum(slope, 1)

    dk, dv = sums[0] * (scale / LOG2_E), sums[1]
    held = own < left - skip
    if is_low:
        target = wide_row * key_rows + at + skip + own
        _store(grad_key, target, dk, held, HEAD_DIM)
        _store(grad_value, target, dv, held, HEAD_DIM)
    else:
        target = (wide_row * parts + part) * region_rows + at - region_at + skip + own
        _store(part_key, target, dk, held, HEAD_DIM)
        _store(part_value, target, dv, held, HEAD_DIM)
        if part_offsets is not None:
            if kind < 3:
                entry = ((row * 3 + kind) * cell_blocks + block) * parts + part
                tl.store(part_offsets + entry, tl.sum(tl.where(held, slopes, 0.0), 0))


@triton.jit
def join_extra_grads_kernel(
    partial, grad_key, grad_value, allocation, sizes, segments, parts, ROWS: tl.constexpr, HEAD_DIM: tl.constexpr
):
    """ROWS gradients of summaries and text keys of one row, as the sums of their parts in order.

    `partial` is that of `extra_grads_kernel`.
    """
    rows, _, _, _, num_text, _, cells = sizes
    _, sums_at, text_at, _, key_rows = segments
    low_sums_at, mid_sums_at, high_sums_at = sums_at
    part_key, part_value, region_at, region_rows, _ = partial
    row = (tl.program_id(0) % rows).to(tl.int64)
    own = tl.program_id(0) // rows * ROWS + tl.arange(0, ROWS)
    band = tl.load(allocation + row)
    place = region_at + own
    used = (text_at >= 0) & (place >= text_at) & (place < text_at + num_text)
    if (band == MID) | (band == HIGH):
        used |= (low_sums_at >= 0) & (place >= low_sums_at) & (place < low_sums_at + cells)
    if (band == LOW) | (band == HIGH):
        used |= (mid_sums_at >= 0) & (place >= mid_sums_at) & (place < mid_sums_at + cells)
    if (band == LOW) | (band == MID):
        used |= (high_sums_at >= 0) & (place >= high_sums_at) & (place < high_sums_at + cells)
    dk = tl.zeros([ROWS, HEAD_DIM], tl.float32)
    dv = tl.zeros([ROWS, HEAD_DIM], tl.float32)
    for part in range(parts):
        source = ((row * parts + part) * region_rows + own)[:, None] * HEAD_DIM + tl.arange(0, HEAD_DIM)[None, :]
        dk += tl.load(part_key + source, mask=used[:, None], other=0.0)
        dv += tl.load(part_value + source, mask=used[:, None], other=0.0)
    target = row * key_rows + place
    _store(grad_key, target, dk, used, HEAD_DIM)
    _store(grad_value, target, dv, used, HEAD_DIM)
