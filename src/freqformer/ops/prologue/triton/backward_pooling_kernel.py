"""The backward of learned summaries: one Triton kernel over tiles, and what tiles take from it.

A summary of a cell is a softmax pooling of its tokens in one band. The kernel here writes how every
token takes part; `backward_tile_kernel.py` then adds what that gives to its gradient.
`launch_backward.py` holds the host side, `arguments.py` the shape legend.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl

from freqformer.ops.jit import load_vector
from freqformer.ops.prologue.triton.backward_tokens import add_wide_product, turned_back
from freqformer.ops.prologue.triton.tokens import (
    add_product,
    load_chunk,
    load_normed,
    load_tile,
    load_tokens,
    sees_summaries,
    summaries_of,
    this_program,
    whole_block,
)


class Pooling(NamedTuple):
    """How the tokens of one tile take part in one summary of its cell."""

    weights: tl.tensor
    """Of all tokens in tile order, (N,), and where ds of their scores are."""
    ds: tl.tensor
    grad: tl.tensor
    """Of the pooled key or value, float32 (W,)."""
    query: tl.tensor
    """The pooling query, float32 (W,)."""
    projector: tl.tensor
    """To the summary's band, for the class of the tile."""


@triton.jit
def load_pooling(grad, outputs, learned, tile, tiles, sizes, blocks, OTHER: tl.constexpr):
    """The `Pooling` of a tile in the mid or high band; `grad` is the row's part of the gradient of
    keys or of values."""
    D: tl.constexpr = blocks.D
    W: tl.constexpr = blocks.W
    SIZE: tl.constexpr = blocks.SLOTS * blocks.SLOTS
    summary = (summaries_of(sizes.segments, OTHER) + tile.cell) * W + tl.arange(0, W)
    query = learned.pooling + (tile.head * 2 + OTHER - 1) * D
    # Of every band first the weights of all tokens, and after them ds.
    weights = outputs.pools + (tile.wide_row * 2 + OTHER - 1) * 2 * sizes.video
    return Pooling(
        weights=weights,
        ds=weights + sizes.video,
        grad=tl.load(grad + summary).to(tl.float32),
        query=load_vector(query, D, W),
        projector=tiles.projectors + tile.kind * 3 * SIZE + OTHER * SIZE,
    )


@triton.jit
def pooled_key_grads(g, pooling, chunk, x, tiles, learned, blocks, dtype: tl.constexpr):
    """Gradients g (CHUNK, W) of normalised keys with what one pooled summary gives.

    Args:
        pooling, chunk, x: `Pooling`, `Chunk`, `Tokens` of keys.
        dtype: of products.
    """
    W: tl.constexpr = blocks.W
    # The projector mixes all tokens of the tile, so that each gets a part of the gradients of all.
    for ahead in range(0, blocks.SLOTS, blocks.CHUNK):
        near = load_chunk(chunk.tile, ahead, tiles, blocks)
        # A pooled key is a sum of rotated keys: its gradient turns back with each one's angle.
        back = tl.zeros((blocks.CHUNK, W), tl.float32) + pooling.grad[None, :]
        back = turned_back(back, x, near, learned)
        weight = tl.load(pooling.weights + near.tile_order, mask=near.live, other=0.0)
        ds = tl.load(pooling.ds + near.tile_order, mask=near.live, other=0.0)
        back = back * weight[:, None] + ds[:, None] * pooling.query[None, :]
        matrix = pooling.projector + chunk.skip * blocks.SLOTS + ahead
        g = add_wide_product(
            g, matrix, tiles.projector_step, back, dtype, blocks.SLOTS, blocks.PARTS
        )
    return g


@triton.jit
def pooled_value_grads(g, pooling, chunk, tiles, blocks):
    """Gradients g (CHUNK, W) of values with what one pooled summary gives."""
    CHUNK: tl.constexpr = blocks.CHUNK
    # A pooled value is w^T P v, and its gradient for v the outer product of P w and the summary's:
    # one vector through the projector, not W of them.
    spread = tl.zeros((CHUNK,), tl.float32)
    for ahead in range(0, blocks.SLOTS, CHUNK):
        place = chunk.tile.first + ahead + tl.arange(0, CHUNK)
        weight = tl.load(pooling.weights + place, mask=place < chunk.tile.last, other=0.0)
        matrix = whole_block(
            pooling.projector + chunk.skip * blocks.SLOTS + ahead,
            tiles.projector_step,
            CHUNK,
            CHUNK,
            blocks.SLOTS,
            blocks.PARTS,
        )
        spread += tl.sum(matrix * weight[None, :], 1)
    return g + spread[:, None] * pooling.grad[None, :]


@triton.jit
def pool_slopes(qkv, rows, row_grads, tiles, learned, outputs, sizes, blocks):
    """How the tokens of one tile of one row take part in the pooled summaries that the row sees.

    A token of weight w has w (its rotated key . gradient of the pooled key + its value . gradient
    of the pooled value - the same of the pooled pair) as ds of its score. Keys and values are those
    of one band, P k and P v.

    Args:
        qkv, tiles, learned, sizes, blocks: see `arguments.py`; `tiles` with cells.
        rows: `PreparedRows`, whose summaries and log-sum-exp are read.
        row_grads: `RowGrads`.
        outputs: `Outputs`, of which `pools` and `pooling` are written.
    """
    SLOTS: tl.constexpr = blocks.SLOTS
    CHUNK: tl.constexpr = blocks.CHUNK
    D: tl.constexpr = blocks.D
    W: tl.constexpr = blocks.W
    program = this_program(sizes)
    band = tl.load(rows.bands + program.row)
    tile = load_tile(program, band, tiles, blocks)
    channel = tl.arange(0, W)
    # Keys of a band are computed again: kept, they would take as many bytes as all keys, twice.
    step = tiles.projector_step
    projectors = tiles.projectors + tile.kind * 3 * SLOTS * SLOTS
    # Unrolled over MID and HIGH, since each has a segment of its own.
    for other in tl.static_range(1, 3):  # pyright: ignore[reportGeneralTypeIssues]
        if sees_summaries(band, other, blocks.BRANCH):
            place = (summaries_of(sizes.segments, other) + tile.cell) * W
            summary = tile.wide_row * sizes.key_rows * W + place + channel
            key_grad = tl.load(row_grads.key + summary).to(tl.float32)
            value_grad = tl.load(row_grads.value + summary).to(tl.float32)
            # The softmax's own term, as in attention: a summary times its gradient.
            delta = tl.sum(tl.load(rows.key + summary).to(tl.float32) * key_grad, 0)
            delta += tl.sum(tl.load(rows.value + summary).to(tl.float32) * value_grad, 0)
            cell = tile.wide_row * sizes.cells + tile.cell
            lse = tl.load(rows.pool_lse + cell * 2 + other - 1)
            query = load_vector(learned.pooling + (tile.head * 2 + other - 1) * D, D, W)
            weights = outputs.pools + (tile.wide_row * 2 + other - 1) * 2 * sizes.video
            share = tl.zeros((W,), tl.float32)
            for skip in range(0, SLOTS, CHUNK):
                # Keys of the band, P k, and P (v . gradient): both need every token of the tile.
                passed = tl.zeros((CHUNK, W), tl.float32)
                agree = tl.zeros((CHUNK,), tl.float32)
                for ahead in range(0, SLOTS, CHUNK):
                    projector = projectors + other * SLOTS * SLOTS + skip * SLOTS + ahead
                    near = load_chunk(tile, ahead, tiles, blocks)
                    key = load_normed(qkv.key, near, learned, sizes, blocks)
                    passed = add_product(passed, projector, step, key, SLOTS, blocks.PARTS)
                    value = load_tokens(
                        qkv.value, tile.sample, tile.head, near.call_order, near.live, D, W
                    ).to(tl.float32)
                    # (P v) . g = P (v . g): a vector goes through the projector, not W of them.
                    agreed = tl.sum(value * value_grad[None, :], 1)
                    matrix = whole_block(projector, step, CHUNK, CHUNK, SLOTS, blocks.PARTS)
                    agree += tl.sum(matrix * agreed[None, :], 1)
                chunk = load_chunk(tile, skip, tiles, blocks)
                # The forward left the log-sum-exp, so that a weight needs no other token's score.
                # A dead slot scores 0, which is a weight like any other, and so is masked.
                score = tl.sum(passed * query[None, :], 1) * (D**-0.5)
                weight = tl.where(chunk.live, tl.exp(score - lse), 0.0)
                back = tl.zeros((CHUNK, W), tl.float32) + key_grad[None, :]
                # (R k) . g = k . (R^T g): the gradient is turned back, and no key forward.
                back = turned_back(back, qkv.key, chunk, learned)
                ds = weight * (tl.sum(passed * back, 1) + agree - delta) * (D**-0.5)
                share += tl.sum(passed * ds[:, None], 0)
                tl.store(weights + chunk.tile_order, weight, mask=chunk.live)
                tl.store(weights + sizes.video + chunk.tile_order, ds, mask=chunk.live)
            # The query's gradient: no two programs write one share, so that none is atomic.
            target = ((tile.wide_row * sizes.tiles + tile.number) * 2 + other - 1) * W
            tl.store(outputs.pooling + target + channel, share)
