"""`calibrate_pipeline` decides by the videos themselves: what is tried, what wins, going on."""

from __future__ import annotations

import math
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests.calibration.pipelines.test_calibrate_pipeline import (
    CALL,
    PROMPTS,
    SETTINGS,
    Stop,
    calibrated,
    stopping,
)
from tests.support.tiny_pipelines import generate, tiny_wan_pipeline

from freqformer.calibration import PipelineChoice
from freqformer.calibration.pipelines import state as kept
from freqformer.calibration.pipelines import work
from freqformer.calibration.pipelines.state import FARTHEST, told_error
from freqformer.calibration.pipelines.work import Work
from freqformer.integrations.diffusers import enable_frequency_attention

TRIALS = 6
TRYING = replace(SETTINGS, trials=TRIALS)


@pytest.fixture(scope="module")
def pipe() -> Any:
    return tiny_wan_pipeline()


@pytest.fixture(scope="module")
def measured(pipe: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A state with the measurement alone."""
    folder = tmp_path_factory.mktemp("measured")
    calibrated(pipe, state=folder)
    return folder


@pytest.fixture
def state(measured: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(measured, tmp_path / "state"))


def final_latents(pipe: Any, prompt: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(SETTINGS.seed + prompt)
    given = {"prompt": PROMPTS[prompt], "generator": generator, "output_type": "latent"}
    return pipe(**CALL, **given, num_inference_steps=SETTINGS.steps).frames.double()


def test_the_winner_is_the_nearest_that_was_tried(pipe: Any, state: Path) -> None:
    found = calibrated(pipe, state=state, settings=TRYING)
    assert len(found.tried) == TRIALS
    assert found.tried[0].name == "least expected error"
    assert "preset" in [tried.name for tried in found.tried]
    assert all(tried.density <= 0.5 for tried in found.tried)
    assert found.chosen in found.tried
    assert found.chosen is not None
    assert found.chosen.nearness == max(tried.nearness for tried in found.tried)
    assert found.density == found.chosen.density
    # It says what its tables do.
    decibels = []
    for prompt in range(len(PROMPTS)):
        dense = final_latents(pipe, prompt)
        with enable_frequency_attention(pipe, found.tables) as handle:
            error = final_latents(pipe, prompt) - dense
            assert handle.density == pytest.approx(found.density)
        decibels.append(float(10 * (dense.square().sum() / error.square().sum()).log10()))
    assert found.chosen.nearness == pytest.approx(sum(decibels) / len(decibels), abs=1e-3)


def test_no_trials_take_the_least_expected_error(pipe: Any, state: Path) -> None:
    found = calibrated(pipe, state=state)
    expected = found.calibration.choose(0.5)
    assert (found.chosen, found.tried) == (None, ())
    for part, table in expected.tables.items():
        assert torch.equal(found.tables[part].bands, table.bands)
        assert torch.equal(found.tables[part].mid_tiles, table.mid_tiles)
    one = calibrated(pipe, state=state, settings=replace(SETTINGS, trials=1))
    assert torch.equal(one.tables["transformer"].bands, expected.tables["transformer"].bands)


def test_an_expected_error_that_misleads_loses(
    pipe: Any, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights of steps that give all density to what hardly matters."""
    own = work.step_weights
    monkeypatch.setattr(work, "step_weights", lambda *given: 1 / own(*given))
    found = calibrated(pipe, state=state, settings=TRYING)
    assert found.chosen is not None
    assert found.chosen.name != "least expected error"
    assert found.chosen.nearness > found.tried[0].nearness + 0.5


def test_less_density_may_win_and_is_said(
    pipe: Any, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def planted(_work: Work, _calibration: Any, trial: Any, _done: Any) -> float:
        return 30.0 if "0.5 of the density" in trial.name else 20.0

    with monkeypatch.context() as patched:
        patched.setattr(Work, "_nearness", planted)
        found = calibrated(pipe, state=state, settings=TRYING, density=0.6)
    assert found.chosen is not None
    assert found.density == found.chosen.density <= 0.3
    with enable_frequency_attention(pipe, found.tables) as handle:
        generate(pipe, num_inference_steps=3)
        assert handle.density == pytest.approx(found.density)


def test_a_higher_density_is_never_farther(
    pipe: Any, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tables of a lower density compete, also where all new ones are bad."""
    less = calibrated(pipe, state=state, settings=TRYING, density=0.3)
    assert less.chosen is not None
    with monkeypatch.context() as patched:
        patched.setattr(work, "told_error", lambda *_: FARTHEST)
        more = calibrated(pipe, state=state, settings=TRYING, density=0.7)
    assert more.chosen == less.chosen
    assert more.density == less.density
    assert torch.equal(more.tables["transformer"].bands, less.tables["transformer"].bands)
    assert -math.inf in [tried.nearness for tried in more.tried]
    # A lower density has nothing of the higher one.
    assert all(
        tried.density <= 0.2
        for tried in calibrated(pipe, state=state, settings=TRYING, density=0.2).tried
    )


@pytest.mark.parametrize("after", [1, 2 * TRIALS - 3])
def test_trials_go_on_where_they_ended(
    pipe: Any, state: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    with monkeypatch.context() as patched:
        stopping(pipe, after, patched)
        with pytest.raises(Stop):
            calibrated(pipe, state=state, settings=TRYING)
    seen = stopping(pipe, 100, monkeypatch)
    found = calibrated(pipe, state=state, settings=TRYING)
    assert len(seen) == TRIALS * len(PROMPTS) - after
    again = calibrated(pipe, state=state, settings=TRYING)
    assert len(seen) == TRIALS * len(PROMPTS) - after
    assert again.tried == found.tried
    assert again.chosen == found.chosen
    more = calibrated(pipe, state=state, settings=replace(TRYING, trials=TRIALS + 1))
    assert len(seen) == (TRIALS + 1) * len(PROMPTS) - after
    assert more.tried[:TRIALS] == found.tried


def test_a_state_is_written_once_in_a_while(
    pipe: Any, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not after every run: a slow disk takes longer than a small model's run."""
    now, written = [0.0], []
    clock = SimpleNamespace(monotonic=lambda: now[0])
    monkeypatch.setattr(kept, "time", clock)
    save = kept.save_checkpoint
    monkeypatch.setattr(
        kept, "save_checkpoint", lambda *given: written.append(given[1]) or save(*given)
    )
    runs = len(PROMPTS) * TRIALS
    first = len(PROMPTS) * (1 + SETTINGS.probes) + 1

    def passing(found: torch.Tensor, dense: torch.Tensor) -> float:
        now[0] += kept.SECONDS / 4
        return told_error(found, dense)

    monkeypatch.setattr(work, "told_error", passing)
    calibrated(pipe, state=state, settings=TRYING)
    assert written == [*range(first, first + runs, 4), first + runs - 1]


def test_where_no_table_gives_numbers(
    pipe: Any, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(work, "told_error", lambda *_: FARTHEST)
    with pytest.raises(ValueError, match=r"all 2 tables that were tried aren't finite"):
        calibrated(pipe, state=state, settings=replace(TRYING, trials=2))


def test_a_tolerance_says_the_density(pipe: Any, state: Path) -> None:
    bare = calibrated(pipe, state=state, density=None, tolerance=0.2)
    found = calibrated(pipe, state=state, density=None, tolerance=0.2, settings=TRYING)
    assert isinstance(found, PipelineChoice)
    assert found.chosen is not None
    assert found.tried[0].density == bare.density
    assert all(tried.density <= bare.density for tried in found.tried)


def test_two_experts_are_tried_together() -> None:
    pipe = tiny_wan_pipeline(experts=2)
    found = calibrated(pipe, prompts=PROMPTS[:1], settings=replace(TRYING, trials=3))
    assert list(found.tables) == ["transformer", "transformer_2"]
    assert len(found.tried) == 3
    preset = next(tried for tried in found.tried if tried.name == "preset")
    assert preset.density == pytest.approx(0.5, rel=0.05)
