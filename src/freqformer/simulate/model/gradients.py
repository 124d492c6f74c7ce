"""Backward of one attention layer: exact counts of every stage, and its time.

Queries, keys and values in tile order are not kept: the prologue runs again. Two launches find the
gradients of queries and of keys, each from scores of its own. Derivation: docs/complexity.md.

Shape legend as in `freqformer.cost`.
"""

from __future__ import annotations

from freqformer.buffers import buffer_width
from freqformer.cost import Call, Cost
from freqformer.grid import TILE_SLOTS
from freqformer.ops.block_sparse.cost import KEY_PRODUCTS, QUERY_PRODUCTS
from freqformer.simulate.model.counts import LayerCounts
from freqformer.simulate.model.roofline import Machine, StageTime, work_items
from freqformer.simulate.model.schedule import makespan


def gradient_counts(counts: LayerCounts) -> dict[str, Cost]:
    """Count the backward of a layer by stage, from the counts of its forward."""
    return counts.gradients


def gradient_times(machine: Machine, counts: LayerCounts) -> dict[str, StageTime]:
    """Time of every stage of a FreqFormer layer's backward, from the counts of its forward."""
    assert counts.call is not None
    gradients = gradient_counts(counts)
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
            ("gates", matrix * achieved.linear_rate, achieved.elementwise_bandwidth),
        )
        if name in gradients
    }
    stage = gradients["attention"]
    times["attention"] = StageTime(
        compute_s=_attention_seconds(machine, counts.call),
        memory_s=machine.memory_time(stage.bytes, achieved.elementwise_bandwidth),
        launch_s=stage.launches * hardware.launch_s,
        traffic_bytes=stage.bytes,
    )
    return {name: times[name] for name in gradients}


def _attention_seconds(machine: Machine, call: Call) -> float:
    """Gradients of queries are scheduled like the forward; those of keys are divided evenly, as
    which queries list a tile is not known for top-k."""
    achieved = machine.efficiency
    slots = round(machine.hardware.processors * achieved.attention_slots)
    width = buffer_width(call.plan.head_dim)
    rate = machine.attention_rate(width, achieved.attention_gradient_rate) / slots
    product = 2 * call.plan.layout.block**2 * width / rate
    start = achieved.attention_item_blocks * 2 * TILE_SLOTS**2 * width / rate
    items = work_items(call)
    queries = makespan(
        [((length * product + start) * QUERY_PRODUCTS, count) for length, count in items], slots
    )
    return queries + sum(length * count for length, count in items) * KEY_PRODUCTS * product / slots


def dense_gradient_time(machine: Machine, counts: LayerCounts, head_dim: int) -> StageTime:
    """Time of the backward of dense attention, from the counts of its forward."""
    stage = gradient_counts(counts)["attention"]
    return StageTime(
        compute_s=stage.flops
        / machine.attention_rate(head_dim, machine.efficiency.dense_gradient_rate),
        memory_s=machine.memory_time(stage.bytes, machine.efficiency.elementwise_bandwidth),
        launch_s=stage.launches * machine.hardware.launch_s,
        traffic_bytes=stage.bytes,
    )
