"""A short run under a launcher: `python -m torch.distributed.run ...
tests/support/several_processes.py FOLDER BATCH`."""

from __future__ import annotations

import json
import sys

from freqformer.training.config import (
    CheckpointConfig,
    DataConfig,
    OptimizerConfig,
    RunConfig,
    TrainConfig,
)
from freqformer.training.loop import StepReport, train


def show(report: StepReport) -> None:
    print(json.dumps([report.step, report.loss, report.gradient_norm]), flush=True)


if __name__ == "__main__":
    folder, batch = sys.argv[1], int(sys.argv[2])
    train(
        TrainConfig(
            folder,
            model={
                "num_layers": 1,
                "num_attention_heads": 3,
                "attention_head_dim": 8,
                "patch_size": [1, 4, 4],
                "frequency": {"preset": "paper", "routing": "fixed", "prior": "none"},
            },
            data=DataConfig(num_frames=4, height=16, width=24),
            optimizer=OptimizerConfig(warmup_steps=1),
            run=RunConfig(
                max_steps=4, batch_size=batch, accumulation=2, device="cpu", progress=False
            ),
            checkpoint=CheckpointConfig(every_steps=2),
        ),
        on_step=show,
    )
