"""What a step of a run did, and the errors of one that can't go on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from freqformer._files import FileError

TensorGroups = Mapping[str, Mapping[str, Tensor]]
"""A run's tensors by group and name."""


class TrainingError(ValueError):
    """Training can't go on; the message says why and what to change."""


class CheckpointError(FileError):
    """A checkpoint can't be written, read or used; the message names the path and the remedy."""


@dataclass(frozen=True)
class StepReport:
    """What one optimizer step did."""

    step: int
    """Steps done, this one included."""
    loss: float
    """Flow-matching loss, the mean over all clips of the step."""
    routing_loss: float
    """Budget and entropy terms of the routers; 0 where none trains."""
    gradient_norm: float
    """Before clipping."""
    learning_rate: float
    seconds: float
    """Training time so far, earlier sessions of a resumed run included."""
    progress: float
    """Share of the run that is done, from 0 to 1."""
