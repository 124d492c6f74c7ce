"""The Triton kernel that brings output gradients to the places of their queries: the first launch
of the attention's backward. `launch_backward.py` holds the host side.

Shape legend: B batch, H heads, R = B * H rows, N video tokens, X text tokens, M low tokens, D
head_dim, W channels of a row of the buffers, D rounded up.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from freqformer.ops.block_sparse.triton.blocks import LOG2_E, LOW, UNSPECIALIZED, store_rows
from freqformer.ops.block_sparse.triton.softmax import MASKED, product
from freqformer.ops.jit import branch_gates, cast, real_channels

UNSEEN = tl.constexpr(float("inf"))
"""The log-sum-exp of a query that counts for nothing: all its weights are 0."""


class Statistics(NamedTuple):
    """What weights and gradients of logits follow from, of every query, float32 (R, rows)."""

    lse: Tensor
    """Log-sum-exp in base 2. In float32 the largest logit, which the forward kept."""
    delta: Tensor
    """Sum over channels of an output times its gradient."""
    rounding_residual: Tensor | None
    """In float32 alone: weights are exp2(logit - lse) times this."""
    rows: int
    """N + X + M, rounded up to a multiple of 16 so that neighbours are loaded together."""


class QueryStatistics(NamedTuple):
    """`Statistics` of a block of queries, (Q,)."""

    lse: Any
    delta: Any
    rounding_residual: Any
    """Not read but in float32."""


class Given(NamedTuple):
    """What `attend` gave with `backward`, see `AttentionOutputs`."""

    out: Tensor
    """(B, N + X, H, D)."""
    low_out: Tensor
    """(R, M, D)."""
    lse: Tensor
    """float32 (R, N + X + M)."""
    rounding_residual: Tensor
    raster: Tensor | None
    """Place in `out` of every video token in tile order; None where that is its own."""


class OutputGrads(NamedTuple):
    """Gradients of `Given`; with a LOW branch the first of what `merge_low` makes of it."""

    out: Tensor
    low_out: Tensor


class Gates(NamedTuple):
    """Gates of a LOW branch, see `BranchGates`."""

    by_token: Tensor | None
    """(B, N, 2, H)."""
    by_sample: Tensor | None
    """(B, 2, H)."""
    grads: Tensor | None
    """float32 (B, N, 2, H): those of the own band are written, but in LOW rows. None without a
    branch."""


@triton.jit
def load_statistics(statistics, place, live):
    """`QueryStatistics` at some places; queries that are not live count for nothing, and `live` is
    None where all are."""
    # None is known when the kernel is compiled: full tiles load without masks.
    if live is None:
        lse = tl.load(statistics.lse + place)
        delta = tl.load(statistics.delta + place)
    else:
        lse = tl.load(statistics.lse + place, mask=live, other=UNSEEN)
        delta = tl.load(statistics.delta + place, mask=live, other=0.0)
    # In 16 bit nothing reads it, but the tuple wants a block: one that is there costs nothing.
    residual = lse
    if statistics.rounding_residual is not None:
        if live is None:
            residual = tl.load(statistics.rounding_residual + place)
        else:
            residual = tl.load(statistics.rounding_residual + place, mask=live, other=0.0)
    return QueryStatistics(lse=lse, delta=delta, rounding_residual=residual)


@triton.jit
def _diagonal(square, ROWS: tl.constexpr):
    """The diagonal (ROWS,) of a block (ROWS, ROWS)."""
    own = tl.arange(0, ROWS)
    # One number of each row is taken out by a sum over a mask: a block has no addresses.
    return tl.sum(tl.where(own[:, None] == own[None, :], square, 0.0), 1)


@triton.jit(do_not_specialize=UNSPECIALIZED)
def gather_grads_kernel(
    given,
    grads,
    grad,
    statistics,
    gates,
    allocation,
    num_rows,
    num_heads,
    num_tokens,
    num_text,
    num_low,
    ROWS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    CHANNELS: tl.constexpr,
    PAD: tl.constexpr,
    BRANCH: tl.constexpr,
):
    """ROWS output gradients of one row in the places of its queries, with their log-sum-exp in base
    2 and their delta.

    Args:
        given, grads, gates: `Given`, `OutputGrads`, `Gates`.
        grad: gradients as the queries lie, (R, N + X + M, W), written.
        statistics: `Statistics`, written.
        allocation: `Band` of every row, int32 (R,).
        HEAD_DIM, CHANNELS: W and D.
        PAD: how many places hold zeros where a row has no queries: so far blocks of the queries
            before read on.
        BRANCH: whether there is a LOW branch.
    """
    # Rows run fastest: heads of a token are neighbours in memory, and so are their programs in
    # time.
    row = (tl.program_id(0) % num_rows).to(tl.int64)
    place = tl.program_id(0) // num_rows * ROWS + tl.arange(0, ROWS)
    sample = row // num_heads
    head = row % num_heads
    tokens = num_tokens + num_text
    query_rows = tokens + num_low
    is_low_row = tl.load(allocation + row) == LOW
    video = place < num_tokens
    low = place >= tokens
    # The attention wrote nothing for queries that this row doesn't have: anything may lie there.
    live = (place < query_rows) & ~(video & is_low_row)
    if not BRANCH:
        live &= is_low_row | ~low
    source = place
    if given.raster is not None:
        raster = tl.load(given.raster + place, mask=live & video, other=0)
        source = tl.where(video, raster, place)
    # A block may hold text and low queries, which come from two tensors: each is read where its own
    # are. One load of pointers into both, chosen by place, is refused by AMD's compiler.
    at = ((sample * tokens + source) * num_heads + head)[:, None] * CHANNELS
    low_at = (row * num_low + place - tokens)[:, None] * CHANNELS
    channel = tl.arange(0, HEAD_DIM)[None, :]
    is_low = real_channels(live & low, CHANNELS, HEAD_DIM)
    is_other = real_channels(live & ~low, CHANNELS, HEAD_DIM)
    out = tl.where(
        low[:, None],
        tl.load(given.low_out + low_at + channel, mask=is_low, other=0.0),
        tl.load(given.out + at + channel, mask=is_other, other=0.0),
    )
    g = tl.where(
        low[:, None],
        tl.load(grads.low_out + low_at + channel, mask=is_low, other=0.0),
        tl.load(grads.out + at + channel, mask=is_other, other=0.0),
    )
    target = row * query_rows + place
    statistic = row * statistics.rows + place
    if BRANCH:
        gated = live & video
        own_gate, _low_gate = branch_gates(  # pyright: ignore[reportGeneralTypeIssues]
            gates.by_token, gates.by_sample, sample, head, num_heads, num_tokens, source, gated
        )
        # The gate's own gradient, of what the merge gave; delta is of what the band gave, below.
        # Of (1 + g) out: its derivative by g is out, by out 1 + g.
        agree = tl.sum(out.to(tl.float32) * g.to(tl.float32), 1)
        entry = (sample * num_tokens + source) * 2 * num_heads + head
        tl.store(gates.grads + entry, agree, mask=gated)
        # Rounded now, as the products of the other kernels take it: delta below must be of the
        # same.
        scaled_grad = cast(g.to(tl.float32) * (1.0 + own_gate)[:, None], g.dtype)
        g = tl.where(gated[:, None], scaled_grad, g)
    # Zeros where blocks of the queries before read on: their weight is 0, but 0 * NaN is NaN.
    empty = (place < PAD) | (low & (place < tokens + PAD))
    store_rows(grad, target, g, live | (empty & (place < query_rows)), HEAD_DIM)
    residual = given.rounding_residual
    if statistics.rounding_residual is not None:
        # The forward kept the largest logit and 1 over the sum, side by side.
        lse = tl.load(residual + target * 2, mask=live, other=0.0)
        scale = tl.load(residual + target * 2 + 1, mask=live, other=0.0)
        tl.store(statistics.rounding_residual + statistic, scale, mask=live)
        # Summed as the kernels sum v . grad: where one key takes all weight, the two cancel to the
        # last bit.
        # The square costs ROWS times the products of its diagonal, and rounds like the others.
        delta = _diagonal(product(g, out), ROWS)
    else:
        lse = tl.load(given.lse + target, mask=live, other=0.0) * LOG2_E
        lost = residual + target[:, None] * CHANNELS + channel
        # The output as it was before rounding: v . grad - delta cancels where one key has all
        # weight.
        exact = out.to(tl.float32)
        real = real_channels(live, CHANNELS, HEAD_DIM)
        exact += tl.load(lost, mask=real, other=0.0).to(tl.float32)
        delta = tl.sum(exact * g.to(tl.float32), 1)
    # -inf says that the query saw no key. Logits minus +inf are -inf and weights 0; minus -inf they
    # would be +inf, or NaN where masked.
    tl.store(statistics.lse + statistic, tl.where(lse == MASKED, UNSEEN, lse), mask=live)
    tl.store(statistics.delta + statistic, delta, mask=live)
