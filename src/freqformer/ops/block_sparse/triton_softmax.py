"""One step of the online softmax on a GPU, and how logits are rounded."""

from __future__ import annotations

import triton
import triton.language as tl

from freqformer.ops.jit import cast, dot

MASKED = tl.constexpr(float("-inf"))


@triton.jit
def scaled(logits, scale, bias):
    """logits * scale + bias, rounded once.

    In float32 the forward and the backward round every logit alike: of scores in the hundreds a rounding moves a weight by
    1e-4, and weights that don't add up to 1 would be wrong by as much.
    """
    return tl.fma(logits, tl.full(logits.shape, scale, tl.float32), tl.broadcast_to(bias, logits.shape))


@triton.jit
def accumulate(logits, scale, value, acc, top, total, GUARD: tl.constexpr):
    """One step of the online softmax: logits (Q, K), in base 2 after `scale`, and values (K, D)."""
    new_top = tl.maximum(top, tl.max(logits, 1) * scale)
    # A query that has seen no key yet has top = -inf, and -inf - -inf would be NaN.
    base = tl.where(new_top == MASKED, 0.0, new_top) if GUARD else new_top
    weight = tl.exp2(logits * scale - base[:, None])
    decay = tl.exp2(top - base)
    total = total * decay + tl.sum(weight, 1)
    if value.dtype == tl.float32:
        # Added up block by block: one chain of roundings over all keys is longer than what a float32 peer has.
        acc = tl.fma(acc, tl.broadcast_to(decay[:, None], acc.shape), dot(weight, value, None))
    else:
        acc = dot(cast(weight, value.dtype), value, acc * decay[:, None])
    return acc, new_top, total
