"""What a run is, and on what and for how long it is done."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from benchmarks.quality.sizes import STUDY, USUAL, Size, name_of
from benchmarks.quality.variants import Variant, chosen

from freqformer.training.config import OptimizerConfig, RoutingConfig

OPTIMIZER = OptimizerConfig()
ROUTING = RoutingConfig()


@dataclass(frozen=True)
class Run:
    """What is run: a variant by its name, the seed, for how many steps, its size and its rate."""

    name: str
    seed: int
    steps: int
    size: Size = STUDY
    rate: float = OPTIMIZER.peak_rate
    """Learning rate after the warm-up."""

    @property
    def variant(self) -> Variant:
        """What its name stands for."""
        return chosen(self.name)

    @property
    def stem(self) -> str:
        """Name of its files, without what they end with."""
        size = name_of(self.size)
        parts = [self.name, *([] if size == USUAL else [size]), str(self.steps), str(self.seed)]
        if self.rate != OPTIMIZER.peak_rate:
            parts.append(f"rate{self.rate:g}")
        return "-".join(parts)

    @property
    def record(self) -> dict[str, Any]:
        """What identifies it, JSON-able; result files have the same entries."""
        return {
            "variant": self.name,
            "seed": self.seed,
            "steps": self.steps,
            "size": name_of(self.size),
            "learning_rate": self.rate,
        }


@dataclass(frozen=True)
class How:
    """On what a run is done, and for how long."""

    device: torch.device
    graph: bool = False
    """Whether one CUDA graph holds a step; needs a GPU."""
    compiled: bool = False
    """Whether the model's blocks are compiled for training; validation runs them as they are."""
    end: float = float("inf")
    """When training stops, by `time.perf_counter`."""
    folder: Path | None = None
    """Where a run that stops leaves its state; None for runs that end at once."""

    @property
    def over(self) -> bool:
        """Whether the time is up."""
        return time.perf_counter() >= self.end
