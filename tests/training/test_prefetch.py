"""Batches are copied one ahead, and an error waits for its batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch

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
