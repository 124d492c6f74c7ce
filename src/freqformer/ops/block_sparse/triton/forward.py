"""The Triton kernel of block-sparse attention, forward: `launch.py` holds the host side, README.md
the derivation.

Logits are kept in base 2: `scale` is log2(e) / sqrt(head_dim), and biases are multiplied by
log2(e). An argument that is None is absent from the compiled kernel.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from freqformer.ops.block_sparse.triton.blocks import (
    LN_2,
    UNSPECIALIZED,
    Segments,
    Sizes,
    load_block,
    row_of,
    store_rows,
    tile_extent,
    tile_skip,
)
from freqformer.ops.block_sparse.triton.join import TextParts
from freqformer.ops.block_sparse.triton.softmax import (
    MASKED,
    SoftmaxState,
    accumulate,
    product,
    scaled,
)
from freqformer.ops.block_sparse.triton.tasks import (
    extra_block,
    extra_ends,
    key_bias,
    keys_seen,
    mask_tile_end,
    task_of,
)
from freqformer.ops.jit import cast


class Outputs(NamedTuple):
    """What is written; `AttentionOutputs` says more."""

    out: Tensor
    """(B, N + X, H, D)."""
    raster: Tensor | None
    """Place in `out` of every video token in tile order, int32 (N,); None where that is its own."""
    low_out: Tensor
    """(R, M, D)."""
    lse: Tensor
    """float32 (R, N + X + M)."""
    rounding_residual: Tensor | None
    """(R, N + X + M, D), in float32 (R, N + X + M, 2)."""
    parts: TextParts | None
    """Written in place of outputs of text queries; None where each is one part."""


@triton.jit
def _attend_tiles(
    q,
    state,
    key,
    value,
    seen,
    tiles,
    scale,
    blocks,
):
    """The softmax state after the exact tokens of the listed tiles."""
    listed = seen.exact.tiles
    # Where the keys of the next step lie is loaded a step ahead, and the tile of the step after it:
    # else each copy of keys would wait for two loads, one after the other.
    steps = seen.exact.length * blocks.KEY_BLOCKS
    # Added up here: two numbers that live through the loop would cost it a register more than one.
    first = key.at + seen.exact_at
    # An empty list must not be read. Tile 0 exists, so that loading its extent is harmless.
    tile = tl.load(listed, mask=steps > 0, other=0)
    extent = tile_extent(tiles, tile, blocks.TILE_TOKENS)
    # Of step 1: the same tile again, where a tile has several blocks.
    tile = tl.load(listed + 1 // blocks.KEY_BLOCKS, mask=steps > 1, other=0)
    # With two stages the next step's keys and values are on their way while this one multiplies.
    for step in tl.range(0, steps, num_stages=blocks.STAGES):
        skip = tile_skip(step, blocks.KEY_BLOCKS, blocks.BLOCK_K)
        at = first + extent.start + skip
        left = extent.count - skip
        extent = tile_extent(tiles, tile, blocks.TILE_TOKENS)
        # The last steps load the last tile again: cheaper than a mask, and nothing after the list
        # is read.
        tile = tl.load(listed + tl.minimum(step + 2, steps - 1) // blocks.KEY_BLOCKS)
        logits = product(q, load_block(key.source, at, None, blocks.BLOCK_K, blocks))
        # Full tiles of whole blocks need no mask, and none is compiled. Others read on into the
        # next tile or into zeros: weight 0 takes those keys out, since their values are finite.
        if blocks.TILE_TOKENS != blocks.KEY_BLOCKS * blocks.BLOCK_K:
            logits = mask_tile_end(logits, left, blocks)
        v = load_block(value.source, at, None, blocks.BLOCK_K, blocks)
        if v.dtype == tl.float32:
            # Rounded here, once, as the backward does: a bias of 0, so that both take the same
            # path.
            logits = scaled(logits, scale, tl.zeros([1, 1], tl.float32))
            state = accumulate(logits, 1.0, v, state, False)
        else:
            # The scale goes with the maximum into one multiply-add for each logit.
            state = accumulate(logits, scale, v, state, False)
    return state


@triton.jit
def _attend_extras(
    q,
    state,
    key,
    value,
    seen,
    text_mask,
    scale,
    blocks,
):
    """The softmax state after low tokens or low summaries, mid summaries, high summaries and text.

    Each has its bias, less the `common` bias of the keys before them, which they were spared.
    """
    extras = seen.extras
    column = tl.arange(0, blocks.BLOCK_K)
    ends = extra_ends(extras, blocks)
    for step in tl.range(0, ends.text, num_stages=blocks.STAGES):
        # Every block has a bias for each key, in which the mask of its end is contained as -inf.
        block = extra_block(step, extras, ends, seen.common, blocks)
        bias = key_bias(
            block, column, extras.first_bias, text_mask, step < ends.first, step >= ends.high
        )
        # Keys and values lie alike in their buffers: one place serves both.
        at = key.at + block.at
        logits = product(q, load_block(key.source, at, None, blocks.BLOCK_K, blocks))
        v = load_block(value.source, at, None, blocks.BLOCK_K, blocks)
        if v.dtype == tl.float32:
            logits = scaled(logits, scale, bias[None, :])
        else:
            # With a bias for each key the largest product needn't be the largest logit: the scale
            # can't wait.
            logits = logits * scale + bias[None, :]
        # Guarded: all keys of a block may be masked, and then m is -inf still.
        state = accumulate(logits, 1.0, v, state, True)
    return state


@triton.jit
def _store_residual(residual, own, state, l_i, some, acc, written, blocks):
    """What the backward needs to the last bit where few keys take nearly all weight, see
    `AttentionOutputs.rounding_residual`."""
    if residual.dtype.element_ty == tl.float32:
        # m and 1 / l side by side. The backward's weights are 2^(s - m) / l; by way of the
        # log-sum-exp they would carry the rounding of a logarithm.
        tl.store(residual + own * 2, tl.where(some, state.m_i, MASKED), mask=written)
        tl.store(residual + own * 2 + 1, tl.where(some, 1.0 / l_i, 0.0), mask=written)
    else:
        # The backward takes delta = (out + lost) . grad. Where one key has nearly all weight, v .
        # grad - delta cancels, and the rounding of `out` would be all that is left.
        lost = acc - cast(acc, residual.dtype.element_ty).to(tl.float32)
        store_rows(residual, own, lost, written, blocks.CHANNELS)


@triton.jit(do_not_specialize=UNSPECIALIZED)
def attention_kernel(
    query,
    key,
    value,
    outputs,
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
    text_parts,
):
    """One block of queries of one row: over its listed tiles, then over low tokens, summaries and
    text.

    Args:
        query, key, value: of `AttentionBuffers`, descriptors or pointers. Not in one tuple: the
            launcher makes descriptors of parameters only.
        outputs, rows, tiles, lists, biases: `Outputs`, `Rows`, `Tiles`, `Lists`, `Biases`.
        scale: of logits, to base 2.
        low_at, ..., key_rows: `KeyLayout`.
        text_parts: that the list of a text query is split into.
        blocks: `Blocks`.
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
    task = task_of(
        tl.program_id(0),
        rows,
        tiles,
        sizes,
        text_parts,
        blocks,
    )
    # The grid holds the queries of any allocation. Those that this one doesn't have end here, which
    # is cheaper than asking the device first.
    if task.count <= 0:
        return
    row = task.row
    query_rows = num_tokens + num_text + sizes.low
    # In float32 every logit is rounded after its bias, and the backward must round it alike.
    LOW_AS_TILES: tl.constexpr = (blocks.TILE_TOKENS == blocks.KEY_BLOCKS * blocks.BLOCK_K) and (
        outputs.out.dtype.element_ty != tl.float32
    )
    seen = keys_seen(
        task,
        lists,
        biases,
        sizes,
        segments,
        high_length,
        mid_length,
        text_parts,
        blocks,
        LOW_AS_TILES,
    )
    queries = row_of(query, row, query_rows, blocks)
    keys = row_of(key, row, key_rows, blocks)
    values = row_of(value, row, key_rows, blocks)
    at = queries.at + task.start
    # Rows of a product don't mix, so queries after the tile's end do no harm: they are computed and
    # not written. The limit keeps pointers within the row.
    q = load_block(queries.source, at, query_rows, blocks.BLOCK_Q, blocks)
    target = task.start + tl.arange(0, blocks.BLOCK_Q)
    written = tl.arange(0, blocks.BLOCK_Q) < task.count
    if outputs.raster is not None:
        # Loaded now, since the store at the end would wait for it.
        if (not task.is_text) & (not task.is_low):
            target = tl.load(outputs.raster + target, mask=written, other=0)
    # Float32 in any dtype, in registers for the whole program: they set how many queries it can
    # own. With m = -inf the first block is no special case: its decay is 2^(-inf - m') = 0.
    state = SoftmaxState(
        acc=tl.zeros([blocks.BLOCK_Q, blocks.HEAD_DIM], tl.float32),
        m_i=tl.full([blocks.BLOCK_Q], MASKED, tl.float32),
        l_i=tl.zeros([blocks.BLOCK_Q], tl.float32),
    )
    state = _attend_tiles(
        q,
        state,
        keys,
        values,
        seen,
        tiles,
        scale,
        blocks,
    )
    # Rows are numbered sample * num_heads + head, and the heads of a sample share a mask.
    text_mask = biases.text_mask
    if text_mask is not None:
        text_mask += row // num_heads * num_text
    state = _attend_extras(q, state, keys, values, seen, text_mask, scale, blocks)

    # A query that saw no key: zeros, and the logarithm of no weight.
    some = state.l_i > 0
    l_i = tl.where(some, state.l_i, 1.0)
    # a / l, with one division for each query and not for each channel.
    acc = state.acc * (1.0 / l_i)[:, None]
    lse = tl.where(some, (state.m_i + seen.common + tl.log2(l_i)) * LN_2, MASKED)
    if outputs.parts is not None:
        if task.is_text:
            # Parts lie as (R, P, X, D), without the video tokens before. They stay float32: the
            # join rounds once.
            target += (row * text_parts + task.part) * num_text - num_tokens
            tl.store(outputs.parts.lse + target, lse, mask=written)
            store_rows(outputs.parts.out, target, acc, written, blocks.CHANNELS)
            return
    own = row.to(tl.int64) * query_rows + task.start + tl.arange(0, blocks.BLOCK_Q)
    tl.store(outputs.lse + own, lse, mask=written)
    if outputs.rounding_residual is not None:
        _store_residual(outputs.rounding_residual, own, state, l_i, some, acc, written, blocks)
    # `out` is (B, N + X, H, D): the tokens of one row lie `num_heads` vectors apart.
    first_low = num_tokens + num_text
    matrix = outputs.out
    begin = (row // num_heads).to(tl.int64) * first_low * num_heads + row % num_heads
    hop = num_heads
    # Asked anew, not remembered: a scalar that lives through the loop costs the loop a register.
    if task.start >= first_low:
        matrix = outputs.low_out
        # (R, M, D): `target` counts from the row's first query, so what comes before low ones is
        # taken off.
        begin = row.to(tl.int64) * sizes.low - first_low
        hop = 1
    store_rows(matrix, begin + target.to(tl.int64) * hop, acc, written, blocks.CHANNELS)
