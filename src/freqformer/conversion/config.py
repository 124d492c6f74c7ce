"""What a conversion does, as frozen JSON-able records that refuse bad values."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import Any, get_args

from freqformer._validate import check_choice, check_flag, check_number, check_whole, shown
from freqformer.integrations.diffusers.converted.adapter import AdapterSettings
from freqformer.integrations.diffusers.converted.learned import Change
from freqformer.integrations.diffusers.converted.windows import WindowSettings
from freqformer.training.config import (
    CheckpointConfig,
    Device,
    ObjectiveConfig,
    OptimizerConfig,
    Precision,
    RunConfig,
    Tracker,
)
from freqformer.training.config_dict import build, sections
from freqformer.training.data_config import DataConfig
from freqformer.training.parallel_config import ParallelConfig
from freqformer.training.pipeline_config import Part
from freqformer.training.sharding import StepShards

OF_A_SESSION = ("stop_after_seconds",)
"""Fields of `ConversionRunConfig` that belong to one call, and not to the run."""
RANK = 32
_MOST_STEPS = 10**9


@dataclass(frozen=True)
class WeightsConfig:
    """What learns beside gates and router of every LOW branch.

    Args:
        change: `lora` adds matrices of low rank to the projections of self-attention, `full` learns
            the projections themselves.
        rank: of `lora`; None is 32, and `full` has none.
    """

    change: Change = "lora"
    rank: int | None = None

    def __post_init__(self) -> None:
        check_choice("change", self.change, get_args(Change))
        if self.rank is not None:
            check_whole("rank", self.rank, 1)
        if self.change == "full" and self.rank is not None:
            raise ValueError(
                f"rank is {self.rank} with change 'full', which learns whole matrices; None is "
                "allowed: leave it out, or take change 'lora'"
            )


@dataclass(frozen=True)
class StagesConfig:
    """The stages of a conversion, one after another, and whether the density falls over them.

    Args:
        layer_steps: optimizer steps of stage one, in which every layer's output is drawn to the
            dense one's, on the dense model's inputs.
        velocity_steps: of stage two, in which the model's velocity is.
        data_steps: of stage three, which trains on clips as any training does.
        falling: share of all steps over which the density falls from below 1 to the asked one; at 0
            it is the asked one from the first step on.
        levels: steps of that fall, the last at the asked density; each has fewer tiles.
    """

    layer_steps: int = 1000
    velocity_steps: int = 1000
    data_steps: int = 0
    falling: float = 0.0
    levels: int = 8

    def __post_init__(self) -> None:
        for name in ("layer_steps", "velocity_steps", "data_steps"):
            check_whole(name, getattr(self, name), 0, most=_MOST_STEPS)
        check_number("falling", self.falling, 0, 1, "0 begins with the asked density")
        check_whole("levels", self.levels, 1, most=1000)
        if not self.total:
            raise ValueError(
                "stages have 0 steps; 1 and more in all are allowed: give layer_steps, "
                "velocity_steps or data_steps"
            )

    @property
    def total(self) -> int:
        """Steps of all stages."""
        return self.layer_steps + self.velocity_steps + self.data_steps


@dataclass(frozen=True)
class ConversionRunConfig:
    """On what, and with how many clips at once, a conversion runs.

    Args:
        batch_size: clips of a process's forward pass.
        accumulation: forward passes of a process in an optimizer step.
        precision: `bf16` holds the dense model in bfloat16, and what learns in float32.
        gradient_checkpointing: whether blocks are computed again in the backward of stages two and
            three.
        seed: of what learns, data order, noise and all else.
        device: `auto` takes a GPU where there is one.
        progress: whether to draw a progress bar.
        tracker: `wandb` or `trackio`, whose log is written beside TensorBoard's; None writes none.
        stop_after_seconds: seconds after which this call ends with a checkpoint; the same call goes
            on from there.
        parallel: `dp_shard` processes share the weights of a dense model of diffusers; what learns
            is whole on each.
    """

    batch_size: int = 1
    accumulation: int = 1
    precision: Precision = "bf16"
    gradient_checkpointing: bool = False
    seed: int = 0
    device: Device = "auto"
    progress: bool = True
    tracker: Tracker | None = None
    stop_after_seconds: float | None = None
    parallel: ParallelConfig = field(default_factory=ParallelConfig)

    def __post_init__(self) -> None:
        self.whole(1)
        check_flag("progress", self.progress)
        if self.parallel.cp > 1:
            raise ValueError(
                f"parallel.cp is {self.parallel.cp}; 1 is allowed, since processes of a conversion"
                " don't share a clip: share the dense model's weights by parallel.dp_shard"
            )

    def whole(self, max_steps: int) -> RunConfig:
        """The same for what runs of training share.

        Args:
            max_steps: of all stages.
        """
        own = {item.name: getattr(self, item.name) for item in fields(self)}
        return RunConfig(max_steps=max_steps, **own)


@dataclass(frozen=True)
class ConvertConfig:
    """A conversion of a dense model into one of windows, or best tiles, and LOW branches.

    Args:
        pipeline: folder of the dense model's pipeline, of diffusers or of this package.
        output: folder for checkpoints, log and result.
        part: name of the transformer in its pipeline; of two, each is converted at its own noise
            levels, by a run of its own.
        calls: folder of recorded calls, see `freqformer.conversion.calls`, in place of clips.
        windows, weights, stages, data, optimizer, objective, run, checkpoint: see their classes.

    Raises:
        ValueError: for a value out of range, NaN included, naming the field.
    """

    pipeline: str
    output: str
    part: Part = "transformer"
    calls: str | None = None
    windows: WindowSettings = field(default_factory=WindowSettings)
    weights: WeightsConfig = field(default_factory=WeightsConfig)
    stages: StagesConfig = field(default_factory=StagesConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(learning_rate=3e-4, weight_decay=0.0)
    )
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    run: ConversionRunConfig = field(default_factory=ConversionRunConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)

    def __post_init__(self) -> None:
        for name in ("pipeline", "output"):
            if not isinstance(getattr(self, name), str) or not getattr(self, name):
                raise ValueError(
                    f"{name} is {shown(getattr(self, name))}; the path of a folder, as text, is "
                    "allowed"
                )
        for name, kind in sections(type(self)).items():
            if not isinstance(getattr(self, name), kind):
                raise ValueError(
                    f"{name} is {shown(getattr(self, name))}; a {kind.__name__} is allowed"
                )
        check_choice("part", self.part, get_args(Part))
        self._check_calls()
        if self.data.first_frame:
            raise ValueError(
                f"data.first_frame is {self.data.first_frame}; 0 is allowed: conversion shows the "
                "dense model whole videos"
            )

    def _check_calls(self) -> None:
        if self.calls is None:
            return
        if not isinstance(self.calls, str) or not self.calls:
            raise ValueError(
                f"calls is {shown(self.calls)}; the path of a folder, as text, or None is allowed"
            )
        if self.data != DataConfig():
            raise ValueError(
                f"calls is {self.calls!r} and data names clips; one of the two is allowed: leave "
                "one out"
            )
        if self.stages.data_steps:
            raise ValueError(
                f"stages.data_steps is {self.stages.data_steps} with recorded calls, which know no "
                "clips; 0 is allowed: take a cache for stage three"
            )
        if self.run.batch_size != 1:
            raise ValueError(
                f"run.batch_size is {self.run.batch_size} with recorded calls, which are asked as "
                "they were made; 1 is allowed: raise run.accumulation"
            )

    def shards(self, processes: int = 1, process: int = 0) -> StepShards:
        """Which clips or calls of a step are a process's.

        Args:
            processes: of the run.
            process: number of this one, from 0.
        """
        return StepShards(self.run.batch_size, self.run.accumulation, processes, process)

    @property
    def adapter(self) -> AdapterSettings:
        """Of the result."""
        rank = RANK if self.weights.rank is None else self.weights.rank
        return AdapterSettings(self.windows, self.weights.change, rank)

    def to_record(self) -> dict[str, Any]:
        """The fields as JSON-able values, without what belongs to one call alone; `from_dict` reads
        them back."""
        values = asdict(self)
        for name in OF_A_SESSION:
            del values["run"][name]
        return values

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ConvertConfig:
        """The config with these fields, sections as dicts.

        Raises:
            ValueError: for anything that is no dict of dicts, unknown or missing names, and values
                out of range, naming the field.
        """
        return build(cls, "config", values)
