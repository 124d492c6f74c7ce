"""The dense model of the training-free comparison, and how much is compared."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from benchmarks.quality.data import Draw, draw_scenes
from benchmarks.quality.runs import OPTIMIZER, Run
from benchmarks.quality.sizes import STUDY, Size
from benchmarks.quality.trainer import Trainer
from torch import Tensor

from freqformer.grid import Extents
from freqformer.models.pipeline import FreqFormerPipeline
from freqformer.training.objective import learning_rate_factor
from freqformer.training.seeding import derive_seed

DENSITIES = (0.2, 0.1, 0.3, 0.05, 0.5)
"""Attention FLOPs of a banded step relative to dense, in the order in which they are measured."""
CHUNK_STEPS = 32
"""Training steps whose clips are drawn at once."""
TRAINED = "trained.json"
"""In the model's folder: steps and loss of its training."""


@dataclass(frozen=True)
class Amount:
    """How much is run."""

    size: Size = STUDY
    calibration_videos: int = 4
    calibration_steps: int = 10
    trials: int = 16
    """Tables that a calibration tries at each density."""
    calibration_clips: int = 16
    mid_tiles: tuple[int, ...] = (4, 8, 16, 32, 64, 128)
    """Of heads that are calibrated on clips, and so are the windows."""
    windows: tuple[Extents, ...] = ((1, 3, 3), (2, 3, 3), (3, 3, 3), (4, 3, 3), (4, 5, 5))
    videos: int = 8
    """That are compared."""
    steps: int = 30
    """Of the sampler."""
    train_steps: int = 2000
    densities: tuple[float, ...] = DENSITIES

    @property
    def calibration(self) -> dict[str, int]:
        """What results say of it."""
        return {
            "videos": self.calibration_videos,
            "steps": self.calibration_steps,
            "trials": self.trials,
        }


def train(folder: Path, amount: Amount, device: torch.device, seconds: float) -> int:
    """Train the dense model of the quality study and save it as a pipeline, in bfloat16.

    Args:
        folder: of the pipeline.
        amount: how many steps are wanted.
        device: that trains.
        seconds: that the steps may take; where a step takes too long for all, there are fewer, and
            the learning rate falls sooner.

    Returns: how many steps there were.
    """
    from diffusers.schedulers.scheduling_flow_match_euler_discrete import (
        FlowMatchEulerDiscreteScheduler,
    )

    size = amount.size
    trainer = Trainer(Run("dense", 0, amount.train_steps, size), device)
    step: Callable[[], None] = trainer.captured() if device.type == "cuda" else trainer.advance
    steps = amount.train_steps
    began = since = time.perf_counter()
    done = 0
    while done < steps:
        clips = drawn_clips(CHUNK_STEPS * size.batch, done, amount, device)
        noise = Draw(derive_seed("training-free noise", done), device).normal(*clips.shape)
        batches = list(zip(clips.split(size.batch), noise.split(size.batch), strict=True))
        for clip, drawn in batches[: steps - done]:
            trainer.clip.copy_(clip)
            trainer.noise.copy_(drawn)
            step()
        done = min(steps, done + CHUNK_STEPS)
        if done == CHUNK_STEPS:
            float(trainer.losses[0])  # waits for the device
            since = time.perf_counter()
        if done == 2 * CHUNK_STEPS:
            float(trainer.losses[0])
            each = (time.perf_counter() - since) / CHUNK_STEPS
            steps = max(done, int(min(steps, seconds / each)))
            _learn_in(trainer, steps)
    loss = float(trainer.losses[max(0, steps - 100) : steps].mean())
    print(
        f"trained for {steps} steps in {time.perf_counter() - began:.0f} s, loss {loss:.4f}",
        flush=True,
    )
    scheduler = FlowMatchEulerDiscreteScheduler(shift=1.0)
    model = trainer.model.eval().to(torch.bfloat16)
    FreqFormerPipeline(transformer=model, scheduler=scheduler).save_pretrained(folder)
    (folder / TRAINED).write_text(json.dumps({"steps": steps, "loss": loss}))
    return steps


def _learn_in(trainer: Trainer, steps: int) -> None:
    """Let the learning rate fall over so many steps."""
    factors = [
        learning_rate_factor(step, step / steps, OPTIMIZER.warmup_steps) for step in range(steps)
    ]
    trainer.rates[:steps].copy_(torch.tensor(factors) * trainer.run.rate)


def drawn_clips(count: int, index: int, amount: Amount, device: torch.device) -> Tensor:
    """Clips (count, C, F, H, W) as in training, others for every index; those of training have
    indices from 0."""
    frames, side, _ = amount.size.video
    seed = derive_seed("training-free clips", False, index)
    return draw_scenes(count, seed, device, frames=frames, side=side).video


def weights_digest(folder: Path) -> str:
    """SHA-256 of a saved pipeline's weights."""
    digest = hashlib.sha256()
    for path in sorted((folder / "transformer").glob("*.safetensors")):
        digest.update(path.read_bytes())
    return digest.hexdigest()
