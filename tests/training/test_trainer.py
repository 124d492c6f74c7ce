"""Options of a run that change its memory or its speed."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from freqformer.training.checkpoint import load_checkpoint
from freqformer.training.config import DataConfig, RunConfig, TrainConfig
from freqformer.training.loop import train

ROOT = Path(__file__).parents[2]
MODEL = {
    "num_layers": 2,
    "num_attention_heads": 3,
    "attention_head_dim": 8,
    "patch_size": [1, 4, 4],
    "frequency": {"preset": "paper", "routing": "fixed", "prior": "none"},
}


@pytest.fixture
def config(tmp_path: Path) -> TrainConfig:
    return TrainConfig(
        str(tmp_path / "plain"),
        model=MODEL,
        data=DataConfig(num_frames=2, height=8, width=16),
        run=RunConfig(max_steps=3, batch_size=1, device="cpu", progress=False),
    )


def trained(
    config: TrainConfig, name: str, **options
) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Losses and weights of a run in a folder of its own."""
    losses = []
    own = replace(config, output=f"{config.output}-{name}", run=replace(config.run, **options))
    train(own, on_step=lambda report: losses.append(report.loss))
    return losses, load_checkpoint(Path(own.output) / "checkpoints" / "step-00000003")[0]["model"]


def test_checkpointed_blocks_change_no_bit(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    forward = torch.utils.checkpoint.checkpoint
    monkeypatch.setattr(
        "torch.utils.checkpoint.checkpoint", lambda *a, **k: calls.append(a) or forward(*a, **k)
    )
    losses, weights = trained(config, "plain")
    assert calls == []
    again, same = trained(config, "checkpointed", gradient_checkpointing=True)
    assert len(calls) == 3 * MODEL["num_layers"]
    assert again == losses
    assert all(torch.equal(x, same[name]) for name, x in weights.items())


def test_compiled_blocks_are_compiled_once(tmp_path: Path) -> None:
    """In a process of its own: compilers can't trace the type checks that tests put around the
    package."""
    command = [sys.executable, "-m", "tests.support.compiled_run", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-3000:]
    for plain, compiled in json.loads(done.stdout.splitlines()[-1]).values():
        assert plain["graphs"] == [0, 0, 0]
        assert compiled["graphs"][0] == compiled["graphs"][2] > 0
        assert compiled["losses"] == pytest.approx(plain["losses"], rel=1e-4)
