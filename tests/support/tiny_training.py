"""Runs of a tiny model that take a fraction of a second."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from freqformer.training.config import DataConfig, OptimizerConfig, RunConfig, TrainConfig
from freqformer.training.loop import StepReport, train

MODEL = {
    "num_layers": 1,
    "num_attention_heads": 2,
    "attention_head_dim": 8,
    "patch_size": [1, 4, 4],
    "frequency": {"preset": "paper", "routing": "fixed", "prior": "none"},
}


def tiny_config(folder: Path) -> TrainConfig:
    """Three steps on synthetic clips (3, 2, 8, 16)."""
    return TrainConfig(
        str(folder),
        model=MODEL,
        data=DataConfig(num_frames=2, height=8, width=16),
        optimizer=OptimizerConfig(warmup_steps=1),
        run=RunConfig(max_steps=3, batch_size=2, device="cpu", progress=False),
    )


def changed(config: TrainConfig, section: str, **values: Any) -> TrainConfig:
    return replace(config, **{section: replace(getattr(config, section), **values)})


def losses(config: TrainConfig, **given: Any) -> list[tuple[int, float]]:
    """Step and loss of every step of a run."""
    reports: list[StepReport] = []
    train(config, on_step=reports.append, **given)
    return [(report.step, report.loss) for report in reports]
