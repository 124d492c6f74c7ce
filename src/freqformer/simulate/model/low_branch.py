"""A LOW branch beside every head's own band: exact counts of what it adds to a layer, forward and
backward.

Every head runs twice, the second time as LOW, and gives (1 + g0) own + g1 low, with gates of a
linear layer per token and head. The second call is counted and timed as a layer of LOW heads alone.
Derivation: docs/complexity.md.

Shape legend as in `counts`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TypeVar

from freqformer.buffers import STATISTIC_BYTES
from freqformer.config import Band
from freqformer.plan import AttentionPlan
from freqformer.simulate.model.counts import LOW_BRANCH, LayerCounts, StageCounts, layer_counts

BRANCHES = 2
"""Gates of a token and head: of the own branch, and of LOW."""
SUM_FLOPS, SUM_GRADIENT_FLOPS = 4, 7
"""Per channel: two products and two sums; gradients of own (2), low (1), and of each gate a product
and a sum."""
ADDED_TENSORS = 4
"""Gradients that both calls, or gates and projections, have a part in: of queries, keys, values and
the layer's input."""

T = TypeVar("T")


def with_low_branch(
    counts: LayerCounts, plan: AttentionPlan, heads: int, *, element_size: int = 2
) -> LayerCounts:
    """Counts of a layer with a LOW branch beside every head's own.

    The gates' linear layer reads the layer's input; of some of a layer's heads, their share of its
    channels is counted.

    Args:
        counts: of the layer without it, from `layer_counts`.
        plan, element_size: as `layer_counts` took them.
        heads: how many are counted, 1 to the plan's.

    Raises:
        ValueError: for a number of heads out of range, or counts that have such a branch already.
    """
    if LOW_BRANCH + "sum" in counts.stages:
        raise ValueError(
            f"counts has {LOW_BRANCH}sum already; counts of `layer_counts` are allowed: add the "
            "branch once"
        )
    if not 1 <= heads <= plan.num_heads:
        raise ValueError(
            f"heads is {heads}; 1 to {plan.num_heads} are allowed: pass the number that counts was "
            "taken of"
        )
    low = layer_counts(plan, [Band.LOW.value] * heads, element_size=element_size)
    tensor, gates = _tensor_bytes(plan, heads, element_size), _gate_bytes(plan, heads, element_size)
    weights, products = _linear(plan, heads)
    channels = tensor / element_size
    # A LOW head chooses no tiles: its selection is no launch.
    stages = {name: stage for name, stage in low.stages.items() if stage.launches} | {
        "gates": StageCounts(products, products, tensor + weights * element_size, gates, 1),
        "sum": StageCounts(
            SUM_FLOPS * channels, SUM_FLOPS * channels, 2 * tensor + gates, tensor, 1
        ),
    }
    gradients = low_branch_gradients(plan, heads, element_size)
    return replace(
        counts,
        stages=counts.stages | prefixed(stages),
        kv_bytes=counts.kv_bytes + low.kv_bytes,
        summary_bytes=counts.summary_bytes + low.summary_bytes,
        # The second call takes the first one's buffers, but the first one's output and the gates
        # wait for it.
        workspace_bytes=counts.workspace_bytes + tensor + gates,
        low_branch_backward_flops=low.backward_flops
        + sum(stage.flops for stage in gradients.values()),
    )


def low_branch_gradients(
    plan: AttentionPlan, heads: int, element_size: int
) -> dict[str, StageCounts]:
    """Count the backward of what is neither call: the gates, the sum, and adding up gradients that
    have two sources."""
    tensor, gates = _tensor_bytes(plan, heads, element_size), _gate_bytes(plan, heads, element_size)
    weights, products = _linear(plan, heads)
    learned, channels = weights * element_size, tensor / element_size
    summed, added = SUM_GRADIENT_FLOPS * channels, ADDED_TENSORS * channels
    return {
        "sum": StageCounts(summed, summed, 3 * tensor + gates, 2 * tensor + gates, 1),
        # Gradients of input, weights and bias.
        "gates": StageCounts(
            2 * products, 2 * products, tensor + gates + learned, tensor + learned, 3
        ),
        "added gradients": StageCounts(
            added, added, 2 * ADDED_TENSORS * tensor, ADDED_TENSORS * tensor, ADDED_TENSORS
        ),
    }


def low_branch_training_bytes(plan: AttentionPlan, element_size: int) -> float:
    """Most bytes that forward and backward hold at once for the branch, beside what one call holds:
    while the second call's gradients are taken."""
    tokens = plan.layout.grid.num_tokens + plan.num_text_tokens
    # The own call's output, what its rounding took and its gradient, and the gradient of the second
    # call's output.
    held = 4 * _tensor_bytes(plan, plan.num_heads, element_size)
    kept = plan.num_low_tokens * plan.head_dim * element_size + tokens * STATISTIC_BYTES
    return held + plan.num_heads * kept + 2 * _gate_bytes(plan, plan.num_heads, element_size)


def prefixed(values: dict[str, T]) -> dict[str, T]:
    """The same values under the names of the branch's stages."""
    return {LOW_BRANCH + name: value for name, value in values.items()}


def split_stages(stages: dict[str, T]) -> tuple[dict[str, T], dict[str, T]]:
    """Stages of the own bands, and those of a LOW branch beside them without the prefix; empty
    where there is none."""
    own = {name: stage for name, stage in stages.items() if not name.startswith(LOW_BRANCH)}
    return own, {
        name.removeprefix(LOW_BRANCH): stage for name, stage in stages.items() if name not in own
    }


def _linear(plan: AttentionPlan, heads: int) -> tuple[int, float]:
    """Weights and biases of these heads' gates, and FLOPs of their products."""
    tokens, outputs, width = (
        plan.layout.grid.num_tokens + plan.num_text_tokens,
        BRANCHES * heads,
        plan.num_heads * plan.head_dim,
    )
    return outputs * (width + 1), 2.0 * tokens * width * outputs


def _tensor_bytes(plan: AttentionPlan, heads: int, element_size: int) -> float:
    """Bytes of one value per token and channel of these heads."""
    return float(
        (plan.layout.grid.num_tokens + plan.num_text_tokens) * heads * plan.head_dim * element_size
    )


def _gate_bytes(plan: AttentionPlan, heads: int, element_size: int) -> float:
    return _tensor_bytes(plan, heads, element_size) * BRANCHES / plan.head_dim
