"""The next batch on the GPU before it is needed."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor

from freqformer.training.loader import ClipLoader, OnDeviceLoader
from freqformer.training.samples import TrainingBatch


@dataclass(frozen=True)
class _Ahead:
    """A batch on its way to the GPU, or why there is none."""

    batch: TrainingBatch | None = None
    error: Exception | None = None
    done: Any = None
    """The event after which the batch is there."""


def copied_to(x: Tensor, device: torch.device) -> Tensor:
    """A tensor of the CPU on the device; a GPU copies it by itself."""
    return x.to(device) if device.type == "cpu" else x.pin_memory().to(device, non_blocking=True)


class GpuBatches:
    """Batches of a loader on a GPU, each copied while the one before it is computed with.

    Args:
        loader: of batches on the CPU, or on the GPU already; it is entered and left with this.
        device: of the batches. Where it is no GPU none is taken ahead.
    """

    def __init__(self, loader: ClipLoader | OnDeviceLoader, device: torch.device) -> None:
        self._loader, self._device = loader, device
        self._held = ExitStack()
        self._on_gpu = device.type == "cuda"
        self._stream = torch.cuda.Stream(device) if self._on_gpu else None
        self._next: _Ahead | None = None

    def take(self, count: int) -> TrainingBatch:
        """The next batch.

        Raises:
            Exception: what the loader raised for this batch.
        """
        ahead = self._next or self._fetch(count)
        self._next = None
        if ahead.error is not None:
            raise ahead.error
        assert ahead.batch is not None
        if self._on_gpu:
            stream = torch.cuda.current_stream(self._device)
            stream.wait_event(ahead.done)
            for tensor in ahead.batch.tensors():
                tensor.record_stream(stream)
        return ahead.batch

    def look_ahead(self, count: int) -> None:
        """Begin to copy the next batch, once the work of this one is queued. An error waits until
        its batch is asked for."""
        if self._on_gpu and self._next is None:
            self._next = self._fetch(count)

    def _fetch(self, count: int) -> _Ahead:
        try:
            batch = self._loader.take(count)
        except Exception as error:
            return _Ahead(error=error)
        if self._stream is None:
            return _Ahead(batch.to(self._device))
        with torch.cuda.stream(self._stream):
            moved = batch.pinned().to(self._device, non_blocking=True)
            return _Ahead(moved, done=self._stream.record_event())

    def __enter__(self) -> Self:
        self._held.enter_context(self._loader)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._held.__exit__(kind, error, trace)
