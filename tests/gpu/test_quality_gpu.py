"""The quality study on a GPU: a run whose steps are one CUDA graph stops and goes on to the same
bits, its blocks compiled or not."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("diffusers")

from benchmarks.quality import state
from benchmarks.quality import trainer as quality_trainer
from benchmarks.quality.runs import How, Run
from benchmarks.quality.sizes import SIZES, Size
from benchmarks.quality.study import execute

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]
SMALL = Size(video=(8, 32, 32), layers=2, batch=2, validation_clips=2)
STEPS = 24


def weights(run: Run, folder: Path) -> dict[str, torch.Tensor]:
    kept = folder / state.KEPT / f"{run.stem}.safetensors"
    return state.read(kept, run.record).tensors


@pytest.mark.parametrize(
    "name",
    ["dense", "soft_routing", "paper", "window_and_linear", "best_tiles_and_linear"],
)
def test_a_captured_run_in_parts_is_a_run_in_one(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`paper` draws random numbers in every step of its graph."""
    monkeypatch.setitem(SIZES, "16k", SMALL)
    monkeypatch.setattr(quality_trainer, "CHECK_STEPS", 4)
    run = Run(name, 0, STEPS, SMALL)
    how = How(torch.device("cuda"), graph=True, folder=tmp_path / "whole")
    whole = execute(run, how, keep=True)
    assert whole is not None
    looks = iter([False, False, True])
    monkeypatch.setattr(How, "over", property(lambda _: next(looks, False)))
    parts = replace(how, folder=tmp_path / "parts")
    assert execute(run, parts) is None
    torch.rand(5, device="cuda")
    last: Any = execute(run, parts, keep=True)
    assert last["calls"] == 2
    assert last["training_curve"] == whole["training_curve"]
    expected = weights(run, tmp_path / "whole")
    found = weights(run, tmp_path / "parts")
    # The backward of torch's attention adds in any order; all else gives the same bits.
    limit = 1e-3 if name == "dense" else 0.0
    for key, x in expected.items():
        assert (found[key] - x).float().norm() <= limit * x.float().norm(), key


@pytest.mark.filterwarnings("ignore:TensorFloat32 tensor cores")
def test_compiled_blocks_train_as_others_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SIZES, "16k", SMALL)
    run = Run("window_and_linear", 0, STEPS, SMALL)
    how = How(torch.device("cuda"), graph=True, folder=tmp_path)
    plain: Any = execute(run, how)
    compiled: Any = execute(run, replace(how, compiled=True))
    for one, other in zip(compiled["training_curve"], plain["training_curve"], strict=True):
        assert one == pytest.approx(other, rel=0.02)


def test_a_run_stops_when_its_time_is_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SIZES, "16k", SMALL)
    run = Run("window", 0, 20_000, SMALL)
    end = time.perf_counter() + 20
    how = How(torch.device("cuda"), graph=True, folder=tmp_path, end=end)
    assert execute(run, how) is None
    assert time.perf_counter() < end + 10
