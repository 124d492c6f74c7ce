"""What the conversion's benchmark measures, and curves of it that survive a stop.

Shape legend: B clips, F frames, C channels, H height, W width.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from benchmarks.quality.data import Draw, draw_scenes
from benchmarks.quality.validation import NOISE_LEVELS
from safetensors.torch import load_file, save_file
from torch import Tensor

from freqformer.generation.likeness import psnr
from freqformer.models.pipeline import FreqFormerPipeline
from freqformer.training.objective import flow_matching_loss
from freqformer.training.report import StepReport
from freqformer.training.seeding import derive_seed

CURVE_FILE = "curve.json"


@dataclass(frozen=True)
class Point:
    """A point of a curve."""

    step: int
    seconds: float
    """Of steps alone, since the run began."""
    values: dict[str, float]

    @property
    def loss(self) -> float:
        """Held out; infinite where it wasn't measured."""
        return self.values.get("held_out_loss", float("inf"))


class Curve:
    """What a run measured of itself, in its folder.

    Args:
        folder: of the run.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / CURVE_FILE
        record = json.loads(self._path.read_text()) if self._path.is_file() else {}
        self.points = [Point(**values) for values in record.get("points", [])]
        self.done: bool = record.get("done", False)

    def follow(
        self, measure: Callable[[StepReport], dict[str, float]], every: int, total: int
    ) -> Callable[[StepReport], None]:
        """What to call after every step: it measures every so many steps, and at the end.

        Args:
            measure: gives the values of a point.
            every: steps between points; those of checkpoints.
            total: steps of the run.
        """
        began: list[float] = []
        measuring = 0.0

        def note(report: StepReport) -> None:
            nonlocal measuring
            if not began:
                # A resumed run goes on behind a point, or begins again before the first.
                self.points = [point for point in self.points if point.step < report.step]
                before = self.points[-1].seconds if self.points else 0.0
                began.append(time.perf_counter() - before)
            if report.step % every and report.step != total:
                return
            at = time.perf_counter()
            values = measure(report)
            seconds = at - began[0] - measuring
            measuring += time.perf_counter() - at
            self.points.append(Point(report.step, seconds, values))
            self.done = report.step == total
            self._write()

        return note

    def _write(self) -> None:
        record = {"done": self.done, "points": [asdict(point) for point in self.points]}
        self._path.write_text(json.dumps(record, indent=1) + "\n")


class Measure:
    """Held-out loss, and likeness to the dense model's videos.

    Args:
        pipeline: of the dense model.
        amount: of `benchmarks.conversion`.
        folder: where the dense model's videos are kept.
    """

    def __init__(self, pipeline: FreqFormerPipeline, amount: Any, folder: Path) -> None:
        on_gpu = amount.device == "auto" and torch.cuda.is_available()
        self.device = torch.device("cuda" if on_gpu else "cpu")
        self._dtype = torch.bfloat16 if on_gpu else torch.float32
        self._amount = amount
        self._pipeline = pipeline.to(self.device)
        frames, side, _ = amount.size.video
        count = amount.size.validation_clips
        self._clips = draw_scenes(
            count,
            derive_seed("validation clips"),
            self.device,
            held_out=True,
            frames=frames,
            side=side,
        ).video
        noise = Draw(derive_seed("validation noise"), self.device)
        self._noise = noise.normal(*self._clips.shape)
        self._videos = self._dense_videos(folder / "dense_videos.safetensors")
        self.dense = {"held_out_loss": self._loss(self._pipeline.transformer)}
        """What the dense model itself has."""

    def of(self, model: Any) -> dict[str, float]:
        """Held-out loss, and PSNR in dB of videos of equal seeds, of a model."""
        was_training = model.training
        model.eval()
        videos = self._made(model)
        found = {
            "held_out_loss": self._loss(model),
            "psnr": float(psnr(videos, self._videos).mean()),
        }
        model.train(was_training)
        return found

    def _dense_videos(self, path: Path) -> Tensor:
        if path.is_file():
            return load_file(path)["videos"].to(self.device)
        videos = self._made(self._pipeline.transformer)
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({"videos": videos.cpu().contiguous()}, path)
        return videos

    @torch.no_grad()
    def _loss(self, model: Any) -> float:
        losses = []
        size = self._amount.size.batch
        for level in NOISE_LEVELS:
            for clip, noise in zip(self._clips.split(size), self._noise.split(size), strict=True):
                at = torch.full((len(clip),), level, device=self.device)
                with torch.autocast(self.device.type, self._dtype, enabled=self._half):
                    losses.append(flow_matching_loss(model, clip, at, noise))
        return float(torch.stack(losses).double().mean())

    @torch.no_grad()
    def _made(self, model: Any) -> Tensor:
        """Videos of seeds 0, 1, ..., (B, F, C, H, W) in [0, 1]."""
        amount = self._amount
        pipeline = FreqFormerPipeline(transformer=model, scheduler=self._pipeline.scheduler)
        pipeline.set_progress_bar_config(disable=True)
        generators = [torch.Generator().manual_seed(seed) for seed in range(amount.videos)]
        with torch.autocast(self.device.type, self._dtype, enabled=self._half):
            made = pipeline(
                *amount.size.video,
                num_inference_steps=amount.sampler_steps,
                batch_size=len(generators),
                generator=generators,
                output_type="pt",
            )
        return torch.as_tensor(made.frames).float()

    @property
    def _half(self) -> bool:
        return self._dtype == torch.bfloat16
