"""What the Triton kernels of the prologue's backward do with gradients of tokens, in float32.

Shape legend: D head_dim, W channels of a row of the buffers, CHUNK tokens of a tile that a program
holds at once. Gradients in registers are as wide as the buffers: zeros follow their D channels.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from freqformer.ops.jit import cast, real_channels
from freqformer.ops.prologue.triton.arguments import Rotary
from freqformer.ops.prologue.triton.tokens import (
    add_product,
    norm_scale,
    norm_weight,
    paired_channels,
    rotary_tables,
    rotate_tokens,
)


class RowGrads(NamedTuple):
    """Gradients of the buffers of `PreparedRows`, written where a row of its band holds
    something."""

    query: Tensor
    """(R, N + X + M, W)."""
    key: Tensor
    """(R, S, W)."""
    value: Tensor


class Outputs(NamedTuple):
    """What the backward writes. What is learned gets a share of every tile and block of text of
    every row, which the host adds up: sums in a fixed order give the same bits every time."""

    query: Tensor
    """(B, N + X, H, D) contiguous, as key and value."""
    key: Tensor
    value: Tensor
    query_norm: Tensor | None
    """float32 (R, shares, W), shares of the gradient of the norm's weight; None for no norm."""
    key_norm: Tensor | None
    gains: Tensor | None
    """float32 (R, T, 3)."""
    pooling: Tensor | None
    """float32 (R, T, 2, W), of the pooling queries."""
    pools: Tensor | None
    """float32 (R, 2, 2, N) by band, in tile order: weights of tokens in the pooling, and ds of
    their scores; between two launches only."""
    shares: int
    """T and the blocks of text."""
    along: Tensor | None
    """float32 (2, R, N + X), products of every query's and key's unit vector with its gradient, of
    one head; None where no norm is across heads."""


class NormGrads(NamedTuple):
    """Gradients of tokens (CHUNK, W) before their norm, what they give to its weight (W,), and how
    far they lie along the tokens (CHUNK,)."""

    tokens: tl.tensor
    weight: tl.tensor
    along: tl.tensor


@triton.jit
def load_grads(grad, place, live, W: tl.constexpr):
    """Rows `place` of a gradient (rows, W), zero where not live."""
    entry = grad + place.to(tl.int64)[:, None] * W + tl.arange(0, W)[None, :]
    # What attention left where a row of its band holds nothing is any number.
    return tl.load(entry, mask=live[:, None], other=0.0)


@triton.jit
def write_grads(target, x, place, live, g, D: tl.constexpr):
    """Gradients g (places, W) of `Tokens` x, channels as `load_tokens` has them, to the rows
    `place` of a tensor (rows, D)."""
    W: tl.constexpr = g.shape[1]
    row = target + place.to(tl.int64)[:, None] * D
    # Rounded by `cast`: left to the store, the interpreter would cut bfloat16 off.
    rounded = cast(g, target.dtype.element_ty)
    if x.HALF > 0:
        pairs = paired_channels(x, D, W)
        real = real_channels(live, D // 2, W // 2)
        even, odd = tl.split(tl.reshape(rounded, (g.shape[0], W // 2, 2)))
        tl.store(row + pairs.first[None, :], even, mask=real)
        tl.store(row + pairs.second[None, :], odd, mask=real)
    else:
        tl.store(row + tl.arange(0, W)[None, :], rounded, mask=real_channels(live, D, W))


@triton.jit
def turned_back(g, x, chunk, learned):
    """Gradients of a chunk of `Tokens` x before the rotary embedding, from those after it."""
    if x.ROTATED and learned.TURNS:
        g = rotated_back(
            g, learned.rotary, chunk.tile.sample, chunk.tile.head, chunk.call_order, chunk.live
        )
    return g


@triton.jit
def rotated_back(g, rotary, sample, head, place, live):
    """Gradients g (places, W) of tokens `place` before their rotation, from those after it."""
    turn = rotary_tables(rotary, sample, head, place, live, g.shape[1])
    # The transpose of a rotation is its inverse: the same angle with the other sign.
    return rotate_tokens(g, Rotary(cos=turn.cos, sin=-turn.sin))


@triton.jit
def add_wide_product(
    total, matrix, step, x, dtype: tl.constexpr, WIDTH: tl.constexpr, PARTS: tl.constexpr
):
    """`add_product` of float32 tokens: in two summands of `dtype` where products take no
    float32."""
    high = cast(x, dtype)
    total = add_product(total, matrix, step, high, WIDTH, PARTS)
    if PARTS > 1:
        # What rounding took, times the first summand of the matrix: the second would add less than
        # the rounding of the result.
        rounding_residual = cast(x - high.to(tl.float32), dtype)
        total = add_product(total, matrix, step, rounding_residual, WIDTH, 1)
    return total


@triton.jit
def norm_grads(g, raw, x, sample, head, place, live, num_tokens, eps, D: tl.constexpr):
    """Gradients of raw tokens (CHUNK, W) of `Tokens` x, from those of the normalised ones.

    Of a norm across heads `tokens` lacks what the length of all heads' channels takes off, which
    `norm_kernels.py` does from the `along` of all heads.
    """
    # Squares of float16 would overflow. The root is computed again: it is cheaper than reading it.
    wide = raw.to(tl.float32)
    scale = norm_scale(wide, x, sample, place, live, num_tokens, eps, D)
    unit = wide * scale[:, None]
    share = tl.sum(g * unit, 0)
    g *= norm_weight(x, head, D, g.shape[1])[None, :]
    along = tl.sum(g * unit, 1)
    if x.scales is not None:
        tokens = scale[:, None] * g
    else:
        # What lies along the token changes its length alone, and the norm takes that out.
        tokens = scale[:, None] * (g - unit * (along / D)[:, None])
    return NormGrads(tokens=tokens, weight=share, along=along)
