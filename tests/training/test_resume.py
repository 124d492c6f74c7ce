"""Runs that are killed: no kill leaves a checkpoint that can't be loaded, and a resumed run is the run without the kill."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def killed_runs(folder: Path, *scenarios: str) -> list[dict]:
    """Run scenarios of `tests.support.killed_runs`, each in its subfolder, and return what they said."""
    command = [sys.executable, "-m", "tests.support.killed_runs", str(folder), *scenarios]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=550)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture(scope="module")
def short(tmp_path_factory) -> tuple[Path, list[dict]]:
    """The folder and the words of the short scenarios, which share one start of Python."""
    folder = tmp_path_factory.mktemp("killed")
    return folder, killed_runs(folder, "operations", "resume", "kills=5")


def files(checkpoint: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in checkpoint.glob("*.safetensors")}


def assert_same_end(folder: Path, steps: int) -> None:
    straight, killed = (files(folder / name / "checkpoints" / f"step-{steps:08d}") for name in ("straight", "killed"))
    assert set(straight) == {"model.safetensors", "ema.safetensors", "optimizer.safetensors"}
    assert straight == killed
    weights = [folder / name / "pipeline" / "transformer" for name in ("straight", "killed")]
    assert files(weights[0]) == files(weights[1]) != {}


def test_twenty_steps_equal_ten_a_kill_and_ten_more(short):
    folder = short[0] / "resume"
    straight, killed = (
        [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]
        for name in ("straight", "killed")
    )
    assert [step for step, *_ in straight] == [*range(1, 21)]
    assert [step for step, *_ in killed] == [*range(1, 13), *range(11, 21)]
    # Loss, routing loss, gradient norm and learning rate to the last bit, and the state of all random generators.
    assert killed[:12] == straight[:12]
    assert killed[12:] == straight[10:]
    assert len({figures[0] for _, figures, _ in straight}) == 20
    assert_same_end(folder, 20)


def assert_kills_are_survived(folder: Path, said: list[dict], number: int) -> None:
    lives = [life for life in said if life["scenario"] == "kills"]
    assert len(lives) == number
    newest = [int(life["newest"].removeprefix("step-")) if life["newest"] else 0 for life in lives]
    assert newest == sorted(newest), "no kill takes a step back"
    assert newest[-1] > 0
    assert not all(life["ended"] for life in lives)
    assert_same_end(folder / "kills", 4 * number)


def test_five_kills_at_random_moments(short):
    assert_kills_are_survived(*short, number=5)


@pytest.mark.slow
def test_fifty_kills_at_random_moments(tmp_path):
    assert_kills_are_survived(tmp_path, killed_runs(tmp_path, "kills=50"), number=50)


def test_a_kill_before_any_file_operation_of_a_save(short):
    folder, said = short
    newest = [life["newest"] for life in said if life["scenario"] == "operations"]
    # Early kills leave the old checkpoint, late ones the new.
    assert len(newest) > 20
    assert newest[:10] == [1] * 10
    assert newest[-1] > 5
    assert [path.name for path in (folder / "operations").iterdir()] == [f"step-{newest[-1]:08d}"]
