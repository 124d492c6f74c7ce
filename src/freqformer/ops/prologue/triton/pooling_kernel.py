"""The Triton kernel of learned summaries: what every tile gives to those of its cell.

A summary is a softmax pooling of a cell's tokens in one band. Each tile is pooled by itself, which
takes one pass over its keys and values for both bands; the kernel over rows joins the tiles of a
cell. `launch.py` holds the host side, `arguments.py` the shape legend.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from freqformer.ops.jit import dot, load_vector
from freqformer.ops.prologue.triton.tokens import (
    HIGH,
    MID,
    load_chunk,
    load_normed,
    load_some,
    load_tile,
    load_tokens,
    rotary_tables,
    row_band,
    sees_summaries,
    this_program,
    whole_block,
)


class Pools(NamedTuple):
    """Poolings of single tiles, between two launches; of bands whose summaries a row doesn't see
    they hold anything."""

    sums: Tensor
    """float32 (R, T, 2, 2, W): of the mid and the high band, the sums of keys and of values by
    their weights, which are relative to the tile's largest score."""
    softmax: Tensor
    """float32 (R, T, 2, 2): that score, and the sum of weights."""


class Pool(NamedTuple):
    """The pooling of one band of the tokens of a tile that have been met so far."""

    m_i: tl.tensor | float
    """The largest score, and"""
    l_i: tl.tensor | float
    """the sum of weights relative to it."""
    key: tl.tensor
    """Sum of rotated keys by weights, (W,)."""
    spread: tl.tensor
    """The band's projector times the weights, (SLOTS,)."""


@triton.jit
def _empty_pool(blocks):
    return Pool(
        m_i=float("-inf"),
        l_i=0.0,
        key=tl.zeros((blocks.W,), tl.float32),
        spread=tl.zeros((blocks.SLOTS,), tl.float32),
    )


@triton.jit
def _add_summands(total, rows, step, keys, blocks):
    """total + rows of a projector, in PARTS summands `step` apart, times keys; float32."""
    ROWS: tl.constexpr = total.shape[0]
    COLUMNS: tl.constexpr = keys.shape[0]
    entry = rows + tl.arange(0, ROWS)[:, None] * blocks.SLOTS + tl.arange(0, COLUMNS)[None, :]
    # A loop and not unrolled: of two products in a row, Triton 3.7 gives the first another layout
    # on Hopper, and moves their sum from one to the other.
    for part in range(blocks.PARTS):
        total = dot(tl.load(entry + part * step), keys, total)
    return total


@triton.jit
def _band_keys(keys, chunk, projector, qkv, tiles, learned, sizes, blocks, HELD: tl.constexpr):
    """Some tokens' keys in a band, float32 (CHUNK, W), not rotated.

    Args:
        keys: those of the whole tile, (SLOTS, W), or None where HELD is less than SLOTS: they are
            loaded HELD at a time then.
        projector: to the band, in summands.
    """
    SLOTS: tl.constexpr = blocks.SLOTS
    rows = projector + chunk.skip * SLOTS
    passed = tl.zeros((blocks.CHUNK, blocks.W), tl.float32)
    if keys is not None:
        passed = _add_summands(passed, rows, tiles.projector_step, keys, blocks)
    else:
        for ahead in range(0, SLOTS, HELD):
            near = load_some(chunk.tile, ahead, tiles, HELD)
            some = load_normed(qkv.key, near, learned, sizes, blocks)
            passed = _add_summands(passed, rows + ahead, tiles.projector_step, some, blocks)
    return passed


@triton.jit
def _add_tokens(pool, passed, query, chunk, projector, tiles, learned, blocks):
    """A `Pool` with some tokens of its tile.

    Args:
        passed: their keys in the band, see `_band_keys`.
        query: the pooling query, (W,).
        projector: to the band, in summands.
    """
    CHUNK: tl.constexpr = blocks.CHUNK
    SLOTS: tl.constexpr = blocks.SLOTS
    HALF: tl.constexpr = blocks.W // 2
    # In pairs from here on, also for scores: otherwise Triton moves the projector, too, to where
    # the product's threads have their sums.
    even, odd = tl.split(tl.reshape(passed, (CHUNK, HALF, 2)))
    even_query, odd_query = tl.split(tl.reshape(query, (HALF, 2)))
    # Scores are those of keys before they are rotated: what a summary is made of doesn't depend
    # on where its cell lies.
    scores = tl.sum(even * even_query[None, :] + odd * odd_query[None, :], 1) * (blocks.D**-0.5)
    scores = tl.where(chunk.live, scores, float("-inf"))
    # A tile has a token, and its first chunk the first: m_i is finite from the first step on.
    m_i = tl.maximum(pool.m_i, tl.max(scores, 0))
    decay = tl.exp(pool.m_i - m_i)
    weight = tl.exp(scores - m_i)
    # The projector P is symmetric: the pooled value w^T (P v) is (P w)^T v, and P w takes far
    # fewer products than P v. Not as a product of matrices with a few columns: Triton 3.6 reads
    # shared memory out of range for one with 8 warps.
    rows = projector + chunk.skip * SLOTS
    matrix = whole_block(rows, tiles.projector_step, CHUNK, SLOTS, SLOTS, blocks.PARTS)
    spread = pool.spread * decay + tl.sum(matrix * weight[:, None], 0)
    if learned.TURNS:
        tile = chunk.tile
        turn = rotary_tables(
            learned.rotary, tile.sample, tile.head, chunk.call_order, chunk.live, blocks.W
        )
        turned_even = even * turn.cos - odd * turn.sin
        odd = even * turn.sin + odd * turn.cos
        even = turned_even
    turned = tl.reshape(tl.join(even, odd), (CHUNK, blocks.W))
    return Pool(
        m_i=m_i,
        l_i=pool.l_i * decay + tl.sum(weight, 0),
        key=pool.key * decay + tl.sum(turned * weight[:, None], 0),
        spread=spread,
    )


@triton.jit
def pool_tiles(qkv, allocation, pools, tiles, learned, sizes, blocks, HELD: tl.constexpr):
    """One tile of one row: launched over tiles and rows, rows fastest.

    Args:
        qkv, allocation, tiles, learned, sizes, blocks: see `arguments.py`.
        pools: `Pools`, written.
        HELD: tokens whose keys a program holds at once, SLOTS where all fit: then every key is
            loaded and normalised once.
    """
    SLOTS: tl.constexpr = blocks.SLOTS
    D: tl.constexpr = blocks.D
    W: tl.constexpr = blocks.W
    program = this_program(sizes)
    band = row_band(allocation, program.sample, program.head)
    sees_mid = sees_summaries(band, MID, blocks.BRANCH)
    sees_high = sees_summaries(band, HIGH, blocks.BRANCH)
    if not (sees_mid | sees_high):
        return
    tile = load_tile(program, band, tiles, blocks)
    keys = None
    if HELD == SLOTS:
        keys = load_normed(qkv.key, load_some(tile, 0, tiles, SLOTS), learned, sizes, blocks)
    mid_spread = tl.zeros((SLOTS,), tl.float32)
    high_spread = tl.zeros((SLOTS,), tl.float32)
    channel = tl.arange(0, W)
    # Most rows see one of the two. A loop, so that both have the same code.
    for other in range(tl.where(sees_mid, 1, 2), tl.where(sees_high, 3, 2)):
        # Projectors count as `Band` does, low, mid, high, and the head's pooling queries from mid.
        projector = tiles.projectors + (tile.kind * 3 + other) * SLOTS * SLOTS
        query = load_vector(learned.pooling + (tile.head * 2 + other - 1) * D, D, W)
        pool = _empty_pool(blocks)
        for skip in range(0, SLOTS, blocks.CHUNK):
            chunk = load_chunk(tile, skip, tiles, blocks)
            passed = _band_keys(keys, chunk, projector, qkv, tiles, learned, sizes, blocks, HELD)
            pool = _add_tokens(pool, passed, query, chunk, projector, tiles, learned, blocks)
        at = (tile.wide_row * sizes.tiles + tile.number) * 2 + other - 1
        tl.store(pools.sums + at * 2 * W + channel, pool.key)
        tl.store(pools.softmax + at * 2, pool.m_i)
        tl.store(pools.softmax + at * 2 + 1, pool.l_i)
        if other == MID:
            mid_spread = pool.spread
        else:
            high_spread = pool.spread
    # The tile is loaded again, not kept: places of its tokens take registers that are short before.
    tile = load_tile(program, band, tiles, blocks)
    whole = load_some(tile, 0, tiles, SLOTS)
    value = load_tokens(qkv.value, tile.sample, tile.head, whole.call_order, whole.live, D, W)
    wide = value.to(tl.float32)
    target = pools.sums + (tile.wide_row * sizes.tiles + tile.number) * 4 * W + channel
    if sees_mid:
        tl.store(target + W, tl.sum(wide * mid_spread[:, None], 0))
    if sees_high:
        tl.store(target + 3 * W, tl.sum(wide * high_spread[:, None], 0))
