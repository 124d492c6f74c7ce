"""What a step of a run did, and the errors of one that can't go on."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from freqformer._files import FileError

TensorGroups = Mapping[str, Mapping[str, Tensor]]
"""A run's tensors by group and name."""


class TrainingError(ValueError):
    """Training can't go on; the message says why and what to change."""


class CheckpointError(FileError):
    """A checkpoint can't be written, read or used; the message names the path and the remedy."""


class StepNumbers:
    """What a step computed, on the device until it is asked for: the host then waits for the step.

    Args:
        on_device: loss, routing loss and gradient norm, (3,) floating point.
    """

    def __init__(self, on_device: Tensor) -> None:
        self.on_device = on_device
        self._values: list[float] | None = None

    @classmethod
    def of(cls, loss: float, routing_loss: float, gradient_norm: float) -> StepNumbers:
        """Numbers that are known."""
        made = cls(torch.tensor([loss, routing_loss, gradient_norm], dtype=torch.float64))
        made.take([loss, routing_loss, gradient_norm])
        return made

    @property
    def are_read(self) -> bool:
        """Whether the host has them, so that asking doesn't wait."""
        return self._values is not None

    @property
    def values(self) -> list[float]:
        """The three of them."""
        if self._values is None:
            self.take(self.on_device.tolist())
        assert self._values is not None
        return self._values

    def take(self, values: list[float]) -> None:
        """Keep what was read of them."""
        self._values = values


@dataclass(frozen=True)
class StepReport:
    """What one optimizer step did. Whoever asks for a loss or the norm early waits for the
    device."""

    step: int
    """Steps done, this one included."""
    numbers: StepNumbers
    learning_rate: float
    seconds: float
    """Training time so far, earlier sessions of a resumed run included."""
    progress: float
    """Share of the run that is done, from 0 to 1."""

    @property
    def loss(self) -> float:
        """Flow-matching loss, the mean over all clips of the step."""
        loss, _, _ = self.numbers.values
        return loss

    @property
    def routing_loss(self) -> float:
        """Budget and entropy terms of the routers; 0 where none trains."""
        _, routing_loss, _ = self.numbers.values
        return routing_loss

    @property
    def gradient_norm(self) -> float:
        """Before clipping."""
        _, _, norm = self.numbers.values
        return norm

    @property
    def is_finite(self) -> bool:
        """Whether the loss and the norm are."""
        return math.isfinite(self.loss) and math.isfinite(self.gradient_norm)
