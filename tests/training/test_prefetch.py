"""Batches are copied one ahead, an error waits for its batch, and a step waits for the GPU once."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.support.tiny_training import losses, tiny_config

from freqformer.training import prefetch
from freqformer.training.prefetch import GpuBatches
from freqformer.training.samples import TrainingBatch


class Loader:
    """Batches 0, 1, ..., the third of which can't be read."""

    def __init__(self) -> None:
        self.taken: list[int] = []

    def take(self, count: int) -> TrainingBatch:
        number = len(self.taken)
        self.taken.append(number)
        if number == 2:
            raise ValueError("batch 2 can't be read")
        return TrainingBatch(torch.full((count, 3), number), torch.zeros(count, 3))

    def __enter__(self) -> Loader:
        return self

    def __exit__(self, *_: object) -> None:
        self.taken.append(-1)


class Stream:
    """A stand-in for a CUDA stream."""

    waited: Any = None

    def record_event(self) -> str:
        return "event"

    def wait_event(self, event: str) -> None:
        self.waited = event

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        return None


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> tuple[Loader, GpuBatches]:
    """Of a GPU that is none: copies stay where they are."""
    side, own = Stream(), Stream()
    monkeypatch.setattr(prefetch.torch.cuda, "Stream", lambda _device: side)
    monkeypatch.setattr(prefetch.torch.cuda, "stream", lambda stream: stream)
    monkeypatch.setattr(prefetch.torch.cuda, "current_stream", lambda _device: own)
    monkeypatch.setattr(TrainingBatch, "pinned", lambda batch: batch)
    monkeypatch.setattr(TrainingBatch, "to", lambda batch, _device, *, non_blocking: batch)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda _tensor, stream: stream)
    loader: Any = Loader()
    return loader, GpuBatches(loader, torch.device("cuda", 0))


def test_one_is_copied_ahead(batches: tuple[Loader, GpuBatches]) -> None:
    loader, ahead = batches
    with ahead:
        assert int(ahead.take(2).clip[0, 0]) == 0
        assert loader.taken == [0]
        ahead.look_ahead(2)
        ahead.look_ahead(2)
        assert loader.taken == [0, 1]
        assert int(ahead.take(2).clip[0, 0]) == 1
        ahead.look_ahead(2)
        assert loader.taken == [0, 1, 2]
        with pytest.raises(ValueError, match="batch 2 can't be read"):
            ahead.take(2)
    assert loader.taken[-1] == -1


def test_none_is_taken_ahead_for_a_cpu() -> None:
    loader: Any = Loader()
    ahead = GpuBatches(loader, torch.device("cpu"))
    ahead.take(1)
    ahead.look_ahead(1)
    assert loader.taken == [0]


def test_a_step_reads_its_numbers_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What makes the host wait for a GPU, called by the trainer or the objective."""
    read: list[tuple[str, str]] = []

    def watch(name: str) -> None:
        own = getattr(torch.Tensor, name)

        def noted(tensor: torch.Tensor, *given: Any, **named: Any) -> Any:
            caller = Path(sys._getframe(1).f_code.co_filename).name
            if caller in ("trainer.py", "objective.py"):
                read.append((caller, name))
            return own(tensor, *given, **named)

        monkeypatch.setattr(torch.Tensor, name, noted)

    for name in ("item", "tolist", "cpu", "__float__", "__bool__", "__int__"):
        watch(name)
    assert len(losses(tiny_config(tmp_path / "run"))) == 3
    assert read == [("trainer.py", "tolist")] * 3
