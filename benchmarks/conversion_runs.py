"""The training runs of the conversion's benchmark: dense models, models from scratch and
conversions, each in a folder of its own, from where it goes on after a stop.

Shape legend: B clips, F frames, S rows and columns of a square frame.
"""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from benchmarks.conversion_measures import Curve
from benchmarks.quality.data import draw_scenes
from benchmarks.quality.sizes import STUDY, Size
from benchmarks.training_free_model import TRAINED
from torch import Tensor

from freqformer.config import FreqFormerConfig
from freqformer.conversion.config import (
    ConversionRunConfig,
    ConvertConfig,
    StagesConfig,
    WeightsConfig,
)
from freqformer.conversion.feeds import ClipFeed, Feed
from freqformer.conversion.own_pair import OwnPair
from freqformer.conversion.pairs import Pair
from freqformer.conversion.run import run_conversion
from freqformer.integrations.diffusers.converted.windows import WindowSettings
from freqformer.models.pipeline import FreqFormerPipeline
from freqformer.models.transformer import FreqFormerTransformer3DModel
from freqformer.training.config import (
    CheckpointConfig,
    DataConfig,
    ObjectiveConfig,
    OptimizerConfig,
    RunConfig,
    TrainConfig,
)
from freqformer.training.loader import ProceduralClips
from freqformer.training.loop import train
from freqformer.training.report import StepReport
from freqformer.training.seeding import derive_seed

CHUNK = 32
"""Clips that are drawn at once."""
LAST = 100
"""Steps whose mean loss is noted beside a trained model."""
Measured = Callable[[Any], dict[str, float]]
"""What is measured of a model at a point of a run's curve."""


@dataclass(frozen=True)
class Amount:
    """How much is run."""

    size: Size = STUDY
    windows: WindowSettings = field(default_factory=lambda: WindowSettings(0.15, (4, 4, 4), 64))
    train_steps: int = 2000
    layer_steps: int = 200
    velocity_steps: int = 400
    falling: float = 0.0
    learning_rate: float = 3e-4
    every: int = 50
    """Steps between points of a conversion's curve; a run from scratch has them ten times as
    far apart."""
    videos: int = 8
    sampler_steps: int = 30
    device: str = "auto"


class SceneClips(ProceduralClips):
    """The study's clips by number.

    Args:
        size: of the study.
    """

    def __init__(self, size: Size) -> None:
        self._size = size
        self._chunk = lru_cache(maxsize=2)(self._drawn)

    @property
    def channels(self) -> int:
        """Red, green and blue."""
        return 3

    def draw(self, indices: Sequence[int], device: torch.device) -> Tensor:
        """See `ProceduralClips`."""
        return torch.stack([self._chunk(i // CHUNK, device)[i % CHUNK] for i in indices])

    def fingerprint(self) -> str:
        """See `ClipSource`."""
        return f"{derive_seed('conversion', *self._size.video):x}"

    def _drawn(self, chunk: int, device: torch.device) -> Tensor:
        frames, side, _ = self._size.video
        seed = derive_seed("conversion clips", chunk)
        return draw_scenes(CHUNK, seed, device, frames=frames, side=side).video


class Runs:
    """The runs of a work folder.

    Args:
        work: the folder.
        amount: how much is run.
        stop_after: seconds after which runs stop to go on later; None never does.
    """

    def __init__(self, work: Path, amount: Amount, stop_after: float | None) -> None:
        self.work, self.amount = work, amount
        self._until = None if stop_after is None else time.monotonic() + stop_after
        self._clips = SceneClips(amount.size)
        self._on_gpu = amount.device == "auto" and torch.cuda.is_available()

    @property
    def time_is_up(self) -> bool:
        """Whether nothing new is to begin."""
        return self._until is not None and time.monotonic() >= self._until

    def pipeline(self, name: str) -> FreqFormerPipeline:
        """What a run has written."""
        pipeline = FreqFormerPipeline.from_pretrained(self.work / name / "pipeline")
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def pair(self, windows: WindowSettings) -> OwnPair:
        """The dense model, and what it is turned into before any training."""
        return self._pair(_settings(windows), torch.device("cuda" if self._on_gpu else "cpu"))

    def train(self, name: str, config: FreqFormerConfig, measured: Measured) -> bool:
        """Train a model of the study from scratch; whether that is done.

        Args:
            name: of the run's folder.
            config: of its attention.
            measured: see `Measured`.
        """
        curve = Curve(self.work / name)
        if curve.done or self.time_is_up:
            return curve.done
        amount, size = self.amount, self.amount.size
        torch.manual_seed(derive_seed("conversion", "weights"))
        model = FreqFormerTransformer3DModel(
            patch_size=size.patch,
            num_layers=size.layers,
            num_attention_heads=size.heads,
            attention_head_dim=size.head_dim,
            frequency=config,
        )
        frames, height, width = size.video
        given = TrainConfig(
            str(self.work / name),
            model=dict(model.config),
            data=DataConfig(num_frames=frames, height=height, width=width),
            objective=ObjectiveConfig(shift=1.0),
            run=RunConfig(max_steps=amount.train_steps, batch_size=size.batch, **self._common()),
            checkpoint=CheckpointConfig(every_steps=10 * amount.every),
        )
        follow = curve.follow(lambda _: measured(model), 10 * amount.every, amount.train_steps)
        last: deque[StepReport] = deque(maxlen=LAST)

        def noted(report: StepReport) -> None:
            last.append(report)
            follow(report)

        train(given, model=model, clips=self._clips, on_step=noted)
        if curve.done:
            told = {"steps": amount.train_steps, "loss": mean(report.loss for report in last)}
            (self.work / name / "pipeline" / TRAINED).write_text(json.dumps(told))
        return curve.done

    def convert(
        self, name: str, stages: StagesConfig, windows: WindowSettings, measured: Measured
    ) -> bool:
        """Convert the dense model; whether that is done.

        Args:
            name: of the run's folder.
            stages: and how many steps they take.
            windows: what converted layers see.
            measured: see `Measured`.
        """
        curve = Curve(self.work / name)
        if curve.done or self.time_is_up:
            return curve.done
        amount = self.amount
        config = replace(
            _config(windows),
            pipeline=str(self.work / "dense" / "pipeline"),
            output=str(self.work / name),
            stages=stages,
            optimizer=OptimizerConfig(
                learning_rate=amount.learning_rate, warmup_steps=10, weight_decay=0.0
            ),
            objective=ObjectiveConfig(shift=1.0),
            run=ConversionRunConfig(batch_size=amount.size.batch, **self._common()),
            checkpoint=CheckpointConfig(every_steps=amount.every),
        )
        pairs: list[OwnPair] = []

        def make(accelerator: Any) -> tuple[Pair, Feed]:
            pairs.append(self._pair(config.adapter, accelerator.device))
            feed = ClipFeed(self._clips, config, accelerator.device, pairs[0].num_tokens)
            return pairs[0], feed

        follow = curve.follow(lambda _: measured(pairs[0].model), amount.every, stages.total)
        run_conversion(config, make, follow)
        return curve.done

    def _pair(self, settings: Any, device: torch.device) -> OwnPair:
        pipeline = self.pipeline("dense").to(device)
        return OwnPair(pipeline, settings, self.amount.size.grid, half=self._on_gpu)

    def _common(self) -> dict[str, Any]:
        """What all runs have in common."""
        left = None if self._until is None else max(1.0, self._until - time.monotonic())
        return {
            "precision": "bf16" if self._on_gpu else "fp32",
            "device": "auto" if self._on_gpu else "cpu",
            "progress": False,
            "stop_after_seconds": left,
        }


def _config(windows: WindowSettings) -> ConvertConfig:
    return ConvertConfig("dense", "out", windows=windows, weights=WeightsConfig("full"))


def _settings(windows: WindowSettings) -> Any:
    return _config(windows).adapter
