"""The record of a run's sessions, and runs that are cut into sessions by the clock."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from freqformer.training import provenance
from freqformer.training.checkpoint import load_checkpoint, newest_checkpoint, save_checkpoint
from freqformer.training.config import CheckpointConfig, DataConfig, RunConfig, TrainConfig
from freqformer.training.loop import train
from freqformer.training.provenance import (
    COMMIT_VARIABLE,
    SESSIONS_FILE,
    TRAIN_FILE,
    Session,
    read_sessions,
    sessions_up_to,
    with_session,
    write_sessions,
)
from freqformer.training.report import StepReport

SESSION = Session(0, 10, 40, 5.0, 0.5, 1.0, "CPU", "2", "1", None, "train")


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


def test_a_run_in_sessions_is_the_run_in_one(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(COMMIT_VARIABLE, "abc123")
    whole: list[StepReport] = []
    train(replace(config, output=str(tmp_path / "whole")), on_step=whole.append)
    cut: list[StepReport] = []
    short = replace(config, run=replace(config.run, stop_after_seconds=0.001))
    for step in (1, 2, 3):
        # A session does one step at least, however short it is.
        train(short, on_step=cut.append)
        assert len(cut) == step
        newest = newest_checkpoint(Path(config.output) / "checkpoints")
        assert newest is not None
        assert newest.name == f"step-0000000{step}"
    for one, other in zip(whole, cut, strict=True):
        assert one.numbers.values == other.numbers.values
        assert replace(one, seconds=0, numbers=other.numbers) == replace(other, seconds=0)
    sessions = read_sessions(Path(config.output))
    assert [(session.first_step, session.last_step, session.clips) for session in sessions] == [
        (0, 1, 2),
        (1, 2, 2),
        (2, 3, 2),
    ]
    assert [session.progress for session in sessions] == pytest.approx([1 / 3, 2 / 3, 1])
    assert [session.loss for session in sessions] == [report.loss for report in whole]
    assert sum(session.seconds for session in sessions) == pytest.approx(cut[-1].seconds, abs=0.01)
    assert all(
        session.seconds > 0 and session.device.startswith("CPU") and session.commit == "abc123"
        for session in sessions
    )
    (only,) = read_sessions(tmp_path / "whole")
    assert only.loss == pytest.approx(sum(report.loss for report in whole) / 3)


def test_a_session_that_went_back_replaces_what_it_went_behind(tmp_path: Path) -> None:
    assert read_sessions(tmp_path) == []
    later, again = (
        replace(SESSION, first_step=10, last_step=30),
        replace(SESSION, first_step=10, last_step=25),
    )
    sessions: list[Session] = []
    for session in (SESSION, later, again):
        sessions = with_session(sessions, session)
        write_sessions(tmp_path, sessions)
    assert read_sessions(tmp_path) == [SESSION, again]
    assert sessions_up_to(sessions, 20) == [SESSION]


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[1]",
        '[{"first_step": 0}]',
        "3",
        "[" * 10**5,
        json.dumps([{**asdict(SESSION), "clips": "many"}]),
    ],
)
def test_damaged_records_are_named(tmp_path: Path, text: str) -> None:
    (tmp_path / SESSIONS_FILE).write_text(text)
    with pytest.raises(ValueError, match=r"sessions\.json .*remove it, and train again"):
        read_sessions(tmp_path)


def test_a_killed_session_is_recorded_up_to_its_checkpoint(config: TrainConfig) -> None:
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
    (session,) = read_sessions(folder)
    assert (session.first_step, session.last_step, session.clips) == (0, 1, 2)
    # Killed behind the checkpoint and before the copy: the checkpoint knows.
    (folder / SESSIONS_FILE).unlink()
    train(config)
    first, second = read_sessions(folder)
    assert first == session
    assert (second.first_step, second.last_step, second.clips) == (1, 3, 4)
    assert json.loads((folder / TRAIN_FILE).read_text())["run"]["max_steps"] == 3


def test_a_run_of_an_earlier_version_keeps_its_sessions(config: TrainConfig) -> None:
    train(replace(config, run=replace(config.run, stop_after_seconds=0.001)))
    folder = Path(config.output)
    newest = newest_checkpoint(folder / "checkpoints")
    assert newest is not None
    groups, state = load_checkpoint(newest)
    del state["sessions"]
    save_checkpoint(
        folder / "checkpoints", 1, {name: dict(group) for name, group in groups.items()}, state
    )
    before = read_sessions(folder)
    train(config)
    assert read_sessions(folder)[0] == before[0]
    assert len(read_sessions(folder)) == 2


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
    assert provenance._repository_commit(package) == commit
    other, _ = commit_with(tmp_path / "users", "thesis")
    inside = tmp_path / "users" / ".venv" / "lib" / "freqformer"
    inside.mkdir(parents=True)
    assert provenance._repository_commit(other) is None
    assert provenance._repository_commit(inside) is None
    assert provenance._repository_commit(commit_with(tmp_path / "bare", None)[0]) is None
    # As in a hook of another repository.
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "users" / ".git"))
    assert provenance._repository_commit(package) == commit


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

    monkeypatch.setattr(provenance, "distribution", lambda name: Installed())
    assert provenance._direct_commit() == expected


def test_without_git_the_commit_is_unknown(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(COMMIT_VARIABLE, raising=False)
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(provenance, "_direct_commit", lambda: None)
    provenance._installed_commit.cache_clear()
    monkeypatch.setattr(provenance, "_installed_commit", provenance._installed_commit.__wrapped__)
    train(replace(config, run=replace(config.run, max_steps=1)))
    assert json.loads((Path(config.output) / SESSIONS_FILE).read_text())[0]["commit"] is None


def test_the_record_of_a_run_has_nothing_of_one_session(config: TrainConfig) -> None:
    short = replace(config, run=replace(config.run, stop_after_seconds=0.001))
    train(short)
    record = json.loads((Path(config.output) / TRAIN_FILE).read_text())
    assert "stop_after_seconds" not in record["run"]
    assert TrainConfig.from_dict(record).run == config.run
    newest = newest_checkpoint(Path(config.output) / "checkpoints")
    assert newest is not None
    assert load_checkpoint(newest)[1]["config"] == record
