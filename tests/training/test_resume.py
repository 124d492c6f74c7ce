"""Runs that are killed: no kill leaves a checkpoint that can't be loaded, and a resumed run is the
run without the kill."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def killed_runs(folder: Path, *scenarios: str) -> list[dict]:
    """Run scenarios of `tests.support.killed_runs`, each in its subfolder, and return what they
    said."""
    command = [sys.executable, "-m", "tests.support.killed_runs", str(folder), *scenarios]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=3500)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture(scope="module")
def short(tmp_path_factory) -> tuple[Path, list[dict]]:
    """The folder and the words of the short scenarios, which share one start of Python."""
    folder = tmp_path_factory.mktemp("killed")
    return folder, killed_runs(folder, "operations", "resume", "kills=5", "interruptions=4")


def files(checkpoint: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in checkpoint.glob("*.safetensors")}


def assert_same_end(folder: Path, steps: int) -> None:
    straight, killed = (
        files(folder / name / "checkpoints" / f"step-{steps:08d}")
        for name in ("straight", "killed")
    )
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
    # Loss, routing loss, gradient norm and learning rate to the last bit, and the state of all
    # random generators.
    assert killed[:12] == straight[:12]
    assert killed[12:] == straight[10:]
    assert len({figures[0] for _, figures, _ in straight}) == 20
    assert_same_end(folder, 20)


def assert_all_are_survived(
    folder: Path, said: list[dict], scenario: str, number: int, steps: int
) -> None:
    """Every life of a run left a whole checkpoint and no step was taken back; losses and weights
    are those of one life."""
    lives = [life for life in said if life["scenario"] == scenario]
    assert len(lives) == number
    newest = [life["newest"] for life in lives]
    assert newest == sorted(newest), "no signal takes a step back"
    assert newest[-1] > 0
    assert not all(life["ended"] for life in lives)
    straight, lived = (
        [
            json.loads(line)
            for line in (folder / scenario / f"{name}.jsonl").read_text().splitlines()
        ]
        for name in ("straight", "killed")
    )
    figures = {step: rest for step, *rest in straight}
    assert list(figures) == [*range(1, steps + 1)]
    # Steps that were lost are done again, to the same bits.
    assert {step for step, *_ in lived} == set(figures)
    assert all(rest == figures[step] for step, *rest in lived)
    assert_same_end(folder / scenario, steps)


def test_five_kills_at_random_moments(short):
    assert_all_are_survived(*short, "kills", number=5, steps=15)


def test_four_interruptions_at_random_moments(short):
    assert_all_are_survived(*short, "interruptions", number=4, steps=16)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_two_hundred_kills_and_a_hundred_interruptions(tmp_path):
    said = killed_runs(tmp_path, "kills=200", "interruptions=100")
    assert_all_are_survived(tmp_path, said, "kills", number=200, steps=600)
    assert_all_are_survived(tmp_path, said, "interruptions", number=100, steps=400)


def test_a_kill_before_any_file_operation_of_a_save(short):
    folder, said = short
    newest = [life["newest"] for life in said if life["scenario"] == "operations"]
    # Early kills leave the old checkpoint, late ones the new.
    assert len(newest) > 20
    assert newest[:10] == [1] * 10
    assert newest[-1] > 5
    assert [path.name for path in (folder / "operations").iterdir()] == [f"step-{newest[-1]:08d}"]
