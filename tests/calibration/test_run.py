"""`calibrate` under signals, and with models of other kinds."""

from __future__ import annotations

import os
import signal

import pytest
import torch
from tests.calibration.conftest import CANDIDATES

from freqformer._interrupt import Interrupted
from freqformer.calibration import calibrate
from freqformer.calibration.sums import EnergySums

OPTIONS = {"candidates": CANDIDATES, "num_buckets": 2, "progress": False}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_keeps_the_batch_that_is_being_measured(
    dense_model, clips, number, tmp_path, monkeypatch
):
    forward = EnergySums._forward

    def interrupted(self: EnergySums, *given):
        if self.done == 2 and given[-1] == 0:
            os.kill(os.getpid(), number)
        return forward(self, *given)

    monkeypatch.setattr(EnergySums, "_forward", interrupted)
    with pytest.raises(
        Interrupted, match=r"after batch 2, which .*state keeps: the same command goes on"
    ) as raised:
        calibrate(dense_model, clips, 0.25, **OPTIONS, state=tmp_path / "state")
    assert raised.value.signal == number
    monkeypatch.undo()
    passes = []
    handle = dense_model.register_forward_pre_hook(lambda *_: passes.append(1))
    _, calibration = calibrate(dense_model, clips, 0.25, **OPTIONS, state=tmp_path / "state")
    handle.remove()
    assert len(passes) == 2
    assert torch.equal(calibration.errors, calibrate(dense_model, clips, 0.25, **OPTIONS)[1].errors)


def test_without_a_state_a_signal_need_not_wait(dense_model, clips, monkeypatch):
    monkeypatch.setattr(EnergySums, "_forward", lambda *_: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        calibrate(dense_model, clips, 0.25, **OPTIONS)


def test_models_of_other_libraries_are_refused(clips):
    with pytest.raises(
        ValueError, match=r"model is a torch.nn.*Linear; a FreqFormerTransformer3DModel is allowed"
    ):
        calibrate(torch.nn.Linear(2, 2), clips, 0.25, **OPTIONS)
