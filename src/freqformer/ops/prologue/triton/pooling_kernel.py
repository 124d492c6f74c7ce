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

from freqformer.ops.jit import load_vector
from freqformer.ops.prologue.triton.tokens import (
    HIGH,
    LOW,
    MID,
    add_product,
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
    even: tl.tensor
    """Sums of even and of odd channels of rotated keys, (W / 2,): so they are rotated, and a
    rotated tile needn't be put together."""
    odd: tl.tensor
    spread: tl.tensor
    """The band's projector times the weights, (SLOTS,)."""


@triton.jit
def _empty_pool(blocks):
    return Pool(
        m_i=float("-inf"),
        l_i=0.0,
        even=tl.zeros((blocks.W // 2,), tl.float32),
        odd=tl.zeros((blocks.W // 2,), tl.float32),
        spread=tl.zeros((blocks.SLOTS,), tl.float32),
    )


@triton.jit
def _add_tokens(pool, passed, query, chunk, turn, projector, step, blocks):
    """A `Pool` with some tokens of its tile.

    Args:
        passed: their keys in the band, float32 (CHUNK, W), not rotated.
        query: the pooling query, (W,).
        turn: their cos and sin; None without rotary embedding.
        projector: to the band, in summands `step` apart.
    """
    HALF: tl.constexpr = blocks.W // 2
    # Scores are those of keys before they are rotated: what a summary is made of doesn't depend
    # on where its cell lies.
    scores = tl.sum(passed * query[None, :], 1) * (blocks.D**-0.5)
    scores = tl.where(chunk.live, scores, float("-inf"))
    # A tile has a token, and its first chunk the first: m_i is finite from the first step on.
    m_i = tl.maximum(pool.m_i, tl.max(scores, 0))
    decay = tl.exp(pool.m_i - m_i)
    weight = tl.exp(scores - m_i)
    even, odd = tl.split(tl.reshape(passed * weight[:, None], (blocks.CHUNK, HALF, 2)))
    if turn is not None:
        turned_even = tl.sum(even * turn.cos - odd * turn.sin, 0)
        turned_odd = tl.sum(even * turn.sin + odd * turn.cos, 0)
    else:
        turned_even = tl.sum(even, 0)
        turned_odd = tl.sum(odd, 0)
    # The projector P is symmetric: the pooled value w^T (P v) is (P w)^T v, and P w takes far
    # fewer products than P v. Not as a product of matrices with a few columns: Triton 3.6 reads
    # shared memory out of range for one with 8 warps.
    rows = projector + chunk.skip * blocks.SLOTS
    matrix = whole_block(rows, step, blocks.CHUNK, blocks.SLOTS, blocks.SLOTS, blocks.PARTS)
    return Pool(
        m_i=m_i,
        l_i=pool.l_i * decay + tl.sum(weight, 0),
        even=pool.even * decay + turned_even,
        odd=pool.odd * decay + turned_odd,
        spread=pool.spread * decay + tl.sum(matrix * weight[:, None], 0),
    )


@triton.jit
def _leave_pool(pool, value, sums, softmax, W: tl.constexpr):
    """Write a `Pool`; value (SLOTS, W) are the tile's."""
    channel = tl.arange(0, W)
    tl.store(sums + channel, tl.reshape(tl.join(pool.even, pool.odd), (W,)))
    tl.store(sums + W + channel, tl.sum(value.to(tl.float32) * pool.spread[:, None], 0))
    tl.store(softmax, pool.m_i)
    tl.store(softmax + 1, pool.l_i)


@triton.jit
def pool_tiles(qkv, allocation, pools, tiles, learned, sizes, blocks):
    """One tile of one row: launched over tiles and rows, rows fastest.

    Args:
        qkv, allocation, tiles, learned, sizes, blocks: see `arguments.py`.
        pools: `Pools`, written.
    """
    SLOTS: tl.constexpr = blocks.SLOTS
    D: tl.constexpr = blocks.D
    W: tl.constexpr = blocks.W
    SIZE: tl.constexpr = SLOTS * SLOTS
    program = this_program(sizes)
    band = row_band(allocation, program.sample, program.head)
    sees_mid = sees_summaries(band, MID, blocks.BRANCH)
    sees_high = sees_summaries(band, HIGH, blocks.BRANCH)
    if not (sees_mid | sees_high):
        return
    tile = load_tile(program, band, tiles, blocks)
    step = tiles.projector_step
    # Projectors count as `Band` does: low, mid, high.
    projectors = tiles.projectors + tile.kind * 3 * SIZE
    low_projector = projectors + LOW * SIZE
    mid_projector = projectors + MID * SIZE
    high_projector = projectors + HIGH * SIZE
    # The head has two pooling queries, of the mid and of the high band.
    queries = learned.pooling + tile.head * 2 * D
    mid_query = load_vector(queries, D, W)
    high_query = load_vector(queries + D, D, W)
    mid = _empty_pool(blocks)
    high = _empty_pool(blocks)
    for skip in range(0, SLOTS, blocks.CHUNK):
        chunk = load_chunk(tile, skip, tiles, blocks)
        # A band mixes all tokens of the tile, which are loaded a few at a time: a whole tile and
        # its projector are more than registers hold, and the cache has both.
        low_key = tl.zeros((blocks.CHUNK, W), tl.float32)
        high_key = tl.zeros((blocks.CHUNK, W), tl.float32)
        for ahead in range(0, SLOTS, blocks.CHUNK):
            near = load_chunk(tile, ahead, tiles, blocks)
            key = load_normed(qkv.key, near, learned, sizes, blocks)
            block = skip * SLOTS + ahead
            if sees_mid:
                low_key = add_product(
                    low_key, low_projector + block, step, key, SLOTS, blocks.PARTS
                )
            high_key = add_product(high_key, high_projector + block, step, key, SLOTS, blocks.PARTS)
        turn = None
        if learned.TURNS:
            turn = rotary_tables(
                learned.rotary, tile.sample, tile.head, chunk.call_order, chunk.live, W
            )
        if sees_mid:
            # The bands of a token sum up to it.
            key = load_normed(qkv.key, chunk, learned, sizes, blocks)
            mid_key = key.to(tl.float32) - low_key - high_key
            mid = _add_tokens(mid, mid_key, mid_query, chunk, turn, mid_projector, step, blocks)
        if sees_high:
            high = _add_tokens(
                high, high_key, high_query, chunk, turn, high_projector, step, blocks
            )
    whole = load_some(tile, 0, tiles, SLOTS)
    value = load_tokens(qkv.value, tile.sample, tile.head, whole.call_order, whole.live, D, W)
    at = (tile.wide_row * sizes.tiles + tile.number) * 2
    if sees_mid:
        _leave_pool(mid, value, pools.sums + at * 2 * W, pools.softmax + at * 2, W)
    if sees_high:
        _leave_pool(high, value, pools.sums + (at + 1) * 2 * W, pools.softmax + (at + 1) * 2, W)
