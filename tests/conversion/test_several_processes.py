"""Two processes with a clip or call each convert a model as one process does with both, one after
the other, and go on with what the other number began."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.support.ranks import run_ranks
from tests.support.shared_conversions import (
    KEPT,
    STEPS,
    config_of,
    go_on,
    make_folder,
    write_reports,
)

from freqformer.conversion import convert
from freqformer.training.checkpoint import CheckpointError

RESULTS = {"clips": "adapter", "calls": "adapter", "dense": "pipeline"}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of all runs, by one process and by two."""
    folder = make_folder(tmp_path_factory.mktemp("shared"))
    write_reports(folder, tuple(RESULTS), 1)
    go_on(folder, "clips-1", "one, then two-2")
    run_ranks("shared_conversions.py", 2, folder, *RESULTS, "one, then two", seconds=500)
    go_on(folder, "clips-2", "two, then one-1")
    write_reports(folder, ("two, then one",), 1)
    return folder


def reports(runs: Path, name: str) -> list[list[float]]:
    """Step, loss and gradient norm of each step."""
    return json.loads((runs / f"{name}.json").read_text(encoding="utf-8"))


def result(folder: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for path in sorted(folder.rglob("*.safetensors")):
        found |= load_file(path)
    return found


def check_alike(found: Path, wanted: Path) -> None:
    weights, others = result(wanted), result(found)
    assert weights
    assert weights.keys() == others.keys()
    for name, x in weights.items():
        torch.testing.assert_close(others[name], x, rtol=1e-3, atol=1e-5, msg=name)


@pytest.mark.parametrize("name", sorted(RESULTS))
def test_losses_gradients_and_results_are_those_of_one_process(runs: Path, name: str) -> None:
    one, two = (reports(runs, f"{name}-{ranks}") for ranks in (1, 2))
    assert len(one) == STEPS
    for mine, theirs in zip(one, two, strict=True):
        assert theirs == pytest.approx(mine, rel=1e-4)
    check_alike(runs / f"{name}-2" / RESULTS[name], runs / f"{name}-1" / RESULTS[name])


@pytest.mark.parametrize("name", ["one, then two-2", "two, then one-1"])
def test_a_run_goes_on_on_another_number_of_ranks(runs: Path, name: str) -> None:
    found, wanted = reports(runs, name), reports(runs, "clips-1")[KEPT:]
    assert len(found) == STEPS - KEPT
    for mine, theirs in zip(wanted, found, strict=True):
        assert theirs == pytest.approx(mine, rel=1e-4)
    check_alike(runs / name / "adapter", runs / "clips-1" / "adapter")


def test_steps_keep_their_number_of_clips(runs: Path) -> None:
    fewer = config_of(runs, "clips", 2)
    with pytest.raises(CheckpointError, match="clips_per_step was 2 and is 1"):
        convert(fewer)
