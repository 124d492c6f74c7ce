"""What a step of a run did, and the error of one that can't go on."""

from __future__ import annotations

from dataclasses import dataclass


class TrainingError(ValueError):
    """Training can't go on; the message says why and what to change."""


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
