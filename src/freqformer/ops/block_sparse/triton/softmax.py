"""One step of the online softmax on a GPU, and how logits are rounded."""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl

from freqformer.ops.jit import cast, dot

MASKED = tl.constexpr(float("-inf"))


class SoftmaxState(NamedTuple):
    """What a block of queries carries from one block of keys to the next."""

    acc: tl.tensor
    """Weighted sum of the values so far, float32 (Q, D), with weights 2^(logit - m_i)."""
    m_i: tl.tensor
    """Largest logit so far, in base 2, float32 (Q,); -inf before the first key."""
    l_i: tl.tensor
    """Sum of those weights, float32 (Q,)."""


@triton.jit
def product(rows, columns):
    """rows @ columns.T, of two blocks of vectors.

    Of float32 vectors they are exact but for one rounding. A GPU adds such a product up in one
    chain of roundings, which is further from float64 than a peer's longest when the two terms of a
    logit's gradient cancel.
    """
    if rows.dtype == tl.float32:
        result = tl.dot(rows.to(tl.float64), columns.to(tl.float64).T).to(tl.float32)
    else:
        # Two numbers of 16 bits multiply exactly in float32: only the sum rounds.
        result = dot(rows, columns.T, None)
    return result


@triton.jit
def scaled(logits, scale, bias):
    """logits * scale + bias, rounded once.

    In float32 the forward and the backward round every logit alike: of scores in the hundreds a
    rounding moves a weight by 1e-4, and weights that don't add up to 1 would be wrong by as much.
    """
    # An explicit fma: whether the compiler fuses a product and a sum may differ between kernels.
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
        # Below, float32 has fewer bits, and 0 is near enough for a weight.
        near = tl.maximum(x, -126.0)
        whole = tl.floor(near + 0.5)
        f = near - whole
        one = tl.full(x.shape, 1.0, tl.float32)
        # Horner's rule, each step one fma: constants go in as blocks, which fma wants.
        q = tl.fma(0.0001545316294336166 * one, f, 0.0013390863364696123 * one)
        q = tl.fma(q, f, 0.009618082557283178 * one)
        q = tl.fma(q, f, 0.055503571142190004 * one)
        q = tl.fma(q, f, 0.2402265076056809 * one)
        q = tl.fma(q, f, 0.6931471880262288 * one)
        # 2^n without an exponential: n goes into the exponent's bits of a float32, whose bias is
        # 127.
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
        result = tl.fma(acc, tl.full(acc.shape, 1.0, tl.float32), dot(a, b, None))
    else:
        # Matrix units take both operands in 16 bits, so weights are rounded here.
        result = dot(cast(a, b.dtype), b, acc)
    return result


@triton.jit
def accumulate(logits, scale, value, state, GUARD: tl.constexpr):
    """The state after one block of keys: logits (Q, K), in base 2 after `scale`, and values (K,
    D)."""
    m_new = tl.maximum(state.m_i, tl.max(logits, 1) * scale)
    # A query that has seen no key yet has m_i = -inf, and -inf - -inf would be NaN. Exact tiles
    # always hold a key, so that their loop does without the guard.
    base = tl.where(m_new == MASKED, 0.0, m_new) if GUARD else m_new
    weight = exp2(logits * scale - base[:, None], value.dtype == tl.float32)
    # Weights so far are relative to the old maximum: they shrink by as much as it grew.
    decay = exp2(state.m_i - base, value.dtype == tl.float32)
    l_i = state.l_i * decay + tl.sum(weight, 1)
    acc = add_product(state.acc * decay[:, None], weight, value)
    return SoftmaxState(acc=acc, m_i=m_new, l_i=l_i)
