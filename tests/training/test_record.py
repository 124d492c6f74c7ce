"""The record of a run's parts, and runs that are cut into parts by the clock."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from freqformer.training import record
from freqformer.training.checkpoint import load_checkpoint, newest_checkpoint, save_checkpoint
from freqformer.training.config import CheckpointConfig, DataConfig, RunConfig, TrainConfig
from freqformer.training.loop import train
from freqformer.training.record import (
    COMMIT_VARIABLE,
    PARTS_FILE,
    TRAIN_FILE,
    Part,
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
        model={
            "num_layers": 1,
            "num_attention_heads": 3,
            "attention_head_dim": 8,
            "patch_size": [1, 4, 4],
            "frequency": {"preset": "paper", "routing": "fixed", "prior": "none"},
        },
        data=DataConfig(num_frames=2, height=8, width=16),
        run=RunConfig(max_steps=3, batch_size=2, device="cpu", progress=False),
    )


def test_a_run_in_parts_is_the_run_in_one(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
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
    assert [(part.first_step, part.last_step, part.clips) for part in parts] == [
        (0, 1, 2),
        (1, 2, 2),
        (2, 3, 2),
    ]
    assert [part.progress for part in parts] == pytest.approx([1 / 3, 2 / 3, 1])
    assert [part.loss for part in parts] == [report.loss for report in whole]
    assert sum(part.seconds for part in parts) == pytest.approx(cut[-1].seconds, abs=0.01)
    assert all(
        part.seconds > 0 and part.device.startswith("CPU") and part.commit == "abc123"
        for part in parts
    )
    (only,) = read_parts(tmp_path / "whole")
    assert only.loss == pytest.approx(sum(report.loss for report in whole) / 3)


def test_a_part_that_went_back_replaces_what_it_went_behind(tmp_path: Path) -> None:
    assert read_parts(tmp_path) == []
    later, again = (
        replace(PART, first_step=10, last_step=30),
        replace(PART, first_step=10, last_step=25),
    )
    parts: list[Part] = []
    for part in (PART, later, again):
        parts = with_part(parts, part)
        write_parts(tmp_path, parts)
    assert read_parts(tmp_path) == [PART, again]
    assert parts_up_to(parts, 20) == [PART]


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[1]",
        '[{"first_step": 0}]',
        "3",
        "[" * 10**5,
        json.dumps([{**asdict(PART), "clips": "many"}]),
    ],
)
def test_damaged_records_are_named(tmp_path: Path, text: str) -> None:
    (tmp_path / PARTS_FILE).write_text(text)
    with pytest.raises(ValueError, match=r"parts\.json .*remove it, and train again"):
        read_parts(tmp_path)


def test_a_killed_part_is_recorded_up_to_its_checkpoint(config: TrainConfig) -> None:
    """F111: steps, clips and seconds of the card are those of the weights."""
    config = replace(config, checkpoint=CheckpointConfig(every_steps=1))

    class Killed(BaseException):
        pass

    def kill(report: StepReport) -> None:
        if report.step == 2:
            raise Killed

    with pytest.raises(Killed):
        train(config, on_step=kill)
    folder = Path(config.output)
    (part,) = read_parts(folder)
    assert (part.first_step, part.last_step, part.clips) == (0, 1, 2)
    # Killed behind the checkpoint and before the copy: the checkpoint knows.
    (folder / PARTS_FILE).unlink()
    train(config)
    first, second = read_parts(folder)
    assert first == part
    assert (second.first_step, second.last_step, second.clips) == (1, 3, 4)
    assert json.loads((folder / TRAIN_FILE).read_text())["run"]["max_steps"] == 3


def test_a_run_of_an_earlier_version_keeps_its_parts(config: TrainConfig) -> None:
    train(replace(config, run=replace(config.run, part_seconds=0.001)))
    folder = Path(config.output)
    newest = newest_checkpoint(folder / "checkpoints")
    assert newest is not None
    groups, state = load_checkpoint(newest)
    del state["parts"]
    save_checkpoint(
        folder / "checkpoints", 1, {name: dict(group) for name, group in groups.items()}, state
    )
    before = read_parts(folder)
    train(config)
    assert read_parts(folder)[0] == before[0]
    assert len(read_parts(folder)) == 2


def git(folder: Path, *arguments: str) -> str:
    own = ["-c", "user.name=x", "-c", "user.email=x@example.com", "-c", "init.defaultBranch=main"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    command = ["git", "-C", str(folder), *own, *arguments]
    return subprocess.run(
        command, check=True, capture_output=True, text=True, env=environment
    ).stdout.strip()


def commit_with(folder: Path, project: str | None) -> tuple[Path, str]:
    """A repository with the package in it, as `project` says; the package and the commit."""
    package = folder / "src" / "freqformer"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    if project is not None:
        (folder / "pyproject.toml").write_text(f'[project]\nname = "{project}"\n')
    git(folder, "init")
    git(folder, "add", "-A")
    git(folder, "commit", "-m", "x")
    return package, git(folder, "rev-parse", "HEAD")


def test_the_commit_is_that_of_the_package_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F111: a user's repository around an installed package tells nothing of its code."""
    package, commit = commit_with(tmp_path / "own", "freqformer")
    assert record._repository_commit(package) == commit
    other, _ = commit_with(tmp_path / "users", "thesis")
    inside = tmp_path / "users" / ".venv" / "lib" / "freqformer"
    inside.mkdir(parents=True)
    assert record._repository_commit(other) is None
    assert record._repository_commit(inside) is None
    assert record._repository_commit(commit_with(tmp_path / "bare", None)[0]) is None
    # As in a hook of another repository.
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "users" / ".git"))
    assert record._repository_commit(package) == commit


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"url": "x", "vcs_info": {"vcs": "git", "commit_id": "abc"}}', "abc"),
        ('{"url": "file:///x", "dir_info": {}}', None),
        (None, None),
        ("{", None),
        ("[]", None),
    ],
)
def test_the_commit_that_an_installer_noted(
    monkeypatch: pytest.MonkeyPatch, text: str | None, expected: str | None
) -> None:
    class Installed:
        def read_text(self, name: str) -> str | None:
            return text if name == "direct_url.json" else None

    monkeypatch.setattr(record, "distribution", lambda name: Installed())
    assert record._direct_commit() == expected


def test_without_git_the_commit_is_unknown(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(COMMIT_VARIABLE, raising=False)
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(record, "_direct_commit", lambda: None)
    record._installed_commit.cache_clear()
    monkeypatch.setattr(record, "_installed_commit", record._installed_commit.__wrapped__)
    train(replace(config, run=replace(config.run, max_steps=1)))
    assert json.loads((Path(config.output) / PARTS_FILE).read_text())[0]["commit"] is None
