"""Which stage a step is of, and how much of dense attention it computes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from freqformer.conversion.config import StagesConfig

Stage = Literal["layers", "velocity", "data"]


@dataclass(frozen=True)
class Place:
    """Where a step is."""

    stage: Stage
    step: int
    """Steps of the stage done before it."""
    progress: float
    """Share of the stage that is done before it."""


def place_of(stages: StagesConfig, step: int) -> Place:
    """The stage of a step.

    Args:
        stages: see `StagesConfig`.
        step: steps done before it, below the total.
    """
    lengths: dict[Stage, int] = {
        "layers": stages.layer_steps,
        "velocity": stages.velocity_steps,
        "data": stages.data_steps,
    }
    first = 0
    for stage, length in lengths.items():
        if step < first + length:
            return Place(stage, step - first, (step - first) / length)
        first += length
    raise ValueError(f"step is {step}; whole numbers below {stages.total} are allowed")


def density_at(stages: StagesConfig, density: float, step: int) -> float:
    """The density of a step: it falls by equal factors, from the first below 1 to the asked one.

    At 1 nothing is left out, and there is nothing to learn: gradients are rounding errors, which
    Adam would scale up to whole steps.

    Args:
        stages: see `StagesConfig`.
        density: that is asked for.
        step: steps done before it.
    """
    steps = stages.falling * stages.total
    if step >= steps:
        return density
    level = int(step / steps * stages.levels)
    return density ** ((level + 1) / stages.levels)
