"""What the merge costs: low tokens' outputs back to all tokens, and with a LOW branch the gated
sum with the own band's, in one launch.

Gates reach video tokens only. Derivation: docs/complexity.md; shape legend as in
`freqformer.cost`.
"""

from __future__ import annotations

from freqformer.bands import low_grid
from freqformer.buffers import padding
from freqformer.config import Band
from freqformer.cost import NOTHING, STATISTIC_BYTES, Call, Cost, compress_flops
from freqformer.plan import AttentionPlan

BRANCHES = 2
"""Gates of a token and head: of the own band, and of LOW."""
SUM_FLOPS = 4
"""Per channel of (1 + g0) own + g1 low: two products and two sums."""
SCALE_FLOPS = 1
"""Per channel of a gradient times its gate."""
GATE_GRADIENT_FLOPS = 2
"""Per channel of a gate's gradient: a product, and a sum over channels."""


def merge_cost(call: Call) -> Cost:
    """Outputs of low tokens to all tokens of LOW heads; with a LOW branch, (1 + g0) own + g1 low of
    every head."""
    if call.low_rows == 0:
        return NOTHING
    spread = call.low_rows * spread_flops(call.plan)
    low = call.low_rows * call.plan.num_low_tokens * call.row_bytes
    write = float(call.low_rows * call.video * call.row_bytes)
    if not call.low_branch:
        return Cost(spread, spread * padding(call.plan), float(low), write, 1)
    flops = spread + SUM_FLOPS * call.count() * call.video * call.plan.head_dim
    # A LOW head's own output is the low tokens' too.
    own = call.branched * call.video * call.row_bytes
    return Cost(flops, flops * padding(call.plan), float(low + own + gate_bytes(call)), write, 1)


def merge_backward_cost(call: Call) -> Cost:
    """The transpose; with a LOW branch of gradients times their gate. Then the gates' gradients,
    for which LOW's outputs are computed again; those of the own band's gates are by-products of
    `block_sparse.cost.gather_cost`."""
    forward = merge_cost(call)
    if not call.low_branch:
        return forward.transposed
    spread = call.low_rows * spread_flops(call.plan)
    tokens = call.count() * call.video
    scaled = (SCALE_FLOPS + GATE_GRADIENT_FLOPS) * tokens * call.plan.head_dim
    low = call.low_rows * call.plan.num_low_tokens * call.row_bytes
    # The output's gradient is read by both launches; gates' gradients are rounded by a third.
    sums = tokens * BRANCHES * STATISTIC_BYTES
    read = 2 * tokens * call.row_bytes + gate_bytes(call) + low + sums
    # Of a LOW head both gates' gradients are known here.
    found = (tokens + call.count(Band.LOW) * call.video) * STATISTIC_BYTES
    write = low + found + gate_bytes(call)
    executed = (2 * spread + scaled) * padding(call.plan)
    return Cost(spread + scaled, executed, float(read), float(write), 3)


def spread_flops(plan: AttentionPlan) -> float:
    """FLOPs of one head's low tokens back to all tokens: linear interpolation, or the inverse DCT,
    which costs what making low tokens does."""
    if plan.config.low_output == "inverse_dct":
        return compress_flops(plan)
    frames, rows, _ = plan.layout.grid.shape
    _, low_rows, low_columns = low_grid(plan.layout, plan.config)
    # Separable, time first: two products an output of each axis.
    outputs = frames * low_rows * low_columns + frames * rows * low_columns
    return 4.0 * (outputs + plan.layout.grid.num_tokens) * plan.head_dim


def gate_bytes(call: Call) -> int:
    """Bytes of the gates of all video tokens and heads."""
    return call.count() * call.video * BRANCHES * call.element_size
