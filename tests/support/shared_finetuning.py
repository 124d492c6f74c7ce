"""Runs of several ranks on a pipeline; what they report goes to FOLDER. A script of
`tests.support.ranks`: FOLDER RANK RANKS NAME..., of the runs to do, with `pipe` and `cache`
there."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.support.ranks import join
from tests.support.tiny_finetuning import lora_config, with_run
from tests.support.tiny_training import changed

from freqformer.training.loop import StepReport, train

RUNS: dict[str, dict[str, Any]] = {
    "lora": {},
    "full": {"weights": "full", "density": 1.0},
}


def report_of(folder: Path, name: str, ranks: int) -> list[list[float]]:
    """Do a run of two clips a step on so many ranks; loss and gradient norm of each of its steps,
    on the main process."""
    reports: list[StepReport] = []
    config = lora_config(folder, folder / f"{name}-{ranks}", **RUNS[name])
    # A norm below what gradients have, so that all are clipped.
    config = changed(config, "optimizer", learning_rate=1e-3, max_grad_norm=1e-3)
    # In forward passes of one clip, since a cache is shown in blocks of a pass.
    config = with_run(config, batch_size=1, accumulation=2 // ranks, max_steps=2)
    train(config, on_step=reports.append)
    return [[report.loss, report.gradient_norm] for report in reports]


def write_reports(folder: Path, names: Sequence[str], rank: int, ranks: int) -> None:
    """Do runs, and write what the main process reports of each."""
    for name in names:
        reports = report_of(folder, name, ranks)
        if rank == 0:
            path = folder / f"{name}-{ranks}.json"
            path.write_text(json.dumps(reports), encoding="utf-8")


if __name__ == "__main__":
    folder, rank, ranks = join()
    write_reports(folder, sys.argv[4:], rank, ranks)
