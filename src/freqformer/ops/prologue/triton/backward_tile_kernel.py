"""The Triton kernel of video tokens in the prologue's backward.

A program takes one tile of one row back from what the attention read to the tokens of the call, in
float32 in between. `launch_backward.py` holds the host side, `arguments.py` the shape legend. An
argument that is None is absent from the compiled kernel.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl

from freqformer.ops.jit import dot
from freqformer.ops.prologue.triton.backward_pooling_kernel import (
    load_pooling,
    pooled_key_grads,
    pooled_value_grads,
)
from freqformer.ops.prologue.triton.backward_tokens import (
    add_wide_product,
    load_grads,
    norm_grads,
    turned_back,
    write_grads,
)
from freqformer.ops.prologue.triton.tokens import (
    DENSE,
    HIGH,
    LOW,
    MID,
    load_chunk,
    load_tile,
    load_tokens,
    normed,
    sees_summaries,
    this_program,
)


class Given(NamedTuple):
    """Gradients of one row in one buffer."""

    base: tl.tensor
    """The row's part of the buffer's gradient."""
    low: tl.tensor
    """First row of low tokens, and"""
    exact: tl.tensor
    """of tokens with all bands of MID and HIGH rows, which text queries see; 0 for none."""


class TokenGrads(NamedTuple):
    """Gradients of tokens (CHUNK, W), and what they give to the gains of the head."""

    tokens: tl.tensor
    low: tl.tensor
    mid: tl.tensor
    high: tl.tensor


@triton.jit
def _exact_grads(x, given, mean, chunk, tiles, blocks):
    """Gradients of the rotated tokens of a chunk with all bands: float32 (CHUNK, W).

    Args:
        x, given, chunk: `Tokens`, `Given`, `Chunk`.
        mean: what the low summary's gradient gives to every token of its cell, (W,); None without
            summaries.
    """
    W: tl.constexpr = blocks.W
    CHUNK: tl.constexpr = blocks.CHUNK
    LOW_SLOTS: tl.constexpr = blocks.LOW_SLOTS
    tile = chunk.tile
    g = tl.zeros((CHUNK, W), tl.float32)
    if (tile.band == LOW) | blocks.BRANCH:
        low = load_grads(given.base + given.low * W, tile.low_place, tile.low_place >= 0, W)
        # The transpose of the analysis matrix, by the order of the loads. Its last row, the ones of
        # the tile's sum, meets a gradient of zero: low_place is -1 there.
        slot = tl.arange(0, LOW_SLOTS)
        column = tl.arange(0, CHUNK)
        matrix = tiles.reduction + tile.kind * LOW_SLOTS * blocks.SLOTS + chunk.skip
        entry = matrix + slot[None, :] * blocks.SLOTS + column[:, None]
        for part in tl.static_range(blocks.PARTS):  # pyright: ignore[reportGeneralTypeIssues]
            g = dot(tl.load(entry + part * tiles.reduction_step), low, g)
    if tile.band == LOW:
        if x.KEEPS_EXACT:
            # From text queries alone: a LOW row's own queries see low tokens.
            g += load_grads(given.base, chunk.tile_order, chunk.live, W).to(tl.float32)
    else:
        # The video segment holds tokens with all bands. Where it holds weighted bands,
        # `_feature_grads` takes its gradient.
        if (x.FEATURES == "full") | (tile.band == DENSE):
            g += load_grads(given.base, chunk.tile_order, chunk.live, W).to(tl.float32)
        if x.KEEPS_EXACT:
            if (given.exact > 0) & (tile.band != DENSE):
                exact = given.base + given.exact * W
                g += load_grads(exact, chunk.tile_order, chunk.live, W).to(tl.float32)
    if mean is not None:
        # A summary is a mean of rotated tokens, so that this comes before they are turned back.
        g += mean[None, :]
    return g


@triton.jit
def _feature_grads(x, tokens, given, chunk, tiles, learned, blocks):
    """What the weighted bands of a MID or HIGH row give to its normalised tokens (CHUNK, W) and to
    the head's gains."""
    SLOTS: tl.constexpr = blocks.SLOTS
    CHUNK: tl.constexpr = blocks.CHUNK
    W: tl.constexpr = blocks.W
    PARTS: tl.constexpr = blocks.PARTS
    SIZE: tl.constexpr = SLOTS * SLOTS
    tile = chunk.tile
    # Gradients are float32, and tensor cores take 16 bits: the products split them into two.
    dtype: tl.constexpr = tokens.dtype
    step = tiles.projector_step
    low = tl.zeros((CHUNK, W), tl.float32)
    mid = tl.zeros((CHUNK, W), tl.float32)
    own = tl.zeros((CHUNK, W), tl.float32)
    # The projectors are symmetric, so they bring gradients back too.
    matrix = tiles.projectors + tile.kind * 3 * SIZE + chunk.skip * SLOTS
    for ahead in range(0, SLOTS, CHUNK):
        near = load_chunk(tile, ahead, tiles, blocks)
        g = load_grads(given.base, near.tile_order, near.live, W).to(tl.float32)
        # Bands are taken before the rotation, so that gradients turn back before the projectors.
        g = turned_back(g, x, near, learned)
        if x.FEATURES == "own_band":
            block = matrix + tile.band * SIZE + ahead
            own = add_wide_product(own, block, step, g, dtype, SLOTS, PARTS)
        else:
            low = add_wide_product(low, matrix + ahead, step, g, dtype, SLOTS, PARTS)
            # The identity's block: these tokens' own gradients, which the loop passes once.
            own += tl.where(ahead == chunk.skip, 1.0, 0.0) * g
            if x.FEATURES != "high_pass_values":
                mid = add_wide_product(mid, matrix + SIZE + ahead, step, g, dtype, SLOTS, PARTS)
    low_share = 0.0
    mid_share = 0.0
    high_share = 0.0
    if x.FEATURES == "high_pass_values":
        own -= low
    elif x.FEATURES != "own_band":
        # P is symmetric: a band times its gradient is the token times the gradient's band.
        wide = tokens.to(tl.float32)
        low_share = tl.sum(wide * low)
        mid_share = tl.sum(wide * mid)
        # The bands sum up to the token, so that the high one needs no product of its own.
        high_share = tl.sum(wide * own) - low_share - mid_share
        gains = learned.gains + tile.head * 3
        low_gain = tl.load(gains)
        mid_gain = tl.load(gains + 1)
        high_gain = tl.load(gains + 2)
        own = own * high_gain + low * (low_gain - high_gain) + mid * (mid_gain - high_gain)
    return TokenGrads(tokens=own, low=low_share, mid=mid_share, high=high_share)


@triton.jit
def _token_grads(x, tokens, given, mean, chunk, tiles, learned, blocks):
    """Gradients of normalised tokens (CHUNK, W) of one tile.

    Args:
        x, given, chunk: `Tokens`, `Given`, `Chunk`.
        mean: as in `_exact_grads`.
    """
    band = chunk.tile.band
    g = _exact_grads(x, given, mean, chunk, tiles, blocks)
    g = turned_back(g, x, chunk, learned)
    low = 0.0
    mid = 0.0
    high = 0.0
    if x.FEATURES != "full":
        if (band == MID) | (band == HIGH):
            weighted = _feature_grads(x, tokens, given, chunk, tiles, learned, blocks)
            g += weighted.tokens
            low = weighted.low
            mid = weighted.mid
            high = weighted.high
    return TokenGrads(tokens=g, low=low, mid=mid, high=high)


@triton.jit
def _mean_grad(given, tile, tiles, sizes, W: tl.constexpr):
    """What the low summary of a cell gives to every token of it, float32 (W,); `given` is the row's
    part of a gradient."""
    # LOW and DENSE rows see no low summary, and their gradient holds anything there.
    banded = (tile.band == MID) | (tile.band == HIGH)
    count = tl.load(tiles.cell_counts + tile.cell).to(tl.float32)
    at = (sizes.segments.low_summaries + tile.cell) * W + tl.arange(0, W)
    return tl.load(given + at, mask=banded, other=0.0).to(tl.float32) / count


@triton.jit
def tile_grads(qkv, rows, row_grads, tiles, learned, outputs, sizes, blocks):
    """Gradients of one tile of one row: launched over tiles and rows, rows fastest.

    Args:
        qkv, tiles, learned, sizes, blocks: see `arguments.py`; `tiles` with cells where there are
            summaries.
        rows: `PreparedRows`, of which bands are read.
        row_grads: `RowGrads`.
        outputs: `Outputs`; `pools` is read.
    """
    D: tl.constexpr = blocks.D
    W: tl.constexpr = blocks.W
    heads = sizes.heads
    program = this_program(sizes)
    band = tl.load(rows.bands + program.row)
    tile = load_tile(program, band, tiles, blocks)
    wide_row = tile.wide_row
    channel = tl.arange(0, W)
    query_row = row_grads.query + wide_row * sizes.query_rows * W
    key_row = row_grads.key + wide_row * sizes.key_rows * W
    value_row = row_grads.value + wide_row * sizes.key_rows * W
    exact = sizes.segments.exact
    # Low queries follow text in their buffer, low keys and values have a segment.
    query_given = Given(base=query_row, low=sizes.tokens, exact=exact)
    key_given = Given(base=key_row, low=sizes.segments.low, exact=exact)
    value_given = Given(base=value_row, low=sizes.segments.low, exact=exact)
    # Gradients of the call's tokens are contiguous, the heads of a token side by side.
    own = (tile.sample.to(tl.int64) * sizes.tokens * heads + tile.head) * D
    key_mean = None
    value_mean = None
    if tiles.cell is not None:
        # Loaded once: it is the same for all tokens of the tile.
        key_mean = _mean_grad(key_row, tile, tiles, sizes, W)
        value_mean = _mean_grad(value_row, tile, tiles, sizes, W)
    query_along = None
    key_along = None
    if outputs.along is not None:
        # Keys follow the queries of all rows.
        query_along = outputs.along + wide_row * sizes.tokens
        key_along = query_along + tl.cast(sizes.rows, tl.int64) * sizes.tokens
    query_share = tl.zeros((W,), tl.float32)
    key_share = tl.zeros((W,), tl.float32)
    low_gain = 0.0
    mid_gain = 0.0
    high_gain = 0.0
    # Queries, keys and values one after the other: each is stored before the next is loaded, so
    # that only one of them is in registers.
    for skip in range(0, blocks.SLOTS, blocks.CHUNK):
        chunk = load_chunk(tile, skip, tiles, blocks)
        place = chunk.call_order
        live = chunk.live
        target = place * heads

        # The norm is taken again: its gradient needs the raw tokens, and these are fewer bytes
        # than both.
        raw = load_tokens(qkv.query, tile.sample, tile.head, place, live, D, W)
        x = normed(
            raw, qkv.query, tile.sample, tile.head, place, live, sizes.tokens, learned.eps, D
        )
        found = _token_grads(qkv.query, x, query_given, None, chunk, tiles, learned, blocks)
        g = found.tokens
        if qkv.query.norm is not None:
            before = norm_grads(
                g, raw, qkv.query, tile.sample, tile.head, place, live, sizes.tokens, learned.eps, D
            )
            g = before.tokens
            query_share += before.weight
            if qkv.query.scales is not None:
                tl.store(query_along + place, before.along, mask=live)
        write_grads(outputs.query + own, qkv.query, target, live, g, D)
        low_gain += found.low
        mid_gain += found.mid
        high_gain += found.high

        raw = load_tokens(qkv.key, tile.sample, tile.head, place, live, D, W)
        x = normed(raw, qkv.key, tile.sample, tile.head, place, live, sizes.tokens, learned.eps, D)
        found = _token_grads(qkv.key, x, key_given, key_mean, chunk, tiles, learned, blocks)
        g = found.tokens
        low_gain += found.low
        mid_gain += found.mid
        high_gain += found.high
        if learned.pooling is not None:
            # A pooling takes keys before the rotation and after the norm, so that its gradient
            # comes in between the two.
            for other in tl.static_range(1, 3):  # pyright: ignore[reportGeneralTypeIssues]
                if sees_summaries(band, other, blocks.BRANCH):
                    pooling = load_pooling(
                        key_row, outputs, learned, tile, tiles, sizes, blocks, other
                    )
                    g = pooled_key_grads(
                        g, pooling, chunk, qkv.key, tiles, learned, blocks, x.dtype
                    )
        if qkv.key.norm is not None:
            before = norm_grads(
                g, raw, qkv.key, tile.sample, tile.head, place, live, sizes.tokens, learned.eps, D
            )
            g = before.tokens
            key_share += before.weight
            if qkv.key.scales is not None:
                tl.store(key_along + place, before.along, mask=live)
        write_grads(outputs.key + own, qkv.key, target, live, g, D)

        # Values have neither norm nor rotation.
        x = load_tokens(qkv.value, tile.sample, tile.head, place, live, D, W)
        found = _token_grads(qkv.value, x, value_given, value_mean, chunk, tiles, learned, blocks)
        g = found.tokens
        low_gain += found.low
        mid_gain += found.mid
        high_gain += found.high
        if learned.pooling is not None:
            for other in tl.static_range(1, 3):  # pyright: ignore[reportGeneralTypeIssues]
                if sees_summaries(band, other, blocks.BRANCH):
                    pooling = load_pooling(
                        value_row, outputs, learned, tile, tiles, sizes, blocks, other
                    )
                    g = pooled_value_grads(g, pooling, chunk, tiles, blocks)
        write_grads(outputs.value + own, qkv.value, target, live, g, D)
    # Shares, not atomic sums: their order would change from run to run.
    share_at = (wide_row * outputs.shares + tile.number) * W + channel
    if qkv.query.norm is not None:
        tl.store(outputs.query_norm + share_at, query_share)
    if qkv.key.norm is not None:
        tl.store(outputs.key_norm + share_at, key_share)
    if learned.gains is not None:
        own_share = outputs.gains + (wide_row * sizes.tiles + tile.number) * 3
        tl.store(own_share, low_gain)
        tl.store(own_share + 1, mid_gain)
        tl.store(own_share + 2, high_gain)
