"""Backward of one attention layer: exact counts of every stage, and its time.

Queries, keys and values in tile order are not kept: the prologue runs again. Two launches find the
gradients of queries and of keys, each from scores of its own. Derivation: docs/complexity.md.

Shape legend as in `counts`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from freqformer.buffers import STATISTIC_BYTES, key_layout
from freqformer.config import Band
from freqformer.grid import TILE_SLOTS
from freqformer.plan import AttentionPlan
from freqformer.simulate.model.counts import (
    BACKWARD_FACTOR,
    LayerCounts,
    StageCounts,
    attention_tensors,
    sums_bytes,
)
from freqformer.simulate.model.low_branch import low_branch_gradients, prefixed, split_stages
from freqformer.simulate.model.roofline import Machine, StageTime, work_items
from freqformer.simulate.model.schedule import makespan

QUERY_PRODUCTS, KEY_PRODUCTS = 3, 4
"""Products per pair of blocks, where the forward has two: scores, slopes of the weights and dQ; and
scores, slopes, dV and dK."""
POOLING_PRODUCTS = 2.5
"""Products with a band's projector over the forward's: kernels take it in two summands of 16 bits,
and gradients too."""


def gradient_counts(
    plan: AttentionPlan, allocation: Sequence[int], counts: LayerCounts, *, element_size: int = 2
) -> dict[str, StageCounts]:
    """Count the backward of one FreqFormer layer by stage.

    Args:
        plan, allocation, element_size: as `layer_counts` took them.
        counts: of the forward, with `with_low_branch` where there is such a branch.
    """
    own, beside = split_stages(counts.stages)
    gradients = _call_counts(plan, Counter(Band(band) for band in allocation), own, element_size)
    if beside:
        heads = len(allocation)
        low = _call_counts(plan, Counter({Band.LOW: heads}), beside, element_size)
        gradients |= prefixed(low | low_branch_gradients(plan, heads, element_size))
    return gradients


def _call_counts(
    plan: AttentionPlan, heads: Counter[Band], stages: dict[str, StageCounts], element_size: int
) -> dict[str, StageCounts]:
    """The backward of one call."""
    row = plan.head_dim * element_size
    queries, keys = attention_tensors(plan, heads)
    attention, prologue, summaries, merge = (
        stages[name] for name in ("attention", "prologue", "summaries", "merge")
    )
    tokens = sum(heads.values()) * (plan.layout.grid.num_tokens + plan.num_text_tokens)
    # A query's log-sum-exp, and the sum over its gradient times its output.
    statistics = 2 * queries * STATISTIC_BYTES
    learned = plan.learned_summaries and plan.cells.num_cells > 0
    return {
        "prologue again": _again(prologue),
        "summaries again": _again(summaries),
        "merge": StageCounts(
            merge.flops, merge.executed, merge.write_bytes, merge.read_bytes, merge.launches
        ),
        # Output, what its rounding took, and its gradient; the gradient in tile order.
        "gather": StageCounts(0.0, 0.0, 3.0 * queries * row, queries * row + statistics, 1),
        "attention": StageCounts(
            flops=BACKWARD_FACTOR * attention.flops,
            executed=(QUERY_PRODUCTS + KEY_PRODUCTS) / 2 * attention.executed,
            read_bytes=attention.read_bytes + queries * row + statistics,
            write_bytes=(queries + 2.0 * keys) * row,
            launches=4,
        ),
        "prologue": StageCounts(
            flops=prologue.flops,
            executed=prologue.flops,
            read_bytes=prologue.write_bytes - sums_bytes(plan, heads) + 2.0 * tokens * row,
            write_bytes=3.0 * tokens * row,
            launches=2 if plan.num_text_tokens else 1,
        ),
        "summaries": StageCounts(
            flops=summaries.flops,
            executed=POOLING_PRODUCTS * summaries.executed,
            read_bytes=summaries.read_bytes if learned else 0.0,
            write_bytes=0.0,
            launches=int(learned),
        ),
    }


def _again(stage: StageCounts) -> StageCounts:
    """The same work, none of it useful."""
    return StageCounts(0.0, stage.executed, stage.read_bytes, stage.write_bytes, stage.launches)


def gradient_times(
    machine: Machine,
    plan: AttentionPlan,
    allocation: Sequence[int],
    gradients: dict[str, StageCounts],
) -> dict[str, StageTime]:
    """Time of every stage of a FreqFormer layer's backward.

    Args:
        machine, plan, allocation: as `Machine.layer` takes them.
        gradients: of `gradient_counts`.
    """
    own, beside = split_stages(gradients)
    times = _call_times(machine, plan, allocation, own)
    return (
        times | prefixed(_call_times(machine, plan, [Band.LOW.value] * len(allocation), beside))
        if beside
        else times
    )


def _call_times(
    machine: Machine,
    plan: AttentionPlan,
    allocation: Sequence[int],
    gradients: dict[str, StageCounts],
) -> dict[str, StageTime]:
    """Time of the stages of one call's backward, in their order."""
    achieved, hardware = machine.efficiency, machine.hardware
    matrix, vector = hardware.matrix_flops, hardware.vector_flops
    times = {
        name: machine.stage(gradients[name], rate, bandwidth)
        for name, rate, bandwidth in (
            ("prologue again", vector, achieved.prologue_bandwidth),
            ("summaries again", matrix * achieved.pooling_rate, achieved.elementwise_bandwidth),
            ("merge", vector, achieved.merge_gradient_bandwidth),
            ("gather", vector, achieved.elementwise_bandwidth),
            ("prologue", vector, achieved.prologue_gradient_bandwidth),
            ("summaries", matrix * achieved.pooling_gradient_rate, achieved.elementwise_bandwidth),
            ("sum", vector, achieved.elementwise_bandwidth),
            ("gates", matrix * achieved.linear_rate, achieved.elementwise_bandwidth),
            ("added gradients", vector, achieved.elementwise_bandwidth),
        )
        if name in gradients
    }
    stage = gradients["attention"]
    times["attention"] = StageTime(
        compute_s=_attention_seconds(machine, plan, allocation),
        memory_s=machine.memory_time(stage.bytes, achieved.elementwise_bandwidth),
        launch_s=stage.launches * hardware.launch_s,
        traffic_bytes=stage.bytes,
    )
    return {name: times[name] for name in gradients}


def _attention_seconds(machine: Machine, plan: AttentionPlan, allocation: Sequence[int]) -> float:
    """Gradients of queries are scheduled like the forward; those of keys are divided evenly, as
    which queries list a tile is not known for top-k."""
    achieved = machine.efficiency
    slots = round(machine.hardware.processors * achieved.attention_slots)
    rate = machine.attention_rate(plan.head_dim, achieved.attention_gradient_rate) / slots
    product = 2 * TILE_SLOTS**2 * plan.head_dim / rate
    bands = tuple(sorted((Band(band), count) for band, count in Counter(allocation).items()))
    items = work_items(plan, bands)
    started = achieved.attention_item_blocks
    queries = makespan(
        [((length + started) * QUERY_PRODUCTS * product, count) for length, count in items], slots
    )
    return queries + sum(length * count for length, count in items) * KEY_PRODUCTS * product / slots


def dense_gradient_counts(counts: LayerCounts) -> dict[str, StageCounts]:
    """Count the backward of dense attention, from the counts of its forward: it reads five tensors
    and writes three."""
    stage = counts.stages["attention"]
    executed, tensor = BACKWARD_FACTOR * stage.executed, stage.write_bytes
    return {
        "attention": StageCounts(counts.backward_flops, executed, 5.0 * tensor, 3.0 * tensor, 2)
    }


def dense_gradient_time(machine: Machine, counts: LayerCounts, head_dim: int) -> StageTime:
    """Time of the backward of dense attention, from the counts of its forward."""
    stage = dense_gradient_counts(counts)["attention"]
    return StageTime(
        compute_s=stage.flops
        / machine.attention_rate(head_dim, machine.efficiency.dense_gradient_rate),
        memory_s=machine.memory_time(stage.bytes, machine.efficiency.elementwise_bandwidth),
        launch_s=stage.launches * machine.hardware.launch_s,
        traffic_bytes=stage.bytes,
    )


def training_bytes(plan: AttentionPlan, element_size: int) -> float:
    """Most bytes that forward and backward hold at once beside queries, keys, values and the
    output's gradient: when the prologue's gradients are taken."""
    tokens, tiles = plan.layout.grid.num_tokens + plan.num_text_tokens, plan.layout.num_tiles
    buffers = tokens + 2 * key_layout(plan).rows
    # Output, what rounding took of it, zeros for the gradient of that; three gradients; buffers and
    # their gradients.
    wide = 6 * tokens + 2 * buffers + 2 * plan.num_low_tokens
    narrow = 3 * tokens + 3 * tiles * plan.head_dim
    if plan.learned_summaries and plan.cells.num_cells:
        narrow += 4 * tokens
    return float(plan.num_heads * (wide * plan.head_dim * element_size + narrow * STATISTIC_BYTES))
