"""The Triton kernel of block-sparse attention, backward: gradients of queries. `launch_backward.py`
holds the host side.

With the weights p_ij = exp(logit_ij - lse_i) computed again from the log-sum-exp, and delta_i =
out_i . grad_i:

    ds_ij = p_ij (v_j . grad_i - delta_i)         the gradient of a logit
    dq_i = sum_j ds_ij k_j / sqrt(D)
    dk_j = sum_i ds_ij q_i / sqrt(D)              dv_j = sum_i p_ij grad_i

Logits are kept in base 2 as in the forward kernel. Every sum runs in a fixed order and nothing is
added atomically, so that the same inputs give the same bits. An argument that is None is absent
from the compiled kernel.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from freqformer.ops.block_sparse.triton.blocks import (
    LOG2_E,
    UNSPECIALIZED,
    Segments,
    Sizes,
    load_block,
    row_of,
    store_rows,
    tile_extent,
    tile_skip,
)
from freqformer.ops.block_sparse.triton.bwd_gather import load_statistics
from freqformer.ops.block_sparse.triton.softmax import add_product, exp2, product, scaled
from freqformer.ops.block_sparse.triton.tasks import (
    extra_block,
    extra_ends,
    key_bias,
    keys_seen,
    mask_tile_end,
    task_of,
)


class Queries(NamedTuple):
    """A block of queries and what the gradients of their logits follow from."""

    q: Any
    """(Q, D)."""
    grad: Any
    """Gradients of their outputs, (Q, D)."""
    statistics: Any
    """Of `load_statistics`."""


@triton.jit
def _add_keys(dq, queries, logits, bias, k, v, scale):
    """dq plus ds times k, for one block of keys: logits (Q, K) before `scale`, and bias (1, K) in
    base 2, None for none."""
    statistics = queries.statistics
    # p is computed again, and never stored: (queries, keys) numbers are more than memory holds.
    if queries.q.dtype == tl.float32:
        added = tl.zeros([1, 1], tl.float32) if bias is None else bias
        logits = scaled(logits, scale, added) - statistics.lse[:, None]
        # In float32 `lse` is the largest logit m, and `rounding_residual` 1 / l: p = 2^(s - m) / l.
        weight = exp2(logits, True) * statistics.rounding_residual[:, None]
    else:
        # The log-sum-exp first: the difference is small, and the bias is added to its last bit.
        logits = logits * scale - statistics.lse[:, None]
        if bias is not None:
            logits += bias
        # Weights add up to 1 without a maximum or a sum. A masked key's logit is -inf, and the lse
        # of a query that counts for nothing +inf: 2^-inf is 0, and -inf - -inf can't occur.
        weight = tl.exp2(logits)
    # The softmax's Jacobian times a gradient, diag(p) - p p^T, of which delta holds the second
    # term.
    ds = weight * (product(queries.grad, v) - statistics.delta[:, None])
    # In 16 bit ds is rounded here, as matrix units demand; the sum over keys stays float32.
    return add_product(dq, ds, k)


@triton.jit
def _add_tiles(
    dq,
    queries,
    key,
    value,
    seen,
    tiles,
    scale,
    blocks,
):
    """dq after the exact tokens of the listed tiles."""
    listed = seen.exact.tiles
    # As in the forward kernel, a step knows where its keys lie, and the next tile is on its way.
    # Tiles and their blocks are one loop, so that its pipeline is filled once.
    steps = seen.exact.length * blocks.KEY_BLOCKS
    first = key.at + seen.exact_at
    tile = tl.load(listed, mask=steps > 0, other=0)
    extent = tile_extent(tiles, tile, blocks.TILE_TOKENS)
    tile = tl.load(listed + 1 // blocks.KEY_BLOCKS, mask=steps > 1, other=0)
    for step in tl.range(0, steps, num_stages=blocks.STAGES):
        skip = tile_skip(step, blocks.KEY_BLOCKS, blocks.BLOCK_K)
        at = first + extent.start + skip
        left = extent.count - skip
        extent = tile_extent(tiles, tile, blocks.TILE_TOKENS)
        tile = tl.load(listed + tl.minimum(step + 2, steps - 1) // blocks.KEY_BLOCKS)
        # k serves twice, for the logits and for dq, so that it must stay until the end of the step.
        k = load_block(key.source, at, None, blocks.BLOCK_K, blocks)
        v = load_block(value.source, at, None, blocks.BLOCK_K, blocks)
        logits = product(queries.q, k)
        # After a tile's end lie the next tile's keys, which unmasked would be seen as well as any.
        if blocks.TILE_TOKENS != blocks.KEY_BLOCKS * blocks.BLOCK_K:
            logits = mask_tile_end(logits, left, blocks)
        dq = _add_keys(dq, queries, logits, None, k, v, scale)
    return dq


@triton.jit
def _add_extras(
    dq,
    queries,
    key,
    value,
    extras,
    text_mask,
    scale,
    blocks,
):
    """dq after low tokens or low summaries, mid summaries, high summaries and text."""
    column = tl.arange(0, blocks.BLOCK_K)
    ends = extra_ends(extras, blocks)
    for step in tl.range(0, ends.text, num_stages=blocks.STAGES):
        # No bias was spared here: the log-sum-exp holds it.
        block = extra_block(step, extras, ends, 0.0, blocks)
        bias = key_bias(
            block, column, extras.first_bias, text_mask, step < ends.first, step >= ends.high
        )
        # One place for both: keys and values lie alike.
        at = key.at + block.at
        k = load_block(key.source, at, None, blocks.BLOCK_K, blocks)
        v = load_block(value.source, at, None, blocks.BLOCK_K, blocks)
        logits = product(queries.q, k)
        dq = _add_keys(dq, queries, logits, bias[None, :], k, v, scale)
    return dq


@triton.jit(do_not_specialize=UNSPECIALIZED)
def query_grads_kernel(
    query,
    key,
    value,
    grad,
    statistics,
    grad_query,
    rows,
    tiles,
    lists,
    biases,
    scale,
    blocks,
    num_rows,
    num_heads,
    num_tiles,
    num_tokens,
    num_text,
    num_low,
    cells,
    high_length,
    mid_length,
    low_at,
    low_sums_at,
    mid_sums_at,
    high_sums_at,
    text_at,
    exact_at,
    key_rows,
):
    """Gradients of one block of queries of one row, over the keys that the forward kernel took.

    Args:
        query, key, value: as in `attention_kernel`.
        grad: output gradients as the queries lie, (R, N + X + M, W).
        statistics: `Statistics`.
        grad_query: (R, N + X + M, W), written.
        rows, tiles, lists, biases, scale, blocks, low_at, ...: as in `attention_kernel`.
    """
    sizes = Sizes(
        rows=num_rows, tiles=num_tiles, video=num_tokens, text=num_text, low=num_low, cells=cells
    )
    segments = Segments(
        low=low_at,
        low_summaries=low_sums_at,
        mid_summaries=mid_sums_at,
        high_summaries=high_sums_at,
        text=text_at,
        exact=exact_at,
    )
    # The 1: text queries are not split into parts here, as the forward's are.
    task = task_of(
        tl.program_id(0),
        rows,
        tiles,
        sizes,
        1,
        blocks,
    )
    # The grid has a program for every query that a row might have.
    if task.count <= 0:
        return
    row = task.row
    query_rows = num_tokens + num_text + sizes.low
    # False: low tokens as tiles would be spared a bias that the log-sum-exp contains.
    seen = keys_seen(
        task, lists, biases, sizes, segments, high_length, mid_length, 1, blocks, False
    )
    queries = row_of(query, row, query_rows, blocks)
    grads = row_of(grad, row, query_rows, blocks)
    keys = row_of(key, row, key_rows, blocks)
    values = row_of(value, row, key_rows, blocks)
    # A program owns its queries: dq grows in registers and is written once, with no atomic sum.
    live = tl.arange(0, blocks.BLOCK_Q) < task.count
    target = task.start + tl.arange(0, blocks.BLOCK_Q)
    at = queries.at + task.start
    # Pointers give zeros from here on; descriptors read the next queries, which `live` takes out.
    limit = task.start + task.count
    statistic = row.to(tl.int64) * statistics.rows + target
    block = Queries(
        q=load_block(queries.source, at, limit, blocks.BLOCK_Q, blocks),
        grad=load_block(grads.source, at, limit, blocks.BLOCK_Q, blocks),
        statistics=load_statistics(statistics, statistic, live),
    )
    dq = _add_tiles(
        tl.zeros([blocks.BLOCK_Q, blocks.HEAD_DIM], tl.float32),
        block,
        keys,
        values,
        seen,
        tiles,
        scale,
        blocks,
    )
    text_mask = biases.text_mask
    if text_mask is not None:
        text_mask += row // num_heads * num_text
    dq = _add_extras(
        dq,
        block,
        keys,
        values,
        seen.extras,
        text_mask,
        scale,
        blocks,
    )
    # dq = sum ds k / sqrt(D), with the factor once for the whole sum. `scale` also holds what makes
    # logits base 2; gradients are of natural ones.
    target += row.to(tl.int64) * query_rows
    store_rows(grad_query, target, dq * (scale / LOG2_E), live, blocks.HEAD_DIM)
