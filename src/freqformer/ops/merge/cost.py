"""What the merge costs: low tokens' outputs back to all tokens, and with a LOW branch the gated
sum with the own band's, in one launch.

Derivation: docs/complexity.md; shape legend as in `freqformer.cost`.
"""

from __future__ import annotations

from freqformer.bands import low_grid
from freqformer.config import Band
from freqformer.cost import NOTHING, Call, Cost, compress_flops
from freqformer.plan import AttentionPlan

BRANCHES = 2
"""Gates of a token and head: of the own band, and of LOW."""
GATE_FLOPS = 2
"""Per channel and gate: a product and a sum."""
GATE_GRADIENT_FLOPS = 2
"""Per channel and gate: the gate's gradient, a product and a sum over channels."""


def merge_cost(call: Call) -> Cost:
    """Outputs of low tokens to all tokens of LOW heads; with a LOW branch, (1 + g0) own + g1 low of
    every head."""
    if call.low_rows == 0:
        return NOTHING
    spread = call.low_rows * spread_flops(call.plan)
    read = call.low_rows * call.plan.num_low_tokens * call.row_bytes
    if not call.low_branch:
        write = call.low_rows * call.video * call.row_bytes
        return Cost(spread, spread, float(read), float(write), 1)
    flops = spread + GATE_FLOPS * _gated_channels(call)
    read += _own_bytes(call) + gate_bytes(call)
    return Cost(flops, flops, float(read), float(_out_bytes(call)), 1)


def merge_backward_cost(call: Call) -> Cost:
    """The transpose; with a LOW branch one pass that also finds gradients of own outputs and gates,
    for which it computes LOW's outputs again.

    Args:
        call, low_token_flops: as `merge_cost` takes them.
    """
    forward = merge_cost(call)
    if not call.low_branch:
        return forward.transposed
    spread = call.low_rows * spread_flops(call.plan)
    channels, gated = call.count() * call.tokens * call.plan.head_dim, _gated_channels(call)
    # (1 + g0) g of the own band, or (1 + g0 + g1) g where LOW is the same; g1 g of LOW else.
    scaled = GATE_FLOPS * channels + (gated - channels)
    useful = spread + scaled + GATE_GRADIENT_FLOPS * gated
    low = call.low_rows * call.plan.num_low_tokens * call.row_bytes
    return Cost(
        flops=useful,
        executed=useful + spread,
        read_bytes=float(_out_bytes(call) + _own_bytes(call) + low + gate_bytes(call)),
        write_bytes=float(_own_bytes(call) + low + gate_bytes(call)),
        launches=1,
    )


def spread_flops(plan: AttentionPlan) -> float:
    """FLOPs of one head's low tokens back to all tokens: linear interpolation, or the inverse DCT,
    which costs what making low tokens does."""
    if plan.config.low_output == "synthesis":
        return compress_flops(plan)
    frames, rows, _ = plan.layout.grid.shape
    _, low_rows, low_columns = low_grid(plan.layout, plan.config)
    # Separable, time first: two products an output of each axis.
    outputs = frames * low_rows * low_columns + frames * rows * low_columns
    return 4.0 * (outputs + plan.layout.grid.num_tokens) * plan.head_dim


def gate_bytes(call: Call) -> int:
    """Bytes of the gates of all tokens and heads."""
    return call.count() * call.tokens * BRANCHES * call.element_size


def _gated_channels(call: Call) -> int:
    """Channels of all branches that are weighed: two, and one where LOW is the own band or a text
    query, which sees the same in both."""
    video = (call.count() + call.branched) * call.video
    return (video + call.count() * call.plan.num_text_tokens) * call.plan.head_dim


def _own_bytes(call: Call) -> int:
    """Bytes of outputs of the own bands, and of text: those of LOW heads are low tokens'."""
    video = (call.count() - call.count(Band.LOW)) * call.video
    return (video + call.count() * call.plan.num_text_tokens) * call.row_bytes


def _out_bytes(call: Call) -> int:
    return call.count() * call.tokens * call.row_bytes
