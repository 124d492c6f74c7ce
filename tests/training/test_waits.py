"""A step asks the device for nothing: losses are read some steps at a time, and one that is not
finite stops the run then, before any checkpoint."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tests.support.host_reads import HostReads
from tests.support.tiny_cache import cache_config, make_videos
from tests.support.tiny_encoders import save_encoders
from tests.support.tiny_finetuning import lora_config, make_pipeline_and_cache, with_run

from freqformer.training.cache.making import make_cache
from freqformer.training.checkpoint import newest_checkpoint
from freqformer.training.config import CheckpointConfig, DataConfig, RunConfig, TrainConfig
from freqformer.training.loop import train
from freqformer.training.pending import PendingReports
from freqformer.training.report import StepNumbers, StepReport, TrainingError
from freqformer.training.trainer import Trainer

ON_THE_DEVICE = (
    *("freqformer/training/trainer.py", "freqformer/training/objective.py"),
    *("freqformer/training/pending.py", "freqformer/training/report.py"),
    *("freqformer/training/finetuning", "freqformer/integrations/diffusers/processor.py"),
    *("accelerate/", "diffusers/", "torch/nn/utils/"),
)
"""Code whose tensors are on the device that trains. Plans, timesteps and samples are the host's,
and the attention of a CPU is other code than a GPU's."""


@pytest.fixture(scope="module")
def cached(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a cache; not to be changed."""
    folder = tmp_path_factory.mktemp("cached")
    make_videos(folder / "videos")
    save_encoders(folder / "encoders")
    make_cache(cache_config(folder))
    return folder / "cache"


def config(cache: Path, output: Path, **run: Any) -> TrainConfig:
    model = {"num_layers": 1, "num_attention_heads": 2, "attention_head_dim": 12}
    given = {"max_steps": 4, "batch_size": 1, "device": "cpu", "progress": False, **run}
    return TrainConfig(
        str(output),
        model=model,
        data=DataConfig(cache=str(cache), first_frame=0.5),
        run=RunConfig(**given),
        checkpoint=CheckpointConfig(every_steps=2),
    )


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Of every step, the places that read from the device."""
    seen: list[list[str]] = []
    own = Trainer.advance

    def advance(self: Trainer, loader: Any) -> StepReport:
        with HostReads() as found:
            report = own(self, loader)
        seen.append([place for place in found.by_place if place.startswith(ON_THE_DEVICE)])
        return report

    monkeypatch.setattr(Trainer, "advance", advance)
    return seen


def test_a_step_reads_nothing_from_the_device(
    cached: Path, tmp_path: Path, reads: list[list[str]]
) -> None:
    train(config(cached, tmp_path / "run", log_every=3))
    # Checkpoints are between steps.
    assert reads == [[], [], [], []]
    reads.clear()
    train(config(cached, tmp_path / "often", log_every=1))
    assert reads == [["freqformer/training/pending.py:read"]] * 4


def test_neither_does_a_step_of_a_pipeline(tmp_path: Path, reads: list[list[str]]) -> None:
    make_pipeline_and_cache(tmp_path)
    train(lora_config(tmp_path, tmp_path / "run"))
    assert reads == [[], [], []]


def test_all_steps_are_logged(cached: Path, tmp_path: Path) -> None:
    seen: list[float] = []
    train(
        config(cached, tmp_path / "run", max_steps=5, log_every=3),
        on_step=lambda report: seen.append(report.loss),
    )
    train(config(cached, tmp_path / "again", max_steps=5, log_every=100))
    for name in ("run", "again"):
        events = EventAccumulator(str(tmp_path / name / "logs")).Reload()
        logged = events.Scalars("loss")
        assert [event.step for event in logged] == [1, 2, 3, 4, 5]
        assert [event.value for event in logged] == pytest.approx(seen)


@pytest.mark.parametrize("log_every", [1, 10])
def test_a_broken_loss_reaches_no_checkpoint(
    log_every: int, cached: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Noticed at the next reading, or before the next checkpoint, and told of its own step."""
    _break_at(3, monkeypatch)
    begun = config(cached, tmp_path / "run", max_steps=8, log_every=log_every)
    message = r"loss is nan .* at step 3, of the clips .*\.(mp4|png).*; .*keeps step 2"
    with pytest.raises(TrainingError, match=message):
        train(begun)
    newest = newest_checkpoint(tmp_path / "run" / "checkpoints")
    assert newest is not None
    assert newest.name == "step-00000002"
    monkeypatch.undo()
    steps: list[int] = []
    train(begun, on_step=lambda report: steps.append(report.step))
    assert steps == [3, 4, 5, 6, 7, 8]


def _break_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the loss of a step be NaN."""
    from freqformer.training import trainer

    own: Callable[..., torch.Tensor] = trainer.batch_loss
    calls: list[int] = []

    def broken(*given: Any) -> torch.Tensor:
        calls.append(1)
        return own(*given) * (torch.nan if len(calls) == step else 1)

    monkeypatch.setattr(trainer, "batch_loss", broken)


def test_a_resumed_run_may_read_more_often(cached: Path, tmp_path: Path) -> None:
    first = config(cached, tmp_path / "run", stop_after_seconds=1e-3)
    train(first)
    train(config(cached, tmp_path / "run", log_every=1))
    whole = config(cached, tmp_path / "whole")
    train(whole)
    weights = [
        (tmp_path / name / "checkpoints" / "step-00000004" / "model.safetensors").read_bytes()
        for name in ("run", "whole")
    ]
    assert weights[0] == weights[1]
    shutil.rmtree(tmp_path / "run")


def test_numbers_are_read_together_and_once() -> None:
    pending = PendingReports(2)
    reports = [
        StepReport(step, StepNumbers(torch.tensor([step, 0.5, 2.0])), 1e-3, 1.0, 0.5)
        for step in (1, 2)
    ]
    pending.add(reports[0])
    assert reports[0].loss == 1.0
    assert not pending.are_due
    pending.add(reports[1])
    assert pending.are_due
    with HostReads() as found:
        assert pending.read() == reports
    assert sum(found.by_place.values()) == 1
    assert [report.loss for report in reports] == [1.0, 2.0]
    assert (reports[1].routing_loss, reports[1].gradient_norm) == (0.5, 2.0)
    assert pending.read() == []


def test_log_every_is_one_step_at_least() -> None:
    with pytest.raises(ValueError, match="log_every is 0"):
        RunConfig(log_every=0)
    assert with_run(TrainConfig("run"), log_every=3).run.log_every == 3
