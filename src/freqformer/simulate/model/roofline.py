"""Time of every stage: the larger of compute and memory time, plus launches; work items of
attention are scheduled.

Derivation: docs/complexity.md.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache

from freqformer.buffers import (
    SELECTION_QUERIES,
    buffer_row_bytes,
    buffer_width,
    power_of_two,
    selection_slots,
)
from freqformer.config import Band
from freqformer.cost import Call, Cost, QueryGroup
from freqformer.grid import TILE_SLOTS
from freqformer.ops.block_sparse.cost import query_counts
from freqformer.ops.routing.cost import sampled_tiles
from freqformer.plan import AttentionPlan
from freqformer.simulate.model.counts import LayerCounts
from freqformer.simulate.model.efficiency import Efficiency
from freqformer.simulate.model.hardware import Hardware
from freqformer.simulate.model.schedule import makespan

REFERENCE_CHANNELS = 128
"""The head_dim at which attention rates are measured."""


@dataclass(frozen=True)
class StageTime:
    """Time of one stage."""

    compute_s: float
    memory_s: float
    launch_s: float
    traffic_bytes: float
    """Bytes that pass main memory."""

    @property
    def seconds(self) -> float:
        """Compute and memory overlap; launches do not."""
        return max(self.compute_s, self.memory_s) + self.launch_s

    @property
    def bound(self) -> str:
        """What takes the time: compute, memory or launches."""
        parts = {"compute": self.compute_s, "memory": self.memory_s, "launches": self.launch_s}
        return max(parts, key=lambda name: parts[name])


@dataclass(frozen=True)
class Machine:
    """A machine and what kernels achieve of it."""

    hardware: Hardware
    efficiency: Efficiency

    def attention_rate(self, head_dim: int, fraction: float) -> float:
        """FLOP/s of attention with heads of this size, from the fraction achieved with heads of
        128."""
        softmax = self.efficiency.softmax_channels
        small = (
            head_dim / (head_dim + softmax) * (REFERENCE_CHANNELS + softmax) / REFERENCE_CHANNELS
        )
        return self.hardware.matrix_flops * fraction * small

    def memory_time(self, traffic: float, fraction: float) -> float:
        """Seconds to move `traffic` bytes at a fraction of the memory bandwidth."""
        return traffic / (self.hardware.memory_bandwidth * fraction)

    def layer(self, counts: LayerCounts, *, parts: int = 1) -> dict[str, StageTime]:
        """Time of every stage of a FreqFormer layer, forward.

        Args:
            counts: of the heads on this machine, from `layer_counts`.
            parts: machines that share the queries of these heads; each reads all their keys.
        """
        call, stages = counts.call, counts.stages
        assert call is not None
        achieved, vector = self.efficiency, self.hardware.vector_flops
        matrix = self.hardware.matrix_flops
        times = {"attention": self._attention(call, stages["attention"], parts)}
        for name, fraction, rate in (
            ("prologue", achieved.prologue_bandwidth, vector),
            ("summaries", achieved.elementwise_bandwidth, matrix * achieved.pooling_rate),
            ("merge", achieved.merge_bandwidth, vector),
            ("gates", achieved.elementwise_bandwidth, matrix * achieved.linear_rate),
        ):
            if name in stages:
                times[name] = self.stage(stages[name], rate, fraction, parts)
        times["selection"] = self._selection(call, stages["selection"], parts)
        if "router" in stages:
            items = call.count() * sampled_tiles(call.plan)
            times["router"] = self._router(stages["router"], items, parts)
        return {name: times[name] for name in stages}

    def dense(self, counts: LayerCounts, head_dim: int) -> StageTime:
        """Time of dense attention over the same tokens."""
        stage = counts.stages["attention"]
        rate = self.attention_rate(head_dim, self.efficiency.dense_rate)
        return StageTime(
            compute_s=stage.flops / rate,
            memory_s=self.memory_time(stage.bytes, self.efficiency.elementwise_bandwidth),
            launch_s=stage.launches * self.hardware.launch_s,
            traffic_bytes=stage.bytes,
        )

    def linear(self, flops: float, traffic: float, launches: int) -> StageTime:
        """Time of matrix products."""
        return StageTime(
            compute_s=flops / (self.hardware.matrix_flops * self.efficiency.linear_rate),
            memory_s=self.memory_time(traffic, self.efficiency.elementwise_bandwidth),
            launch_s=launches * self.hardware.launch_s,
            traffic_bytes=traffic,
        )

    def elementwise(self, traffic: float, launches: int) -> StageTime:
        """Time of operations that only move data."""
        seconds = self.memory_time(traffic, self.efficiency.elementwise_bandwidth)
        return StageTime(0.0, seconds, launches * self.hardware.launch_s, traffic)

    def stage(self, stage: Cost, rate: float, fraction: float, parts: int = 1) -> StageTime:
        """Time of a stage at a rate in FLOP/s and a fraction of the memory bandwidth, shared by
        `parts` machines."""
        return StageTime(
            compute_s=stage.executed / parts / rate,
            memory_s=self.memory_time(stage.bytes / parts, fraction),
            launch_s=stage.launches * self.hardware.launch_s,
            traffic_bytes=stage.bytes / parts,
        )

    def _selection(self, call: Call, stage: Cost, parts: int) -> StageTime:
        """Blocks of 16 query tiles, each against all key tiles, dealt to the processors like
        attention's work items."""
        tiles, achieved = call.plan.layout.num_tiles, self.efficiency
        # A block's scores are searched padded to a power of two.
        padded = power_of_two(tiles)
        slots = min(
            round(self.hardware.processors * achieved.attention_slots), selection_slots(tiles)
        )
        rate = (
            self.hardware.vector_flops
            * achieved.selection_rate
            / (self.hardware.processors * achieved.attention_slots)
        )
        seconds = (
            2
            * SELECTION_QUERIES
            * buffer_width(call.plan.head_dim)
            * (padded + achieved.selection_item_tiles)
            / rate
        )
        blocks = call.count(Band.MID) * stage.launches * -(-tiles // SELECTION_QUERIES)
        return StageTime(
            compute_s=makespan([(seconds, math.ceil(blocks / parts))], slots),
            memory_s=self.memory_time(stage.bytes / parts, achieved.elementwise_bandwidth),
            launch_s=stage.launches * self.hardware.launch_s,
            traffic_bytes=stage.bytes / parts,
        )

    def _router(self, stage: Cost, items: int, parts: int) -> StageTime:
        """Sampled tiles of every head, dealt to the processors like attention's work items."""
        if stage.launches == 1:  # of the timestep alone: nothing is sampled
            return self.stage(
                stage, self.hardware.vector_flops, self.efficiency.elementwise_bandwidth
            )
        achieved = self.efficiency
        slots = round(self.hardware.processors * achieved.attention_slots)
        seconds = (
            stage.executed / items * slots / (self.hardware.matrix_flops * achieved.router_rate)
        )
        return StageTime(
            compute_s=makespan([(seconds, math.ceil(items / parts))], slots) + achieved.router_s,
            memory_s=self.memory_time(stage.bytes / parts, achieved.elementwise_bandwidth),
            launch_s=stage.launches * self.hardware.launch_s,
            traffic_bytes=stage.bytes / parts,
        )

    def _attention(self, call: Call, stage: Cost, parts: int) -> StageTime:
        achieved, width = self.efficiency, buffer_width(call.plan.head_dim)
        slots = round(self.hardware.processors * achieved.attention_slots)
        rate = self.attention_rate(width, achieved.attention_rate) / slots
        block = 4 * call.plan.layout.block**2 * width / rate
        # What an item takes beside its blocks is latency, whatever their size.
        start = achieved.attention_item_blocks * 4 * TILE_SLOTS**2 * width / rate
        items = [(length * block + start, -(-count // parts)) for length, count in work_items(call)]
        refetched = sum(
            group.heads * self._refetched(call.plan, group, slots) for group in call.groups
        )
        # Outputs, and as many bytes of queries, are shared by the parts; keys and values are not.
        traffic = stage.bytes - 2 * stage.write_bytes * (1 - 1 / parts) + refetched / parts
        return StageTime(
            compute_s=makespan(items, slots),
            memory_s=self.memory_time(traffic, achieved.elementwise_bandwidth),
            launch_s=stage.launches * self.hardware.launch_s,
            traffic_bytes=traffic,
        )

    def _refetched(self, plan: AttentionPlan, group: QueryGroup, slots: int) -> float:
        """Bytes of keys and values of one head that are read from main memory again, since the L2
        cache lost them."""
        pair = 2 * buffer_row_bytes(plan, self.hardware.element_size)
        streamed = query_counts(plan, group.band, group.text).kv_slots * pair
        keys = sum(plan.extra_segments(group.band)) + (
            0 if group.band == Band.LOW else plan.layout.grid.num_tokens
        )
        working = working_set(plan, group.band, slots) * pair
        kept = min(1.0, self.hardware.l2_bytes / working) if working else 1.0
        return max(0.0, streamed - keys * pair) * (1 - kept)


def work_items(call: Call) -> list[tuple[int, int]]:
    """Work items of the launch, longest first: (blocks of keys, how many). Text queries' lists
    are split to the longest of the video's."""
    plan, items = call.plan, Counter[int]()
    text = (
        plan.layout.num_tiles + -(-plan.num_text_tokens // plan.layout.block)
        if plan.num_text_tokens
        else None
    )
    known = [
        (query_counts(plan, group.band, group.text).key_blocks, group.heads)
        for group in call.groups
    ]
    video = [length for blocks, _ in known for length, _ in blocks if length != text]
    longest = max(1, *video, 0)
    for blocks, heads in known:
        for length, count in blocks:
            pieces = max(1, -(-length // longest))
            for piece in range(pieces):
                items[length * (piece + 1) // pieces - length * piece // pieces] += count * heads
    return sorted(items.items(), reverse=True)


@lru_cache(maxsize=256)
def working_set(plan: AttentionPlan, band: Band, slots: int) -> float:
    """Keys that the work items of one head that run at the same time read, on average for lists
    that data chooses."""
    tiles, extra = plan.layout.num_tiles, sum(plan.extra_segments(band))
    if band == Band.LOW:
        return extra
    lists = {Band.MID: plan.mid_lists, Band.HIGH: plan.high_lists}.get(band)
    running = min(slots, tiles)
    if lists is None:
        kept = tiles if band == Band.DENSE else plan.mid_capacity
        seen = tiles * (1 - (1 - kept / tiles) ** running)
    else:
        middle = lists[(tiles - running) // 2 :][:running]
        seen = len(middle[middle >= 0].unique())
    return seen * plan.layout.block + extra
