"""Short runs on a cache under a launcher of two processes, each with all weights and with half of
them: `python -m torch.distributed.run ... tests/support/several_cached.py CACHE FOLDER`."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from pathlib import Path

from tests.support.tiny_training import tiny_config
from torch import distributed as dist

from freqformer.training.config import DataConfig
from freqformer.training.loop import StepReport, train
from freqformer.training.parallel_config import ParallelConfig
from freqformer.training.validation.settings import ValidationConfig


def run(cache: str, folder: Path, accumulation: int, dp_shard: int) -> list[float]:
    """Train on a cache; step, loss and gradient norm of every step, on the main process."""
    told: list[float] = []

    def keep(report: StepReport) -> None:
        told.extend([report.step, report.loss, report.gradient_norm])

    base = tiny_config(folder)
    config = replace(
        base,
        model={**base.model, "patch_size": [1, 2, 2]},
        data=DataConfig(cache=cache),
        run=replace(
            base.run,
            batch_size=1,
            accumulation=accumulation,
            max_steps=4,
            parallel=ParallelConfig(dp_shard=dp_shard),
        ),
        validation=ValidationConfig(
            every_steps=2, held_out=1, prompts=("a ball",), num_inference_steps=1
        ),
    )
    train(config, on_step=keep)
    return told


if __name__ == "__main__":
    dist.init_process_group("gloo")  # one for both runs
    given, outputs = sys.argv[1], Path(sys.argv[2])
    told = {
        "two": run(given, outputs / "two", 1, 1),
        "shared": run(given, outputs / "shared", 1, 2),
    }
    if os.environ["RANK"] == "0":
        (outputs / "told.json").write_text(json.dumps(told), encoding="utf-8")
