"""A short run on a cache under a launcher: `python -m torch.distributed.run ...
tests/support/several_cached.py CACHE FOLDER ACCUMULATION DP_SHARD`."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

from tests.support.tiny_training import tiny_config

from freqformer.training.config import DataConfig
from freqformer.training.loop import StepReport, train
from freqformer.training.parallel_config import ParallelConfig
from freqformer.training.validation.settings import ValidationConfig


def show(report: StepReport) -> None:
    print(json.dumps([report.step, report.loss, report.gradient_norm]), flush=True)


if __name__ == "__main__":
    cache, folder, accumulation, dp_shard = sys.argv[1:]
    parallel = ParallelConfig(dp_shard=int(dp_shard))
    base = tiny_config(Path(folder))
    config = replace(
        base,
        model={**base.model, "patch_size": [1, 2, 2]},
        data=DataConfig(cache=cache),
        run=replace(
            base.run,
            batch_size=1,
            accumulation=int(accumulation),
            max_steps=4,
            parallel=parallel,
        ),
        validation=ValidationConfig(
            every_steps=2, held_out=1, prompts=("a ball",), num_inference_steps=1
        ),
    )
    train(config, on_step=show)
