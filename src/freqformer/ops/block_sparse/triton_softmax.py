"""One step of the online softmax on a GPU, and how logits are rounded."""

from __future__ import annotations

import triton
import triton.language as tl

from freqformer.ops.jit import cast, dot

MASKED = tl.constexpr(float("-inf"))


@triton.jit
def product(rows, columns):
    """rows @ columns.T, of two blocks of vectors.

    Of float32 vectors they are exact but for one rounding. A GPU adds such a product up in one
    chain of roundings, which is further from float64 than a peer's longest when the two terms of a
    slope cancel.
    """
    if rows.dtype == tl.float32:
        total = tl.dot(rows.to(tl.float64), columns.to(tl.float64).T).to(tl.float32)
    else:
        total = dot(rows, columns.T, None)
    return total


@triton.jit
def scaled(logits, scale, bias):
    """logits * scale + bias, rounded once.

    In float32 the forward and the backward round every logit alike: of scores in the hundreds a
    rounding moves a weight by 1e-4, and weights that don't add up to 1 would be wrong by as much.
    """
    return tl.fma(
        logits, tl.full(logits.shape, scale, tl.float32), tl.broadcast_to(bias, logits.shape)
    )


@triton.jit
def exp2(x, PRECISE: tl.constexpr):
    """2^x for x <= 0; with PRECISE within 1e-7 of it, where a GPU's own is within 2^-22.

    2^x = 2^n (1 + f q(f)), n the nearest whole number; q interpolates (2^f - 1) / f at 6 Chebyshev
    points of [-1/2, 1/2].
    """
    if PRECISE:
        near = tl.maximum(
            x, -126.0
        )  # below, float32 has fewer bits, and 0 is near enough for a weight
        whole = tl.floor(near + 0.5)
        f = near - whole
        one = tl.full(x.shape, 1.0, tl.float32)
        q = tl.fma(0.0001545316294336166 * one, f, 0.0013390863364696123 * one)
        q = tl.fma(q, f, 0.009618082557283178 * one)
        q = tl.fma(q, f, 0.055503571142190004 * one)
        q = tl.fma(q, f, 0.2402265076056809 * one)
        q = tl.fma(q, f, 0.6931471880262288 * one)
        power = ((whole.to(tl.int32) + 127) << 23).to(tl.float32, bitcast=True)
        value = tl.where(x < -126.0, 0.0, power * tl.fma(q, f, one))
    else:
        value = tl.exp2(x)
    return value


@triton.jit
def add_product(acc, a, b):
    """acc + a @ b. In float32 added up block by block: one chain of roundings over all keys is
    longer than a peer's."""
    if b.dtype == tl.float32:
        # A plain sum would be folded into the product, as its first term.
        total = tl.fma(acc, tl.full(acc.shape, 1.0, tl.float32), dot(a, b, None))
    else:
        total = dot(cast(a, b.dtype), b, acc)
    return total


@triton.jit
def accumulate(logits, scale, value, acc, top, total, GUARD: tl.constexpr):
    """One step of the online softmax: logits (Q, K), in base 2 after `scale`, and values (K, D)."""
    new_top = tl.maximum(top, tl.max(logits, 1) * scale)
    # A query that has seen no key yet has top = -inf, and -inf - -inf would be NaN.
    base = tl.where(new_top == MASKED, 0.0, new_top) if GUARD else new_top
    weight = exp2(logits * scale - base[:, None], value.dtype == tl.float32)
    decay = exp2(top - base, value.dtype == tl.float32)
    total = total * decay + tl.sum(weight, 1)
    return add_product(acc * decay[:, None], weight, value), new_top, total
