"""The Triton kernels of the gated sum: `triton.py` holds the host side.

Shape legend: B batch, N tokens, H heads, D head_dim; a row is one head of one token.
"""

from __future__ import annotations

import triton
import triton.language as tl

from freqformer.ops.jit import cast


@triton.jit
def _gates(gates, weights, tokens, heads, BLOCK: tl.constexpr):
    """A program's rows: whether each is there, the places of its two gates, and the gates in
    float32."""
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    live, sample = row < tokens * heads, tl.program_id(1).to(tl.int64)
    token, head = row // heads, row % heads
    own_place = (sample * tokens + token) * 2 * heads + head
    low_place = own_place + heads
    own_gate, low_gate = tl.zeros((BLOCK,), tl.float32), tl.zeros((BLOCK,), tl.float32)
    if gates is not None:
        own_gate += tl.load(gates + own_place, mask=live, other=0.0).to(tl.float32)
        low_gate += tl.load(gates + low_place, mask=live, other=0.0).to(tl.float32)
    if weights is not None:
        of_head = weights + sample * 2 * heads + head
        own_gate += tl.load(of_head, mask=live, other=0.0).to(tl.float32)
        low_gate += tl.load(of_head + heads, mask=live, other=0.0).to(tl.float32)
    return live, own_place, low_place, own_gate, low_gate


@triton.jit
def _places(tokens, heads, BLOCK: tl.constexpr, D: tl.constexpr):
    """Where a program's channels are, int64 (BLOCK, D)."""
    row = (
        tl.program_id(1).to(tl.int64) * tokens * heads
        + tl.program_id(0) * BLOCK
        + tl.arange(0, BLOCK)
    )
    return row[:, None] * D + tl.arange(0, D)[None, :]


@triton.jit
def add_branches(
    own, low, gates, weights, out, tokens, heads, BLOCK: tl.constexpr, D: tl.constexpr
):
    """(1 + g[0]) * own + g[1] * low, with g = gates + weights; launched over blocks of a sample's
    rows, and samples.

    Args:
        own, low, out: (B, N, H, D).
        gates: (B, N, 2, H), or None.
        weights: (B, 2, H), or None.
        tokens, heads: N and H.
    """
    live, _, _, own_gate, low_gate = _gates(gates, weights, tokens, heads, BLOCK)  # pyright: ignore[reportGeneralTypeIssues]
    place = _places(tokens, heads, BLOCK, D)
    own_x = tl.load(own + place, mask=live[:, None], other=0.0).to(tl.float32)
    low_x = tl.load(low + place, mask=live[:, None], other=0.0).to(tl.float32)
    total = own_x + own_gate[:, None] * own_x + low_gate[:, None] * low_x
    tl.store(out + place, cast(total, out.dtype.element_ty), mask=live[:, None])


@triton.jit
def add_branches_backward(
    grad_out, own, low, gates, weights, grads, tokens, heads, BLOCK: tl.constexpr, D: tl.constexpr
):
    """Gradients of `add_branches`, `grads`: of own and low, (B, N, H, D), and of the gates, float32
    (B, N, 2, H)."""
    live, own_place, low_place, own_gate, low_gate = _gates(gates, weights, tokens, heads, BLOCK)  # pyright: ignore[reportGeneralTypeIssues]
    place = _places(tokens, heads, BLOCK, D)
    grad = tl.load(grad_out + place, mask=live[:, None], other=0.0).to(tl.float32)
    own_x = tl.load(own + place, mask=live[:, None], other=0.0).to(tl.float32)
    low_x = tl.load(low + place, mask=live[:, None], other=0.0).to(tl.float32)
    tl.store(
        grads[0] + place,
        cast(grad + own_gate[:, None] * grad, own.dtype.element_ty),
        mask=live[:, None],
    )
    tl.store(
        grads[1] + place, cast(low_gate[:, None] * grad, low.dtype.element_ty), mask=live[:, None]
    )
    tl.store(grads[2] + own_place, tl.sum(grad * own_x, 1), mask=live)
    tl.store(grads[2] + low_place, tl.sum(grad * low_x, 1), mask=live)
