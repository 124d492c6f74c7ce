"""How much the final latents feel an error in each step.

An error of a step's velocity moves the state by as much as the step is long, and what follows
makes it grow, most from the noisiest steps on. Growth hardly depends on the error's size, so that a
few steps whose heads are banded in turn, and the final latents that come of it, tell it for all.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy
import torch
from torch import Tensor

from freqformer.calibration.pipelines.energies import Energies

TINY = 1e-30


@dataclass(frozen=True)
class Step:
    """One step of one transformer."""

    part: str
    """The transformer's name in the pipeline."""
    level: float
    """Noise level, 1 is noise."""
    length: float
    """To the next step's level."""


def measured_steps(energies: dict[str, Energies], start_percent: float) -> list[Step]:
    """The steps that were measured, noisiest first, without those that stay dense.

    Args:
        energies: by part.
        start_percent: share of the steps that stays dense.
    """
    levels = sorted({level for sums in energies.values() for level in sums.by_level}, reverse=True)
    following = dict(pairwise([*levels, 0.0]))
    first = math.ceil(start_percent * len(levels) - 1e-9)
    return [
        Step(part, level, level - following[level])
        for level in levels[first:]
        for part, sums in energies.items()
        if level in sums.by_level
    ]


def probed_steps(steps: Sequence[Step], probes: int) -> list[Step]:
    """Of each part so many steps, spread evenly; not its last one, which may have no length."""
    chosen = []
    for part in dict.fromkeys(step.part for step in steps):
        own = [step for step in steps if step.part == part]
        last = max(0, len(own) - 2)
        places = sorted({round(place) for place in numpy.linspace(0, last, probes)})
        chosen += [own[place] for place in places]
    return chosen


def step_weights(
    steps: Sequence[Step], probed: dict[Step, float], local: dict[Step, float]
) -> Tensor:
    """Squared error of the final latents for each unit of squared error in a step's layers: float64
    (steps,).

    Between probes the logarithm of the growth is interpolated over the part's steps; beyond them it
    is that of the nearest one.

    Args:
        steps: that are weighed.
        probed: squared error of the final latents when this step was banded.
        local: the sum of its layers' squared errors.
    """
    weights = torch.zeros(len(steps), dtype=torch.float64)
    for part in dict.fromkeys(step.part for step in steps):
        places = [place for place, step in enumerate(steps) if step.part == part]
        known = [place for place in places if steps[place] in probed]
        growth = []
        for place in known:
            step = steps[place]
            moved = local[step] * max(step.length, TINY) ** 2
            growth.append(math.log(max(probed[step], TINY) / max(moved, TINY)))
        found = numpy.interp(places, known, growth)
        for place, value in zip(places, found, strict=True):
            weights[place] = math.exp(value) * steps[place].length ** 2
    return weights
