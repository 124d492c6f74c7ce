"""A signal ends a run after its step, with all that the step gave; so do clips that can't be
had."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import torch
from tests.support.tiny_training import changed, losses, tiny_config

from freqformer._interrupt import Interrupted
from freqformer.models.pipeline import FreqFormerPipeline
from freqformer.training.checkpoint import load_checkpoint, newest_checkpoint
from freqformer.training.config import TrainConfig
from freqformer.training.loop import train
from freqformer.training.provenance import read_sessions
from freqformer.training.report import StepReport
from freqformer.training.trainer import Trainer

BOTH = pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])


@pytest.fixture
def config(tmp_path: Path) -> TrainConfig:
    return tiny_config(tmp_path / "out")


def newest_step(config: TrainConfig) -> int:
    newest = newest_checkpoint(Path(config.output) / "checkpoints")
    return 0 if newest is None else load_checkpoint(newest)[1]["step"]


@BOTH
def test_a_signal_keeps_the_step_that_is_done_and_the_run_goes_on(config, number, tmp_path, capfd):
    """Far from the next checkpoint, at the second of three steps."""
    seen = []

    def stop(report: StepReport) -> None:
        seen.append((report.step, report.loss))
        if report.step == 2:
            os.kill(os.getpid(), number)

    with pytest.raises(
        Interrupted, match=r"stopped by .* after step 2, which .*out keeps: the same command"
    ) as raised:
        train(config, on_step=stop)
    assert raised.value.signal == number
    assert "finishing the step; once more to stop now" in capfd.readouterr().err
    assert newest_step(config) == 2
    assert [session.last_step for session in read_sessions(Path(config.output))] == [2]
    FreqFormerPipeline.from_pretrained(str(Path(config.output) / "pipeline"))
    straight = losses(tiny_config(tmp_path / "straight"))
    assert seen + losses(config) == straight


def test_a_signal_in_the_middle_of_a_step_waits_for_its_end(config, monkeypatch):
    whole = Trainer._clip_gradients

    def interrupted(self: Trainer) -> object:
        if self.step == 1:
            os.kill(os.getpid(), signal.SIGINT)
        return whole(self)

    monkeypatch.setattr(Trainer, "_clip_gradients", interrupted)
    with pytest.raises(Interrupted, match="after step 2"):
        train(config)
    assert newest_step(config) == 2


def test_a_second_signal_ends_at_once_and_the_newest_checkpoint_stays(config, monkeypatch):
    config = changed(config, "checkpoint", every_steps=1)
    whole = Trainer._clip_gradients

    def interrupted(self: Trainer) -> object:
        for _ in range(2 * (self.step == 1)):
            os.kill(os.getpid(), signal.SIGTERM)
        return whole(self)

    monkeypatch.setattr(Trainer, "_clip_gradients", interrupted)
    with pytest.raises(Interrupted):
        train(config)
    assert newest_step(config) == 1


def test_a_signal_while_a_checkpoint_is_written(config, monkeypatch):
    config = changed(config, "checkpoint", every_steps=1)
    save = Trainer._save

    def interrupted(self: Trainer) -> None:
        if self.step == 2 != self.saved_step:
            os.kill(os.getpid(), signal.SIGINT)
        save(self)

    monkeypatch.setattr(Trainer, "_save", interrupted)
    with pytest.raises(Interrupted, match="after step 2"):
        train(config)
    assert newest_step(config) == 2


def test_a_signal_before_the_first_step(config, monkeypatch):
    loader = Trainer.loader

    def interrupted(self: Trainer) -> object:
        os.kill(os.getpid(), signal.SIGINT)
        return loader(self)

    monkeypatch.setattr(Trainer, "loader", interrupted)
    with pytest.raises(Interrupted, match="before the first step: the same command begins again"):
        train(config)
    assert newest_step(config) == 0
    assert not (Path(config.output) / "pipeline").exists()


def test_a_signal_after_the_last_step_leaves_a_run_that_is_done(config, monkeypatch):
    save = Trainer.save_pipeline

    def interrupted(self: Trainer) -> Path:
        os.kill(os.getpid(), signal.SIGTERM)
        return save(self)

    monkeypatch.setattr(Trainer, "save_pipeline", interrupted)
    with pytest.raises(Interrupted, match=r"the run was done: .*pipeline"):
        train(config)
    assert newest_step(config) == 3
    FreqFormerPipeline.from_pretrained(str(Path(config.output) / "pipeline"))


def test_clips_that_can_not_be_had_leave_a_checkpoint_of_the_last_step(config, caplog):
    """Two clips a step: the third step has none."""
    with pytest.raises(ValueError, match=r"clips ended after 4"):
        train(config, clips=(torch.zeros(3, 2, 8, 16) for _ in range(4)))
    assert newest_step(config) == 2
    assert "keeps step 2" in caplog.text
