"""Every example runs, and does what it says."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest

from freqformer.media import probe_video

EXAMPLES = Path(__file__).parents[2] / "examples"


def main_of(name: str) -> Any:
    """The `main` of an example, as `python examples/NAME.py` calls it."""
    return runpy.run_path(str(EXAMPLES / f"{name}.py"))["main"]


def test_attention_in_your_dit() -> None:
    losses = main_of("attention_in_your_dit")(steps=8)
    assert len(losses) == 8
    assert losses[-1] < 0.9 * losses[0]


def test_diffusers_plugin() -> None:
    found = main_of("diffusers_plugin")()
    assert 0.001 < found["changed"] < 0.5
    assert found["after"] == 0


def test_train_on_one_video(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--output", str(tmp_path / "run"), "--steps", "2", "--seconds", "60"]
    target = main_of("train_on_one_video")(arguments)
    assert "2 steps, loss" in capsys.readouterr().out
    assert probe_video(target).num_frames == 16
    assert probe_video(target.with_suffix(".png")).width > 80
    main_of("train_on_one_video")(arguments)
    assert "this run was done before" in capsys.readouterr().out


def test_simulate_your_card() -> None:
    results = main_of("simulate_your_card")()
    assert [result.scenario.machine.hardware.title for result in results] == [
        "A card of 300 TFLOP/s and 24 GB"
    ] * 3
    speedups = [result.step.speedup for result in results]
    assert 1 < speedups[0] < speedups[1] < speedups[2]


def test_what_the_router_does(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = main_of("what_the_router_does")(
        ["--output", str(tmp_path / "router.png"), "--steps", "2"]
    )
    assert probe_video(target).width > 300
    assert "first step, noise level 1.00" in capsys.readouterr().out


def test_every_example_is_tested_and_listed() -> None:
    names = {path.stem for path in EXAMPLES.glob("*.py")}
    assert names == {
        name.removeprefix("test_") for name in globals() if name.startswith("test_")
    } - {"every_example_is_tested_and_listed"}
    listed = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    assert all(f"python examples/{name}.py" in listed for name in names)
