"""The comparison of two computations by their losses: what it says of curves, and a tiny run of
it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from freqformer.training.synthetic import SyntheticClips


@pytest.fixture
def loss_run(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    import loss_run

    return loss_run


def test_what_it_says_of_curves(loss_run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss_run, "WARMUP", 1)
    curves = {
        "eager": [[1.0, 0.75, 0.5], [1.0, 0.5, 0.25]],
        "triton": [[1.0, 0.75, 0.625], [1.0, 0.0, 0.25]],
    }
    found = loss_run.compare(curves)
    assert (found["largest_difference"], found["at_step"], found["range_at_that_step"]) == (
        0.5,
        2,
        0.25,
    )
    assert (found["median_difference"], found["median_range"]) == (0.125, 0.25)
    assert found["steps_within_range_after_warmup"] == 0.5


def test_two_computations_train_alike(loss_run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss_run, "DEVICE", "cpu")
    monkeypatch.setattr(
        loss_run,
        "MODEL",
        {**loss_run.MODEL, "num_layers": 1, "num_attention_heads": 3, "attention_head_dim": 8},
    )
    source = SyntheticClips(0, num_frames=2, height=16, width=24)
    clips = torch.stack([source.load(index).clip for index in range(2)])
    eager, reference, other = (
        loss_run.losses(impl, seed, clips, 6)
        for impl, seed in (("eager", 0), ("reference", 0), ("eager", 1))
    )
    assert reference == pytest.approx(eager, rel=1e-2)
    assert len(eager) == 6
    assert eager != other
