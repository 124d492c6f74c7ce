"""The Triton kernel that brings output gradients to the places of their queries: the first launch
of the attention's backward. `triton_backward.py` holds the host side.
"""

from __future__ import annotations

import triton
import triton.language as tl

from freqformer.ops.block_sparse.triton_backward_queries import UNSEEN
from freqformer.ops.block_sparse.triton_blocks import LOG2_E, LOW, store_rows
from freqformer.ops.block_sparse.triton_softmax import MASKED, product
from freqformer.ops.jit import branch_gates, cast


@triton.jit(
    do_not_specialize=["rows", "heads", "num_tokens", "num_text", "num_low", "statistic_rows"]
)
def gather_grads_kernel(
    outputs,
    grads,
    targets,
    lse,
    gates,
    gate_grads,
    raster,
    allocation,
    rows,
    heads,
    num_tokens,
    num_text,
    num_low,
    statistic_rows,
    ROWS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    PAD: tl.constexpr,
    BRANCH: tl.constexpr,
):
    """ROWS output gradients of one row in the places of its queries, with their log-sum-exp in base
    2 and their delta.

    Args:
        outputs, grads: out (B, N + X, H, D), low_out (R, M, D) and the rounding residual of
            `attend`, and gradients of the first two; with BRANCH the first of what `merge_low`
            makes of it.
        targets: gradients (R, N + X + M, D) as the queries lie; log_sums, deltas and, in float32
            alone, rests, float32 (R, N + X + M). With rests, log_sums are the largest logits, and
            weights are exp2(logit - log_sum) * rest.
        lse: float32 (R, N + X + M).
        gates: by token (B, N, 2, H) and by sample (B, 2, H), each may be None.
        gate_grads: float32 (B, N, 2, H); with BRANCH those of the own band are written, but in LOW
            rows.
        raster: place in `out` of every video token in tile order; None where that is its own.
        statistic_rows: how far apart rows of the statistics lie, N + X + M or more.
        PAD: how many places hold zeros where a row has no queries: so far blocks of the queries
            before read on.
    """
    row = (tl.program_id(0) % rows).to(tl.int64)
    place = tl.program_id(0) // rows * ROWS + tl.arange(0, ROWS)
    tokens = num_tokens + num_text
    query_rows = tokens + num_low
    is_low_row = tl.load(allocation + row) == LOW
    video, low = place < num_tokens, place >= tokens
    live = (place < query_rows) & ~(video & is_low_row)
    if not BRANCH:
        live &= is_low_row | ~low
    source = place
    if raster is not None:
        source = tl.where(video, tl.load(raster + place, mask=live & video, other=0), place)
    at = ((row // heads * tokens + source) * heads + row % heads)[:, None] * HEAD_DIM
    low_at = (row * num_low + place - tokens)[:, None] * HEAD_DIM
    channel = tl.arange(0, HEAD_DIM)[None, :]
    out = tl.load(
        tl.where(low[:, None], outputs[1] + low_at, outputs[0] + at) + channel,
        mask=live[:, None],
        other=0.0,
    )
    grad = tl.load(
        tl.where(low[:, None], grads[1] + low_at, grads[0] + at) + channel,
        mask=live[:, None],
        other=0.0,
    )
    target, statistic = row * query_rows + place, row * statistic_rows + place
    if BRANCH:
        gated = live & video
        own_gate, _low_gate = branch_gates(  # pyright: ignore[reportGeneralTypeIssues]
            gates[0], gates[1], row // heads, row % heads, heads, num_tokens, source, gated
        )
        # The gate's own gradient, of what the merge gave; delta is of what the band gave, below.
        agree = tl.sum(out.to(tl.float32) * grad.to(tl.float32), 1)
        entry = (row // heads * num_tokens + source) * 2 * heads + row % heads
        tl.store(gate_grads + entry, agree, mask=gated)
        scaled_grad = cast(grad.to(tl.float32) * (1.0 + own_gate)[:, None], grad.dtype)
        grad = tl.where(gated[:, None], scaled_grad, grad)
    empty = (place < PAD) | (low & (place < tokens + PAD))
    store_rows(targets[0], target, grad, live | (empty & (place < query_rows)), HEAD_DIM)
    exact = out.to(tl.float32)
    if targets[3] is not None:
        log_sum = tl.load(outputs[2] + target * 2, mask=live, other=0.0)
        tl.store(
            targets[3] + statistic,
            tl.load(outputs[2] + target * 2 + 1, mask=live, other=0.0),
            mask=live,
        )
    else:
        log_sum = tl.load(lse + target, mask=live, other=0.0) * LOG2_E
        rest = outputs[2] + target[:, None] * HEAD_DIM + channel
        exact += tl.load(rest, mask=live[:, None], other=0.0).to(tl.float32)
    tl.store(targets[1] + statistic, tl.where(log_sum == MASKED, UNSEEN, log_sum), mask=live)
    if targets[3] is not None:
        # Summed as the kernels sum v . grad: where one key takes all weight, the two cancel to the
        # last bit.
        products = product(grad, out)
        delta = tl.sum(
            tl.where(tl.arange(0, ROWS)[:, None] == tl.arange(0, ROWS)[None, :], products, 0.0), 1
        )
    else:
        delta = tl.sum(exact * grad.to(tl.float32), 1)
    tl.store(targets[2] + statistic, delta, mask=live)
