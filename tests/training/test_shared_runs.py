"""Runs of several ranks train as one process does, save together, and go on on other numbers."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tests.support.ranks import ROOT, run_ranks
from tests.support.shared_runs import STEPS, go_on, write_reports

from freqformer.models.pipeline import FreqFormerPipeline
from freqformer.training.checkpoint import (
    CheckpointError,
    load_checkpoint,
    newest_checkpoint,
)
from freqformer.training.config import RunConfig, TrainConfig
from freqformer.training.parallel_config import ParallelConfig

ON_TWO = ("cp", "shards", "cp, choosing", "bf16", "both, then cp", "one, then cp")
ON_FOUR = ("both", "copies")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of all runs, each with a file of what it reported."""
    folder = tmp_path_factory.mktemp("runs")
    write_reports(folder, ("one", "one, choosing"), 0)
    run_ranks("shared_runs.py", 4, folder, *ON_FOUR)
    go_on(folder, "both", 3, "both, then cp")
    go_on(folder, "one", 3, "one, then cp")
    (folder / "meeting").unlink()
    run_ranks("shared_runs.py", 2, folder, *ON_TWO)
    go_on(folder, "both, then cp", 4, "both, then cp, then one")
    write_reports(folder, ("both, then cp, then one",), 0)
    return folder


def losses(runs: Path, name: str) -> dict[int, float]:
    reports = json.loads((runs / f"{name}.json").read_text(encoding="utf-8"))
    return {step: loss for step, loss, _ in reports}


@pytest.mark.parametrize("name", ["cp", "shards", "both", "copies"])
def test_losses_are_those_of_one_process(runs: Path, name: str) -> None:
    """Were gradients averaged over the ranks of a clip, or noise their own, losses would leave."""
    assert losses(runs, name) == pytest.approx(losses(runs, "one"), abs=1e-6)
    assert len(losses(runs, name)) == STEPS


def test_so_are_those_of_a_router_that_chooses(runs: Path) -> None:
    """Its own loss is taken of logits that every rank has."""
    expected = losses(runs, "one, choosing")
    assert losses(runs, "cp, choosing") == pytest.approx(expected, abs=1e-6)
    assert expected != losses(runs, "one")


@pytest.mark.parametrize("name", ["cp", "shards", "both", "copies"])
def test_gradients_are_those_of_one_process(runs: Path, name: str) -> None:
    norms = [
        [norm for _, _, norm in json.loads((runs / f"{which}.json").read_text(encoding="utf-8"))]
        for which in (name, "one")
    ]
    assert norms[0] == pytest.approx(norms[1], rel=1e-5)


def test_a_run_goes_on_on_fewer_ranks(runs: Path) -> None:
    expected = losses(runs, "one")
    on_two, on_one = (losses(runs, name) for name in ("both, then cp", "both, then cp, then one"))
    assert list(on_two) == [4, 5]
    assert list(on_one) == [5]
    assert on_two == pytest.approx({step: expected[step] for step in (4, 5)}, abs=1e-6)
    assert on_one == pytest.approx({5: expected[5]}, abs=1e-6)


def test_a_run_of_one_process_goes_on_on_more(runs: Path) -> None:
    expected = losses(runs, "one")
    found = losses(runs, "one, then cp")
    assert found == pytest.approx({step: expected[step] for step in (4, 5)}, abs=1e-6)
    assert len(found) == 2


def test_checkpoints_of_ranks_are_read_by_one_process(runs: Path) -> None:
    groups, state = load_checkpoint(runs / "both" / "checkpoints" / "step-00000005")
    alone, _ = load_checkpoint(runs / "one" / "checkpoints" / "step-00000005")
    assert state["step"] == 5
    assert {name: tensors.keys() for name, tensors in groups.items()} == {
        name: tensors.keys() for name, tensors in alone.items()
    }
    for name, tensor in groups["ema"].items():
        torch.testing.assert_close(tensor, alone["ema"][name], atol=1e-4, rtol=1e-3)


def test_a_damaged_shard_is_found_out(runs: Path, tmp_path: Path) -> None:
    shutil.copytree(runs / "cp" / "checkpoints", tmp_path / "checkpoints")
    shard = next((tmp_path / "checkpoints" / "step-00000005").glob("shard-*"))
    content = bytearray(shard.read_bytes())
    content[-3] ^= 4
    shard.write_bytes(content)
    with pytest.raises(CheckpointError, match="damaged: its checksum differs"):
        load_checkpoint(shard.parent)
    assert newest_checkpoint(tmp_path / "checkpoints") == shard.parents[1] / "step-00000004"


def test_the_pipeline_is_that_of_one_process(runs: Path) -> None:
    made = [
        FreqFormerPipeline.from_pretrained(str(runs / name / "pipeline"))(
            3, 12, 20, num_inference_steps=2, generator=torch.Generator().manual_seed(1)
        ).frames
        for name in ("one", "both")
    ]
    torch.testing.assert_close(*made, atol=1e-3, rtol=0)


def test_half_precision_learns_as_well(runs: Path) -> None:
    """Weights are gathered in bfloat16, timesteps aren't rounded to it."""
    assert losses(runs, "bf16") == pytest.approx(losses(runs, "one"), abs=1e-3)
    assert losses(runs, "bf16") != losses(runs, "cp")


@pytest.mark.slow
def test_compiled_blocks_learn_the_same(runs: Path, tmp_path: Path) -> None:
    """A graph breaks off at the exchange, and goes on after it."""
    run_ranks("shared_runs.py", 2, tmp_path, "compiled", seconds=500)
    assert losses(tmp_path, "compiled") == pytest.approx(losses(runs, "one"), abs=1e-5)


def test_a_rank_that_dies_ends_the_run(tmp_path: Path) -> None:
    """By torchrun, as a user starts it; what was kept before is whole."""
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    paths = os.pathsep.join([str(ROOT / "src"), str(ROOT)])
    done = subprocess.run(
        [sys.executable, *command, "tests/support/dying_rank.py", str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert (tmp_path / "died").exists(), done.stderr[-2000:]
    assert done.returncode != 0
    assert "exitcode  : 7" in done.stderr
    newest = newest_checkpoint(tmp_path / "cp" / "checkpoints")
    assert newest is not None
    _, state = load_checkpoint(newest)
    assert 1 <= state["step"] <= 3


def test_degrees_are_checked() -> None:
    with pytest.raises(ValueError, match=r"cp 2 and dp_shard 3 with 8 processes.*multiples of 6"):
        ParallelConfig(cp=2, dp_shard=3).copies(8)
    with pytest.raises(ValueError, match="cp is 0"):
        ParallelConfig(cp=0)
    made = TrainConfig.from_dict({"output": "x", "run": {"parallel": {"cp": 4}}})
    assert made.run == RunConfig(parallel=ParallelConfig(cp=4))
    with pytest.raises(ValueError, match="parallel"):
        TrainConfig.from_dict({"output": "x", "run": {"parallel": 2}})
