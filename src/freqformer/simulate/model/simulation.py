"""What one scenario costs, at four levels: an attention layer, the same trained, a denoising step
and a generation.

Times are for one video: forward passes, and of the attention layer forward and backward too. What
is left out of a generation: text encoder, VAE, patch embedding and output layer, and what a
pipeline loses between its kernels.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, replace
from functools import cached_property

from freqformer.config import Band, FreqFormerConfig
from freqformer.cost import Cost
from freqformer.grid import Grid, tile_layout
from freqformer.ops.cost import training_bytes
from freqformer.patterns import FIXED_PATTERNS
from freqformer.plan import AttentionPlan, build_plan
from freqformer.simulate.model.allocations import (
    Heads,
    Route,
    allocation_of,
    count_heads,
    head_schedule,
)
from freqformer.simulate.model.counts import LayerCounts, dense_counts, layer_counts
from freqformer.simulate.model.gradients import (
    dense_gradient_time,
    gradient_counts,
    gradient_times,
)
from freqformer.simulate.model.profiles import ProfileError
from freqformer.simulate.model.roofline import StageTime
from freqformer.simulate.model.scenarios import Scenario
from freqformer.simulate.model.training_free import training_free_schedule
from freqformer.simulate.model.transformers import BlockGroup

MOST_LISTED = 1 << 26
"""Most pairs of tiles that the patterns of one plan list: half a GiB, and as much again while they
are made."""


@dataclass(frozen=True)
class Level:
    """Cost of one attention layer, forward or with its backward, one denoising step (every model
    call of it) or one generation."""

    seconds: float
    dense_seconds: float
    parts: dict[str, float]
    """Seconds by stage."""
    dense_parts: dict[str, float]
    peak_memory_bytes: float
    dense_peak_memory_bytes: float
    dense_flops: float
    """Useful, with dense attention."""
    tokens: int
    seconds_of_video: float

    @property
    def speedup(self) -> float:
        """Dense time over FreqFormer's."""
        return self.dense_seconds / self.seconds

    @property
    def tokens_per_s(self) -> float:
        """Video tokens over time."""
        return self.tokens / self.seconds

    @property
    def video_seconds_per_s(self) -> float:
        """Seconds of video over time."""
        return self.seconds_of_video / self.seconds


@dataclass(frozen=True)
class Result:
    """What `simulate` found."""

    scenario: Scenario
    plan: AttentionPlan
    allocation: list[int]
    """The band of every head in `layer` and `step`."""
    counts: LayerCounts
    dense_counts: LayerCounts
    gradients: dict[str, Cost]
    """Of the layer's backward."""
    stages: dict[str, StageTime]
    """Of the attention layer with the initial split of heads."""
    dense_stage: StageTime
    layer: Level
    """One attention layer, from projected queries, keys and values to its output."""
    training: Level
    """Forward and backward of that layer; parts of the backward begin with `backward, `."""
    step: Level
    """One denoising step with the initial split."""
    generation: Level
    """All steps, with the heads of every step."""
    heads_by_step: list[Heads]
    """Mean over layers, rounded: heads in LOW, MID, HIGH and DENSE."""

    @property
    def density(self) -> float:
        """Useful attention FLOPs, a LOW branch's among them, over those of dense attention."""
        return self.counts.attention.useful / self.dense_counts.flops

    @property
    def runs_dense(self) -> bool:
        """Whether `layer` and `step` run the model's own attention, and nothing of the banded
        path."""
        dials = self.scenario.dials is not None and Band.DENSE in self.allocation
        return self.scenario.runs_dense or dials

    @property
    def fits_memory(self) -> bool:
        """Whether a denoising step needs no more than the machine's memory."""
        return self.step.peak_memory_bytes <= self.scenario.machine.hardware.memory_bytes

    @property
    def traffic_bytes(self) -> float:
        """Bytes that pass main memory in one attention layer."""
        return sum(stage.traffic_bytes for stage in self.stages.values())

    @property
    def arithmetic_intensity(self) -> float:
        """Useful FLOPs of one attention layer over the bytes that pass main memory."""
        return self.counts.flops / self.traffic_bytes


def simulate(case: Scenario) -> Result:
    """Simulate one scenario.

    Raises:
        ProfileError: for a routing table that is not the model's, or lists of tiles that would not
            fit into memory.
    """
    return _Simulation(case).result()


class _Simulation:
    """One scenario under way: layers of equal heads are counted and timed once."""

    def __init__(self, case: Scenario) -> None:
        self.case, self.model, self.machine = case, case.model, case.machine
        self.element_size = case.machine.hardware.element_size
        self._layers: dict[Route, tuple[AttentionPlan, LayerCounts, dict[str, StageTime]]] = {}

    @cached_property
    def dense(self) -> tuple[LayerCounts, StageTime]:
        tokens = self.case.tokens + self.model.joint_text_tokens
        counts = dense_counts(
            tokens, self.model.heads, self.model.head_dim, element_size=self.element_size
        )
        return counts, self.machine.dense(counts, self.model.head_dim)

    def layer(self, route: Route) -> tuple[AttentionPlan, LayerCounts, dict[str, StageTime]]:
        """Plan, counts and times of a layer with these heads per band."""
        if route not in self._layers:
            heads, config = route
            _check_lists(self.case.grid, config)
            plan = build_plan(
                self.case.grid,
                config,
                num_heads=self.model.heads,
                head_dim=self.model.head_dim,
                num_text_tokens=self.model.joint_text_tokens,
                learned_summaries=self.case.pools_summaries,
            )
            if self._is_models_own(heads):
                counts, stage = self.dense
                self._layers[route] = (plan, counts, {"attention": stage})
                return self._layers[route]
            allocation = allocation_of(heads)
            counts = layer_counts(
                plan,
                allocation,
                element_size=self.element_size,
                router=self.case.router,
                low_branch=self.case.has_low_branch,
            )
            self._layers[route] = (plan, counts, self.machine.layer(counts))
        return self._layers[route]

    def _is_models_own(self, heads: Heads) -> bool:
        """Whether a layer runs the model's own attention, and nothing of the banded path."""
        case = self.case
        return case.runs_dense or (case.dials is not None and heads[Band.DENSE] > 0)

    def schedule(self) -> tuple[list[list[Route]], Route]:
        """Heads and config of every step and layer, and those that `layer` and `step` have: the
        initial split's, or a table's first layer at the middle step."""
        case, heads = self.case, self.model.heads
        if case.runs_dense:
            route: Route = ((0, 0, 0, heads), case.config)
            return [[route] * self.model.num_layers] * self.model.steps, route
        if case.dials is not None:
            schedule = training_free_schedule(case, case.dials)
            banded = (row for step in schedule for row in step if not row[0][Band.DENSE])
            return schedule, next(banded, schedule[0][0])
        schedule = head_schedule(self.model, case.routing, case.config)
        if case.routing.table is not None:
            return schedule, schedule[len(schedule) // 2][0]
        return schedule, (count_heads(case.initial), case.config)

    def result(self) -> Result:
        schedule, first = self.schedule()
        plan, counts, stages = self.layer(first)
        dense, dense_stage = self.dense
        tensors = self._tensors(4)
        layer = self._made(
            {name: stage.seconds for name, stage in stages.items()},
            {"attention": dense_stage.seconds},
            (tensors + counts.workspace_bytes, tensors),
            dense.flops,
        )
        steps = Counter(tuple(rows) for rows in schedule)
        return Result(
            scenario=self.case,
            plan=plan,
            allocation=allocation_of(first[0]),
            counts=counts,
            dense_counts=dense,
            gradients=gradient_counts(counts),
            stages=stages,
            dense_stage=dense_stage,
            layer=layer,
            training=self._training(layer, plan, counts, first),
            step=self._step((first,) * self.model.num_layers),
            generation=_sum([(self._step(rows), count) for rows, count in steps.items()]),
            heads_by_step=[_mean_heads([heads for heads, _ in rows]) for rows in schedule],
        )

    def _training(
        self, layer: Level, plan: AttentionPlan, counts: LayerCounts, route: Route
    ) -> Level:
        """The layer and its backward; of dense attention the output and three gradients are held
        in addition to the inputs."""
        dense_time = dense_gradient_time(self.machine, self.dense[0], self.model.head_dim)
        heads, _ = route
        if self._is_models_own(heads):
            times, held = {"attention": dense_time}, self._tensors(4)
        else:
            times = gradient_times(self.machine, counts)
            held = training_bytes(plan, self.element_size, self.case.has_low_branch)
        dense = self.dense[0]
        return self._made(
            layer.parts | {f"backward, {name}": time.seconds for name, time in times.items()},
            layer.dense_parts | {"backward, attention": dense_time.seconds},
            (self._tensors(4) + held, self._tensors(8)),
            dense.flops + dense.backward_flops,
        )

    def _tensors(self, count: float) -> float:
        """Bytes of `count` tensors of one value per token and channel."""
        tokens = self.case.tokens + self.model.joint_text_tokens
        return count * tokens * self.model.width * self.element_size

    def _step(self, rows: tuple[Route, ...]) -> Level:
        parts: dict[str, float] = {}
        dense: dict[str, float] = {}
        workspace = flops = 0.0
        dense_counted, dense_stage = self.dense
        groups = [group for group in self.model.blocks for _ in range(group.count)]
        for (route, group), layers in Counter(zip(rows, groups, strict=True)).items():
            _, counts, stages = self.layer(route)
            workspace = max(workspace, counts.workspace_bytes)
            rest, calls = self._rest(group), layers * self.model.guidance_passes
            flops += calls * (dense_counted.flops + self._rest_flops(group))
            for total, times in (
                (parts, stages | rest),
                (dense, {"attention": dense_stage} | rest),
            ):
                _add(total, {name: stage.seconds for name, stage in times.items()}, calls)
        widest = max(group.ffn for group in self.model.blocks) / self.model.width
        # The residual stream lives through the block; then either attention's tensors do, or the
        # feed-forward's.
        weights, ffn = self.model.weights * self.element_size, self._tensors(1 + widest)
        attention = self._tensors(5)
        peaks = [
            weights + self._tensors(1) + max(attention + extra, ffn) for extra in (workspace, 0.0)
        ]
        return self._made(parts, dense, (peaks[0], peaks[1]), flops)

    def _made(
        self,
        parts: dict[str, float],
        dense: dict[str, float],
        peaks: tuple[float, float],
        dense_flops: float,
    ) -> Level:
        peak, dense_peak = peaks
        return Level(
            seconds=sum(parts.values()),
            dense_seconds=sum(dense.values()),
            parts=parts,
            dense_parts=dense,
            peak_memory_bytes=peak,
            dense_peak_memory_bytes=dense_peak,
            dense_flops=dense_flops,
            tokens=self.case.tokens,
            seconds_of_video=self.case.seconds_of_video,
        )

    def _rest_flops(self, group: BlockGroup) -> float:
        """FLOPs of the matrix products of `_rest`."""
        model, tokens = self.model, self.case.tokens
        own, cross = model.token_weights(group)
        joint = model.text_tokens if group.text.startswith("joint") else 0
        attended = 4.0 * tokens * model.text_tokens * model.width if cross else 0.0
        return _linear_flops(own, cross, tokens, joint, model.text_tokens) + attended

    def _rest(self, group: BlockGroup) -> dict[str, StageTime]:
        """What a block does beside self-attention: projections, feed-forward, cross-attention,
        norms and residuals."""
        model, machine, size = self.model, self.machine, self.element_size
        tokens, width = self.case.tokens, model.residual_width
        own, cross = model.token_weights(group)
        joint = model.text_tokens if group.text.startswith("joint") else 0
        flops = _linear_flops(own, cross, tokens, joint, model.text_tokens)
        weights = model.block_weights(group) * size
        passed = (8 * width + 2 * group.ffn + (3 * width if cross else 0)) * (tokens + joint) * size
        times = {"linear": machine.linear(flops, weights + passed, 6 + 4 * bool(cross))}
        if cross:
            pairs = 4.0 * tokens * model.text_tokens * model.width
            rate = machine.attention_rate(model.head_dim, machine.efficiency.dense_rate)
            traffic = 2.0 * tokens * model.width * size
            seconds = machine.memory_time(traffic, machine.efficiency.elementwise_bandwidth)
            times["cross-attention"] = StageTime(
                pairs / rate, seconds, machine.hardware.launch_s, traffic
            )
        # Norm and modulation read and write, a gated residual reads two and writes one; the
        # activation is in place.
        moved = (10 * width + 2 * group.ffn + (5 * width if cross else 0)) * (tokens + joint) * size
        times["elementwise"] = machine.elementwise(moved, 6 + 2 * bool(cross))
        return times


def _check_lists(grid: Grid, config: FreqFormerConfig) -> None:
    """Raise ProfileError where the patterns' lists of tiles would not fit into the memory of an
    ordinary machine."""
    layout = tile_layout(grid, config.tile)
    sides = zip(config.window, layout.tiles, strict=True)
    window = math.prod(min(side, total) for side, total in sides)
    listed = [("window", window, "window")]
    fixed = FIXED_PATTERNS.get(config.mid_pattern)
    if fixed is not None:
        listed.append((config.mid_pattern, fixed.most(layout, config), fixed.reads))
    for name, longest, setting in listed:
        entries = layout.num_tiles * longest
        if entries > MOST_LISTED:
            raise ProfileError(
                f"tokens is {grid.num_tokens:,} in {layout.num_tiles:,} tiles {layout.tile}, of "
                f"which the {name} lists "
                f"{entries:,} pairs; {MOST_LISTED:,} at most are allowed: take fewer tokens, "
                f"larger tiles, or a smaller {setting}"
            )


def _linear_flops(own: int, cross: int, tokens: int, joint: int, text: int) -> float:
    return 2.0 * ((own + cross) * tokens + own * joint + cross * text)


def _add(total: dict[str, float], parts: dict[str, float], times: int) -> None:
    for name, seconds in parts.items():
        total[name] = total.get(name, 0.0) + times * seconds


def _sum(steps: list[tuple[Level, int]]) -> Level:
    parts: dict[str, float] = {}
    dense: dict[str, float] = {}
    for step, count in steps:
        _add(parts, step.parts, count)
        _add(dense, step.dense_parts, count)
    peak = max(step.peak_memory_bytes for step, _ in steps)
    return replace(
        steps[0][0],
        seconds=sum(parts.values()),
        dense_seconds=sum(dense.values()),
        parts=parts,
        dense_parts=dense,
        peak_memory_bytes=peak,
        dense_flops=sum(step.dense_flops * count for step, count in steps),
    )


def _mean_heads(rows: list[Heads]) -> Heads:
    low, mid, high, dense = (round(sum(row[band] for row in rows) / len(rows)) for band in range(4))
    return (low, mid, high, dense)
