"""Two processes with a clip or call each convert a model as one process does with both, one after
the other, and go on with what the other number began."""

from __future__ import annotations

import json
from dataclasses import replace
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
from freqformer.training.parallel_config import ParallelConfig

RESULTS = {"clips": "adapter", "calls": "adapter", "dense": "pipeline"}
SHARED = ("clips, shared", "calls, shared")
"""Runs whose ranks share the dense model's weights."""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of all runs, by one process and by two."""
    folder = make_folder(tmp_path_factory.mktemp("shared"))
    write_reports(folder, tuple(RESULTS), 0, 1)
    go_on(folder, "clips-1", "one, then two-2")
    on_two = (*RESULTS, *SHARED, "one, then two")
    run_ranks("shared_conversions.py", 2, folder, *on_two, seconds=500)
    go_on(folder, "clips-2", "two, then one-1")
    write_reports(folder, ("two, then one",), 0, 1)
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


@pytest.mark.parametrize("name", [*sorted(RESULTS), *SHARED])
def test_losses_gradients_and_results_are_those_of_one_process(runs: Path, name: str) -> None:
    plain = name.partition(",")[0]
    one, two = reports(runs, f"{plain}-1"), reports(runs, f"{name}-2")
    assert len(one) == STEPS
    for mine, theirs in zip(one, two, strict=True):
        assert theirs == pytest.approx(mine, rel=1e-4, abs=1e-6)
    check_alike(runs / f"{name}-2" / RESULTS[plain], runs / f"{plain}-1" / RESULTS[plain])


@pytest.mark.parametrize("name", SHARED)
def test_ranks_that_share_the_dense_model_hold_half_of_it(runs: Path, name: str) -> None:
    held = [json.loads((runs / f"{name}-held-{rank}.json").read_text()) for rank in (0, 1)]
    shares = [mine / whole for mine, whole in held]
    assert sum(shares) == pytest.approx(1)
    assert shares == pytest.approx([0.5, 0.5], abs=0.05)


def test_an_adapter_of_shared_weights_knows_its_model(runs: Path) -> None:
    one, two = (
        json.loads((runs / name / "adapter" / "adapter.json").read_text(encoding="utf-8"))
        for name in ("clips-1", "clips, shared-2")
    )
    assert one["origin"]
    assert two["origin"] == one["origin"]


def test_what_ranks_cant_share_is_refused(runs: Path, tmp_path: Path) -> None:
    config = config_of(runs, "dense", 1)
    with pytest.raises(ValueError, match=r"parallel\.cp is 2; 1 is allowed.*parallel\.dp_shard"):
        replace(config.run, parallel=ParallelConfig(cp=2))
    shared = replace(config.run, parallel=ParallelConfig(dp_shard=2))
    with pytest.raises(ValueError, match=r"dp_shard is 2, and pipeline .* a model of this package"):
        convert(replace(config, output=str(tmp_path), run=shared))


@pytest.mark.parametrize("name", ["one, then two-2", "two, then one-1"])
def test_a_run_goes_on_on_another_number_of_ranks(runs: Path, name: str) -> None:
    found, wanted = reports(runs, name), reports(runs, "clips-1")[KEPT:]
    assert len(found) == STEPS - KEPT
    for mine, theirs in zip(wanted, found, strict=True):
        assert theirs == pytest.approx(mine, rel=1e-4, abs=1e-6)
    check_alike(runs / name / "adapter", runs / "clips-1" / "adapter")


def test_steps_keep_their_number_of_clips(runs: Path) -> None:
    fewer = config_of(runs, "clips", 2)
    with pytest.raises(CheckpointError, match="clips_per_step was 2 and is 1"):
        convert(fewer)
