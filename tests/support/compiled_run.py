"""A run with compiled blocks beside the same run without: `python -m tests.support.compiled_run
FOLDER`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from unittest import mock

from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

from freqformer.training.config import DataConfig, RunConfig, TrainConfig
from freqformer.training.loop import train


def run(folder: Path, preset: str, compiled: bool) -> dict[str, list]:
    """Losses of three steps, and the graphs that had been compiled after each."""
    counter, compile_module = CompileCounterWithBackend("eager"), nn.Module.compile
    losses, graphs = [], []
    config = TrainConfig(
        str(folder / f"{preset}-{compiled}"),
        model={
            "num_layers": 2,
            "num_attention_heads": 3,
            "attention_head_dim": 8,
            "patch_size": [1, 4, 4],
            "frequency": {"preset": preset},
        },
        data=DataConfig(num_frames=2, height=8, width=16),
        run=RunConfig(max_steps=3, batch_size=1, device="cpu", progress=False, compile=compiled),
    )

    def compile_counted(self: nn.Module, **options) -> None:
        compile_module(self, backend=counter, **options)

    with mock.patch.object(nn.Module, "compile", compile_counted):
        train(
            config,
            on_step=lambda report: (losses.append(report.loss), graphs.append(counter.frame_count)),
        )
    return {"losses": losses, "graphs": graphs}


if __name__ == "__main__":
    runs = {
        a: [run(Path(sys.argv[1]), a, compiled) for compiled in (False, True)]
        for a in ("default", "dense")
    }
    print(json.dumps(runs))
