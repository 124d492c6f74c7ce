"""Simulation of one scenario: a model, a machine, a video and a configuration, at three levels.

    from freqformer.simulate import scenario, simulate
    result = simulate(scenario("wan2.1-14b", "h200", 262_144))
    print(result.layer.speedup, result.generation.seconds)

Times are for one video: forward passes, and of the attention layer forward and backward too. Text encoder and VAE are
left out.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from freqformer.config import FreqFormerConfig
from freqformer.grid import Grid
from freqformer.plan import AttentionPlan, build_plan
from freqformer.simulate.allocations import Heads, Route, Routing, allocation_of, count_heads, head_schedule
from freqformer.simulate.beside import beside_training_bytes, with_low_beside
from freqformer.simulate.calibration import load_calibration
from freqformer.simulate.counts import LayerCounts, StageCounts, dense_counts, layer_counts
from freqformer.simulate.gradients import dense_gradient_time, gradient_counts, gradient_times, training_bytes
from freqformer.simulate.hardware import load_hardware
from freqformer.simulate.profiles import ProfileError, known_profiles
from freqformer.simulate.roofline import Machine, StageTime
from freqformer.simulate.shapes import BlockGroup, ModelShape, load_model


@dataclass(frozen=True)
class Scenario:
    """What is simulated."""

    model: ModelShape
    machine: Machine
    grid: Grid
    config: FreqFormerConfig = field(default_factory=FreqFormerConfig)
    routing: Routing = field(default_factory=Routing)
    fps: float | None = None
    """Frames per second of the video; None: the model's own."""
    learned_summaries: bool = True
    """Whether mid and high summaries take part, as in trained models; training-free use has low ones alone."""
    low_beside: bool = False
    """Whether every head adds a gated LOW branch to its own."""
    requested: str = ""
    """The length as it was asked for."""

    @property
    def tokens(self) -> int:
        """Video tokens."""
        return self.grid.num_tokens

    @property
    def seconds_of_video(self) -> float:
        """Seconds of the video."""
        return self.model.seconds(self.grid, self.fps)


def scenario(
    model: str | Path,
    hardware: str | Path,
    length: int | str,
    *,
    config: FreqFormerConfig | None = None,
    routing: Routing | None = None,
    head_dim: int | None = None,
    calibration: str | Path | None = None,
) -> Scenario:
    """A scenario from names.

    Args:
        model: a known model's name, or the path of its JSON file.
        hardware: a known machine's name, or the path of its JSON file.
        length: video tokens, taken to the nearest whole number of frames at the model's resolution; or a duration like
            "5s", "5s@720p" or "60s@1080p/24" (frames per second).
        config: bands, patterns and summaries; None for the defaults.
        routing: who gives heads to bands; None for the paper's prior over a third of the heads each.
        head_dim: cut the model's width into heads of this size.
        calibration: a known machine's name, or a JSON file; None takes the machine's own.

    Raises:
        ProfileError: for anything unknown, missing or out of range, naming it.
    """
    shape, machine = load_model(model), load_hardware(hardware)
    if head_dim is not None:
        shape = shape.with_head_dim(head_dim)
    grid, fps = parse_length(shape, length)
    achieved = load_calibration(machine if calibration is None else calibration)
    if calibration in known_profiles("calibration") and calibration != machine.name:
        achieved = replace(achieved, transferred=True)
    config = FreqFormerConfig() if config is None else config
    routing = Routing() if routing is None else routing
    return Scenario(shape, Machine(machine, achieved), grid, config, routing, fps, requested=str(length))


def parse_length(model: ModelShape, length: int | str) -> tuple[Grid, float | None]:
    """The grid of a number of tokens or a duration, and the frame rate if one is named.

    Raises:
        ProfileError: for a text that is neither, or a value out of range.
    """
    text = str(length).strip()
    if re.fullmatch(r"[+-]?\d+", text):
        return model.grid_for_tokens(int(text), model.resolution), None
    match = re.fullmatch(r"(?P<seconds>\d+(\.\d+)?)s(@(?P<resolution>\w+))?(/(?P<fps>\d+(\.\d+)?))?", text)
    if match is None:
        raise ProfileError(f"length is {text!r}; tokens like 65536 or durations like 5s, 5s@720p, 60s@1080p/24 are allowed")
    fps = float(match["fps"]) if match["fps"] else None
    return model.grid_for_seconds(float(match["seconds"]), match["resolution"] or model.resolution, fps), fps


@dataclass(frozen=True)
class Level:
    """Cost of one attention layer, forward or with its backward, one denoising step (every model call of it) or one
    generation."""

    seconds: float
    dense_seconds: float
    parts: dict[str, float]
    """Seconds by stage."""
    dense_parts: dict[str, float]
    peak_memory_bytes: float
    dense_peak_memory_bytes: float
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
    gradients: dict[str, StageCounts]
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
        """Useful attention FLOPs, of a LOW branch beside the own bands too, over those of dense attention."""
        return self.counts.attention.useful / self.dense_counts.flops

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
        ProfileError: for a routing table that is not the model's.
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
        counts = dense_counts(tokens, self.model.heads, self.model.head_dim, element_size=self.element_size)
        return counts, self.machine.dense(counts, self.model.head_dim)

    def layer(self, route: Route) -> tuple[AttentionPlan, LayerCounts, dict[str, StageTime]]:
        """Plan, counts and times of a layer with these heads per band."""
        if route not in self._layers:
            heads, config = route
            plan = build_plan(
                self.case.grid,
                config,
                num_heads=self.model.heads,
                head_dim=self.model.head_dim,
                num_text_tokens=self.model.joint_text_tokens,
                learned_summaries=self.case.learned_summaries,
            )
            allocation = allocation_of(heads)
            live = self.case.routing.live and self.case.routing.table is None
            counts = layer_counts(plan, allocation, element_size=self.element_size, live_router=live)
            if self.case.low_beside:
                counts = with_low_beside(counts, plan, len(allocation), element_size=self.element_size)
            self._layers[route] = (plan, counts, self.machine.layer(plan, allocation, counts))
        return self._layers[route]

    def result(self) -> Result:
        schedule = head_schedule(self.model, self.case.routing, self.case.config)
        initial = count_heads(self.case.routing.initial(self.model.heads))
        first = (initial, self.case.config) if self.case.routing.table is None else schedule[len(schedule) // 2][0]
        plan, counts, stages = self.layer(first)
        dense, dense_stage = self.dense
        tensors = self._tensors(4)
        layer = self._made(
            {name: stage.seconds for name, stage in stages.items()},
            {"attention": dense_stage.seconds},
            tensors + counts.workspace_bytes,
            tensors,
        )
        gradients = gradient_counts(plan, allocation_of(first[0]), counts, element_size=self.element_size)
        steps = Counter(tuple(rows) for rows in schedule)
        return Result(
            scenario=self.case,
            plan=plan,
            allocation=allocation_of(first[0]),
            counts=counts,
            dense_counts=dense,
            gradients=gradients,
            stages=stages,
            dense_stage=dense_stage,
            layer=layer,
            training=self._training(layer, plan, allocation_of(first[0]), gradients),
            step=self._step((first,) * self.model.num_layers),
            generation=_sum([(self._step(rows), count) for rows, count in steps.items()]),
            heads_by_step=[_mean_heads([heads for heads, _ in rows]) for rows in schedule],
        )

    def _training(
        self, layer: Level, plan: AttentionPlan, allocation: list[int], gradients: dict[str, StageCounts]
    ) -> Level:
        """The layer and its backward; of dense attention the output and three gradients are held beside the inputs."""
        times = gradient_times(self.machine, plan, allocation, gradients)
        dense = dense_gradient_time(self.machine, self.dense[0], self.model.head_dim).seconds
        beside = beside_training_bytes(plan, self.element_size) if self.case.low_beside else 0.0
        return self._made(
            layer.parts | {f"backward, {name}": time.seconds for name, time in times.items()},
            layer.dense_parts | {"backward, attention": dense},
            self._tensors(4) + training_bytes(plan, self.element_size) + beside,
            self._tensors(8),
        )

    def _tensors(self, count: float) -> float:
        """Bytes of `count` tensors of one value per token and channel."""
        tokens = self.case.tokens + self.model.joint_text_tokens
        return count * tokens * self.model.width * self.element_size

    def _step(self, rows: tuple[Route, ...]) -> Level:
        parts: dict[str, float] = {}
        dense: dict[str, float] = {}
        workspace, dense_stage = 0.0, self.dense[1]
        groups = [group for group in self.model.blocks for _ in range(group.count)]
        for (route, group), layers in Counter(zip(rows, groups, strict=True)).items():
            _, counts, stages = self.layer(route)
            workspace = max(workspace, counts.workspace_bytes)
            rest, calls = self._rest(group), layers * self.model.guidance_passes
            for total, times in ((parts, stages | rest), (dense, {"attention": dense_stage} | rest)):
                _add(total, {name: stage.seconds for name, stage in times.items()}, calls)
        widest = max(group.ffn for group in self.model.blocks) / self.model.width
        # The residual stream lives through the block; then either attention's tensors do, or the feed-forward's.
        weights, ffn = self.model.weights * self.element_size, self._tensors(1 + widest)
        attention = self._tensors(5)
        peaks = [weights + self._tensors(1) + max(attention + extra, ffn) for extra in (workspace, 0.0)]
        return self._made(parts, dense, peaks[0], peaks[1])

    def _made(self, parts: dict[str, float], dense: dict[str, float], peak: float, dense_peak: float) -> Level:
        return Level(
            seconds=sum(parts.values()),
            dense_seconds=sum(dense.values()),
            parts=parts,
            dense_parts=dense,
            peak_memory_bytes=peak,
            dense_peak_memory_bytes=dense_peak,
            tokens=self.case.tokens,
            seconds_of_video=self.case.seconds_of_video,
        )

    def _rest(self, group: BlockGroup) -> dict[str, StageTime]:
        """What a block does beside self-attention: projections, feed-forward, cross-attention, norms and residuals."""
        model, machine, size = self.model, self.machine, self.element_size
        tokens, width = self.case.tokens, model.width
        own = 4 * width**2 + 2 * width * group.ffn
        cross = 2 * width**2 if group.text == "cross" else 0
        joint = model.text_tokens if group.text.startswith("joint") else 0
        flops = 2.0 * ((own + cross) * tokens + own * joint + cross * model.text_tokens)
        weights = model.block_weights(group) * size
        passed = (8 * width + 2 * group.ffn + (3 * width if cross else 0)) * (tokens + joint) * size
        times = {"linear": machine.linear(flops, weights + passed, 6 + 4 * bool(cross))}
        if cross:
            pairs = 4.0 * tokens * model.text_tokens * width
            rate = machine.attention_rate(model.head_dim, machine.calibration.dense_rate)
            traffic = 2.0 * tokens * width * size
            seconds = machine.memory_time(traffic, machine.calibration.elementwise_bandwidth)
            times["cross-attention"] = StageTime(pairs / rate, seconds, machine.hardware.launch_s, traffic)
        # Norm and modulation read and write, a gated residual reads two and writes one; the activation is in place.
        moved = (10 * width + 2 * group.ffn + (5 * width if cross else 0)) * (tokens + joint) * size
        times["elementwise"] = machine.elementwise(moved, 6 + 2 * bool(cross))
        return times


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
    )


def _mean_heads(rows: list[Heads]) -> Heads:
    low, mid, high, dense = (round(sum(row[band] for row in rows) / len(rows)) for band in range(4))
    return (low, mid, high, dense)
