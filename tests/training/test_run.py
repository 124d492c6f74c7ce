"""Options of a run that change its memory or its speed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

from freqformer.training.checkpoint import load_checkpoint
from freqformer.training.config import DataConfig, RunConfig, TrainConfig
from freqformer.training.loop import train

MODEL = {"num_layers": 2, "num_heads": 3, "head_dim": 8, "patch_size": [1, 4, 4], "routing": "fixed"}


@pytest.fixture
def config(tmp_path: Path) -> TrainConfig:
    return TrainConfig(
        str(tmp_path / "plain"),
        model=MODEL,
        data=DataConfig(num_frames=2, height=8, width=16),
        run=RunConfig(max_steps=3, batch_size=1, device="cpu", progress=False),
    )


def trained(config: TrainConfig, name: str, **options) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Losses and weights of a run in a folder of its own."""
    losses = []
    own = replace(config, output=f"{config.output}-{name}", run=replace(config.run, **options))
    train(own, on_step=lambda report: losses.append(report.loss))
    return losses, load_checkpoint(Path(own.output) / "checkpoints" / "step-00000003")[0]["model"]


def test_checkpointed_blocks_change_no_bit(config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    forward = torch.utils.checkpoint.checkpoint
    monkeypatch.setattr("torch.utils.checkpoint.checkpoint", lambda *a, **k: calls.append(a) or forward(*a, **k))
    losses, weights = trained(config, "plain")
    assert calls == []
    again, same = trained(config, "checkpointed", gradient_checkpointing=True)
    assert len(calls) == 3 * MODEL["num_layers"]
    assert again == losses
    assert all(torch.equal(x, same[name]) for name, x in weights.items())


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # dynamo asks for all inputs' gradients
def test_compiled_blocks_are_compiled_once(config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    config = replace(config, model={**MODEL, "attention": "dense"})
    losses, _ = trained(config, "plain")
    counter, compile_module = CompileCounterWithBackend("eager"), nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda self, **named: compile_module(self, backend=counter, **named))
    torch.compiler.reset()
    compiled, _ = trained(config, "compiled", compile=True)
    assert counter.frame_count == 1
    assert compiled == pytest.approx(losses, rel=1e-4)
