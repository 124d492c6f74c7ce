"""The study's dense model turned into a FreqFormer: held-out loss and likeness to its videos by
steps and seconds, for windows without training, stage one, stages one and two, and training from
scratch.

    PYTHONPATH=src:. python -m benchmarks.conversion --work FOLDER [--stop-after 280]
    [--density 0.15] [--train-steps 2000] [--output FOLDER]

Everything lies in FOLDER: the same command goes on where it stopped, and says when all is done. The
dense model is trained first. All runs see the same procedural clips; seconds are those of steps,
without measuring. Prints a table, and writes conversion.json.
"""

from __future__ import annotations

import argparse
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
from benchmarks.conversion_measures import Curve, Measure, Point
from benchmarks.quality.data import draw_scenes
from benchmarks.quality.sizes import STUDY, Size
from benchmarks.training_free_model import TRAINED
from torch import Tensor

from benchmarks import record
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
from freqformer.integrations.diffusers.converted.windows import (
    WindowSettings,
    window_config,
    window_density,
)
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
WITHIN = 1.01
"""Of the dense model's held-out loss, which is to be reached."""


@dataclass(frozen=True)
class Amount:
    """How much is run."""

    size: Size = STUDY
    windows: WindowSettings = field(default_factory=lambda: WindowSettings(0.15, (4, 4, 4), 64))
    train_steps: int = 2000
    layer_steps: int = 200
    velocity_steps: int = 400
    falling: float = 0.4
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


class Benchmark:
    """The runs of a work folder.

    Args:
        work: the folder.
        amount: how much is run.
        stop_after: seconds after which `run` stops to go on later; None never does.
    """

    def __init__(self, work: Path, amount: Amount, stop_after: float | None = None) -> None:
        self.work, self.amount = work, amount
        self._until = None if stop_after is None else time.monotonic() + stop_after
        self.clips = SceneClips(amount.size)
        self.measure: Measure | None = None

    def run(self) -> dict[str, Any] | None:
        """All results, JSON-able; None where time is up before all is done."""
        if not self._train("dense", FreqFormerConfig.dense()):
            return None
        self.measure = Measure(self._pipeline("dense"), self.amount, self.work / "measures")
        layers, velocity = self.amount.layer_steps, self.amount.velocity_steps
        kinds = {
            "stage_one": StagesConfig(layers, 0, falling=self.amount.falling),
            "stages_one_and_two": StagesConfig(layers, velocity, falling=self.amount.falling),
        }
        for name, stages in kinds.items():
            if not self._convert(name, stages):
                return None
        if not self._train("from_scratch", self.config):
            return None
        return self._results()

    @property
    def config(self) -> FreqFormerConfig:
        """Of converted models."""
        windows = window_config(self.amount.size.grid, self.amount.windows)
        return replace(windows, routing="timestep")

    def _left(self) -> float | None:
        """Seconds that may still be taken."""
        return None if self._until is None else max(1.0, self._until - time.monotonic())

    @property
    def _time_is_up(self) -> bool:
        return self._until is not None and time.monotonic() >= self._until

    def _pipeline(self, name: str) -> FreqFormerPipeline:
        pipeline = FreqFormerPipeline.from_pretrained(self.work / name / "pipeline")
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def _train(self, name: str, config: FreqFormerConfig) -> bool:
        """Train a model of the study from scratch; whether that is done."""
        curve = Curve(self.work / name)
        if curve.done or self._time_is_up:
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
        on_gpu = amount.device == "auto" and torch.cuda.is_available()
        given = TrainConfig(
            str(self.work / name),
            model=dict(model.config),
            data=DataConfig(num_frames=frames, height=height, width=width),
            objective=ObjectiveConfig(shift=1.0),
            run=RunConfig(
                max_steps=amount.train_steps,
                stop_after_seconds=self._left(),
                batch_size=size.batch,
                precision="bf16" if on_gpu else "fp32",
                device="auto" if on_gpu else "cpu",
                progress=False,
            ),
            checkpoint=CheckpointConfig(every_steps=10 * amount.every),
        )
        follow = curve.follow(self._measured(lambda: model), 10 * amount.every, amount.train_steps)
        last: deque[StepReport] = deque(maxlen=LAST)

        def noted(report: StepReport) -> None:
            last.append(report)
            follow(report)

        train(given, model=model, clips=self.clips, on_step=noted)
        if curve.done:
            told = {"steps": amount.train_steps, "loss": mean(report.loss for report in last)}
            (self.work / name / "pipeline" / TRAINED).write_text(json.dumps(told))
        return curve.done

    def _convert(self, name: str, stages: StagesConfig) -> bool:
        """Convert the dense model; whether that is done."""
        curve = Curve(self.work / name)
        if curve.done or self._time_is_up:
            return curve.done
        amount = self.amount
        on_gpu = amount.device == "auto" and torch.cuda.is_available()
        config = ConvertConfig(
            pipeline=str(self.work / "dense" / "pipeline"),
            output=str(self.work / name),
            windows=amount.windows,
            weights=WeightsConfig("full"),
            stages=stages,
            optimizer=OptimizerConfig(
                learning_rate=amount.learning_rate, warmup_steps=10, weight_decay=0.0
            ),
            objective=ObjectiveConfig(shift=1.0),
            run=ConversionRunConfig(
                batch_size=amount.size.batch,
                precision="bf16" if on_gpu else "fp32",
                device="auto" if on_gpu else "cpu",
                progress=False,
                stop_after_seconds=self._left(),
            ),
            checkpoint=CheckpointConfig(every_steps=amount.every),
        )
        pairs: list[OwnPair] = []

        def make(accelerator: Any) -> tuple[Pair, Feed]:
            pipeline = self._pipeline("dense").to(accelerator.device)
            pairs.append(OwnPair(pipeline, config.adapter, amount.size.grid, half=on_gpu))
            feed = ClipFeed(self.clips, config, accelerator.device, pairs[0].num_tokens)
            return pairs[0], feed

        follow = curve.follow(self._measured(lambda: pairs[0].model), amount.every, stages.total)
        run_conversion(config, make, follow)
        return curve.done

    def _measured(self, model: Callable[[], Any]) -> Callable[[StepReport], dict[str, float]]:
        """What is measured at a point of a curve; the dense model's own has no likeness."""

        def measured(report: StepReport) -> dict[str, float]:
            if self.measure is None:
                return {}
            return self.measure.of(model())

        return measured

    def _results(self) -> dict[str, Any]:
        assert self.measure is not None
        measure, amount = self.measure, self.amount
        dense = measure.dense
        free = OwnPair(self._pipeline("dense").to(measure.device), self._settings, amount.size.grid)
        free.set_density(amount.windows.density)
        rows: dict[str, Any] = {
            "training_free": {"steps": 0, "seconds": 0.0, **measure.of(free.model)}
        }
        spent = Curve(self.work / "dense").points[-1].seconds
        for name in ("stage_one", "stages_one_and_two", "from_scratch"):
            points = Curve(self.work / name).points
            reached = next((p for p in points if p.loss <= WITHIN * dense["held_out_loss"]), None)
            last = measure.of(self._pipeline(name).to(measure.device).transformer)
            rows[name] = {
                "steps": points[-1].step,
                "seconds": points[-1].seconds,
                "share_of_dense_training": points[-1].seconds / spent,
                **last,
                "within_1_percent": None if reached is None else _shown(reached),
                "curve": [_shown(point) for point in points],
            }
        return {
            "dense": {"steps": amount.train_steps, "seconds": spent, **dense},
            "density": window_density(amount.size.grid, self.config),
            "window": list(self.config.window),
            "tokens": amount.size.grid.num_tokens,
            "videos": amount.videos,
            "sampler_steps": amount.sampler_steps,
            "methods": rows,
        }

    @property
    def _settings(self) -> Any:
        return ConvertConfig(
            "dense", "out", windows=self.amount.windows, weights=WeightsConfig("full")
        ).adapter


def _shown(point: Point) -> dict[str, Any]:
    return {"step": point.step, "seconds": round(point.seconds, 2), **point.values}


def report(results: dict[str, Any]) -> None:
    """Print a table."""
    dense = results["dense"]
    print(
        f"{results['density']:.1%} of dense attention's FLOPs, window {results['window']}; dense: "
        f"{dense['steps']} steps, {dense['seconds']:.0f} s, held-out loss "
        f"{dense['held_out_loss']:.4f}"
    )
    print(f"{'':20}{'steps':>7}{'seconds':>9}{'loss':>9}{'of dense':>10}{'PSNR dB':>9}  within 1%")
    for name, row in results["methods"].items():
        share = row["held_out_loss"] / dense["held_out_loss"]
        reached = row.get("within_1_percent")
        told = f"step {reached['step']}, {reached['seconds']:.0f} s" if reached else "no"
        print(
            f"{name:20}{row['steps']:7}{row['seconds']:9.0f}{row['held_out_loss']:9.4f}{share:10.4f}"
            f"{row['psnr']:9.2f}  {told}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    usual = Amount()
    parser.add_argument("--work", type=Path, required=True, help="folder of all runs")
    parser.add_argument("--stop-after", type=float, help="seconds that this call may take")
    parser.add_argument("--density", type=float, default=usual.windows.density)
    parser.add_argument("--train-steps", type=int, default=usual.train_steps)
    parser.add_argument("--layer-steps", type=int, default=usual.layer_steps)
    parser.add_argument("--velocity-steps", type=int, default=usual.velocity_steps)
    parser.add_argument("--falling", type=float, default=usual.falling)
    parser.add_argument("--learning-rate", type=float, default=usual.learning_rate)
    parser.add_argument("--output", type=Path, default=record.RESULTS)
    parser.add_argument("--commit", help="of this checkout, where git isn't there to ask")
    given = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("this takes a GPU: at the study's size a CPU would need days")
    amount = replace(
        usual,
        windows=replace(usual.windows, density=given.density),
        train_steps=given.train_steps,
        layer_steps=given.layer_steps,
        velocity_steps=given.velocity_steps,
        falling=given.falling,
        learning_rate=given.learning_rate,
    )
    results = Benchmark(given.work, amount, given.stop_after).run()
    if results is None:
        print("time is up: the same command goes on")
        return
    report(results)
    print(record.save("conversion", results, given.output, given.commit))


if __name__ == "__main__":
    main()
