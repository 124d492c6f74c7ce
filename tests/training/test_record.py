"""The record of a run's parts, and runs that are cut into parts by the clock."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from freqformer.training.checkpoint import newest_checkpoint
from freqformer.training.config import DataConfig, RunConfig, TrainConfig
from freqformer.training.loop import train
from freqformer.training.record import (
    COMMIT_VARIABLE,
    PARTS_FILE,
    Part,
    _installed_commit,
    parts_up_to,
    read_parts,
    with_part,
    write_parts,
)
from freqformer.training.run import StepReport

PART = Part(0, 10, 40, 5.0, 0.5, 1.0, "CPU", "2", "1", None, "train")


@pytest.fixture
def config(tmp_path: Path) -> TrainConfig:
    return TrainConfig(
        str(tmp_path / "run"),
        model={"num_layers": 1, "num_heads": 3, "head_dim": 8, "patch_size": [1, 4, 4], "routing": "fixed"},
        data=DataConfig(num_frames=2, height=8, width=16),
        run=RunConfig(max_steps=3, batch_size=2, device="cpu", progress=False),
    )


def test_a_run_in_parts_is_the_run_in_one(config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(COMMIT_VARIABLE, "abc123")
    whole: list[StepReport] = []
    train(replace(config, output=str(tmp_path / "whole")), on_step=whole.append)
    cut: list[StepReport] = []
    short = replace(config, run=replace(config.run, part_seconds=0.001))
    for step in (1, 2, 3):
        # A part does one step at least, however short it is.
        train(short, on_step=cut.append)
        assert len(cut) == step
        newest = newest_checkpoint(Path(config.output) / "checkpoints")
        assert newest is not None
        assert newest.name == f"step-0000000{step}"
    for one, other in zip(whole, cut, strict=True):
        assert replace(one, seconds=0) == replace(other, seconds=0)
    parts = read_parts(Path(config.output))
    assert [(part.first_step, part.last_step, part.clips) for part in parts] == [(0, 1, 2), (1, 2, 2), (2, 3, 2)]
    assert [part.progress for part in parts] == pytest.approx([1 / 3, 2 / 3, 1])
    assert [part.loss for part in parts] == [report.loss for report in whole]
    assert sum(part.seconds for part in parts) == pytest.approx(cut[-1].seconds, abs=0.01)
    assert all(part.seconds > 0 and part.device.startswith("CPU") and part.commit == "abc123" for part in parts)
    (only,) = read_parts(tmp_path / "whole")
    assert only.loss == pytest.approx(sum(report.loss for report in whole) / 3)


def test_a_part_that_went_back_replaces_what_it_went_behind(tmp_path: Path) -> None:
    assert read_parts(tmp_path) == []
    later, again = replace(PART, first_step=10, last_step=30), replace(PART, first_step=10, last_step=25)
    parts: list[Part] = []
    for part in (PART, later, again):
        parts = with_part(parts, part)
        write_parts(tmp_path, parts)
    assert read_parts(tmp_path) == [PART, again]
    assert parts_up_to(parts, 20) == [PART]


@pytest.mark.parametrize(
    "text", ["{", "[1]", '[{"first_step": 0}]', "3", "[" * 10**5, json.dumps([{**asdict(PART), "clips": "many"}])]
)
def test_damaged_records_are_named(tmp_path: Path, text: str) -> None:
    (tmp_path / PARTS_FILE).write_text(text)
    with pytest.raises(ValueError, match=r"parts\.json .*remove it, and train again"):
        read_parts(tmp_path)


def test_without_git_the_commit_is_unknown(config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(COMMIT_VARIABLE, raising=False)
    monkeypatch.setenv("PATH", "")
    # An earlier run of this process may have found it.
    monkeypatch.setattr("freqformer.training.record._installed_commit", _installed_commit.__wrapped__)
    train(replace(config, run=replace(config.run, max_steps=1)))
    assert json.loads((Path(config.output) / PARTS_FILE).read_text())[0]["commit"] is None
