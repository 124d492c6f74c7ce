"""Training runs of several ranks; what they report goes to FOLDER. A script of
`tests.support.ranks`: FOLDER RANK RANKS NAME..., of the runs to do."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.support.ranks import join

from freqformer.training.config import (
    CheckpointConfig,
    DataConfig,
    OptimizerConfig,
    RunConfig,
    TrainConfig,
)
from freqformer.training.loop import StepReport, train
from freqformer.training.parallel_config import ParallelConfig

STEPS = 5
CLIPS = 4
"""Of a step, on any number of ranks."""
MODEL = {
    "num_layers": 2,
    "num_attention_heads": 2,
    "attention_head_dim": 8,
    "patch_size": [1, 4, 4],
    "absolute_positions": True,
    "frequency": {"tile": [2, 2, 2], "compression": 4},
}
CHOOSING = {"preset": "paper", "tile": [2, 2, 2], "compression": 4, "summary_tokens": 4}

RUNS: dict[str, dict[str, Any]] = {
    "one": {},
    "cp": {"cp": 2},
    "shards": {"dp_shard": 2, "accumulation": 2},
    "both": {"cp": 2, "dp_shard": 2},
    "copies": {"cp": 2, "copies": 2},
    "one, choosing": {"frequency": CHOOSING},
    "cp, choosing": {"cp": 2, "frequency": CHOOSING},
    "bf16": {"cp": 2, "precision": "bf16", "gradient_checkpointing": True},
    "compiled": {"cp": 2, "compile": True},
    "both, then cp": {"cp": 2},
    "one, then cp": {"cp": 2},
    "both, then cp, then one": {},
}


def config_of(folder: Path, name: str) -> TrainConfig:
    given = {"cp": 1, "dp_shard": 1, "copies": 1, "accumulation": 1, **RUNS[name]}
    run = RunConfig(
        max_steps=STEPS,
        batch_size=CLIPS // (given["dp_shard"] * given["copies"] * given["accumulation"]),
        accumulation=given["accumulation"],
        device="cpu",
        progress=False,
        precision=given.get("precision", "fp32"),
        compile=given.get("compile", False),
        gradient_checkpointing=given.get("gradient_checkpointing", False),
        parallel=ParallelConfig(cp=given["cp"], dp_shard=given["dp_shard"]),
    )
    return TrainConfig(
        str(folder / name),
        model=MODEL | {"frequency": given.get("frequency", MODEL["frequency"])},
        data=DataConfig(num_frames=3, height=12, width=20),
        optimizer=OptimizerConfig(
            warmup_steps=1,
            learning_rate=0.01,
            max_grad_norm=0.1,  # below what gradients have, so that all are clipped
        ),
        run=run,
        checkpoint=CheckpointConfig(every_steps=1, keep=STEPS),
    )


def reported(folder: Path, name: str) -> list[list[float]]:
    """Do a run; step, loss and gradient norm of each of its steps, on the main process."""
    reports: list[StepReport] = []
    train(config_of(folder, name), on_step=reports.append)
    return [[report.step, report.loss, report.gradient_norm] for report in reports]


def go_on(folder: Path, before: str, step: int, name: str) -> None:
    """A run that goes on from a step of another one."""
    checkpoint = Path("checkpoints", f"step-{step:08d}")
    shutil.copytree(folder / before / checkpoint, folder / name / checkpoint)


def write_reports(folder: Path, names: Sequence[str], rank: int) -> None:
    for name in names:
        reports = reported(folder, name)
        if rank == 0:
            path = folder / f"{name}.json"
            path.write_text(json.dumps(reports), encoding="utf-8")


if __name__ == "__main__":
    folder, rank, _ = join()
    write_reports(folder, sys.argv[4:], rank)
