"""How the density is spread over a sampler's steps: alike, or more of it at more noise.

What a step gets wrong in the noisiest steps grows into the whole video, and what it gets wrong in
the last ones stays a detail. Shape legend: S banded steps, noisiest first.
"""

from __future__ import annotations

from bisect import bisect_right
from functools import lru_cache
from itertools import pairwise
from math import log
from typing import Literal, get_args

DensitySchedule = Literal["falling", "constant"]
DENSITY_SCHEDULES = get_args(DensitySchedule)
KNEE = 1.05
"""A falling density is proportional to 1 / (KNEE - noise level)."""
LEVELS = 3
"""Densities that the steps of a run have at most: each is a number of tiles, and a graph under
torch.compile."""
HALVINGS = 60
MOST_BORDERS = 64
"""Places, evenly spread over the steps, where another density may begin."""


@lru_cache(maxsize=64)
def falling_densities(
    noise_levels: tuple[float, ...],
    density: float,
    least: float = 0.0,
    most: float = 1.0,
    *,
    knee: float = KNEE,
) -> tuple[float, ...]:
    """The density of every step; it never rises, and the mean is the asked one.

    Steps are taken together in up to three groups of neighbours, each of the mean density of what
    its steps would have one by one.

    Args:
        noise_levels: of the banded steps, falling; 1 is noise.
        density: share of dense attention's FLOPs, the mean over the steps.
        least: that a step can have; where `density` is less, all steps have `density`.
        most: that a banded step takes, when it sees every tile; where `density` is more, all steps
            have `density`.
        knee: above 1; densities are proportional to 1 / (knee - noise level).
    """
    most = min(most, 1.0)
    if not noise_levels or density <= least or density >= most:
        return (density,) * len(noise_levels)
    shape = [1 / (knee - min(level, 1.0)) for level in noise_levels]
    low, high = 0.0, most / min(shape)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        if sum(_clipped(shape, middle, least, most)) < density * len(shape):
            low = middle
        else:
            high = middle
    wanted = _clipped(shape, high, least, most)
    densities = []
    for first, end in pairwise(_borders(wanted)):
        mean = sum(wanted[first:end]) / (end - first)
        densities += [mean] * (end - first)
    return tuple(densities)


def step_of(noise_levels: tuple[float, ...], level: float) -> int:
    """The step that a call belongs to, however its noise level was rounded: the nearest one, of two
    the noisier.

    Args:
        noise_levels: of the steps, falling.
        level: of the call.
    """
    middles = [(first + second) / 2 for first, second in pairwise(reversed(noise_levels))]
    return len(middles) - bisect_right(middles, level)


def _clipped(shape: list[float], factor: float, least: float, most: float) -> list[float]:
    return [min(most, max(least, factor * weight)) for weight in shape]


def _borders(densities: list[float]) -> list[int]:
    """Where groups of steps begin, and the end: those that change the densities least.

    A change counts by the square of its logarithm times the density: where error and density are
    in balance, a step's error is proportional to its density.
    """
    steps = len(densities)
    places = sorted({round(steps * part / MOST_BORDERS) for part in range(MOST_BORDERS + 1)})
    weights = _sums(densities)
    logs = _sums([one * log(one) for one in densities])
    squares = _sums([one * log(one) ** 2 for one in densities])

    def change(first: int, end: int) -> float:
        weight = weights[end] - weights[first]
        mean = log(weight / (end - first))
        moved = squares[end] - squares[first] - 2 * mean * (logs[end] - logs[first])
        return moved + mean**2 * weight

    # The best way to every place with one group, then with two, and so on.
    best = {0: (0.0, [0])}
    for _ in range(LEVELS):
        best |= {
            end: min(
                (total + change(first, end), [*way, end])
                for first, (total, way) in best.items()
                if first < end
            )
            for end in places[1:]
        }
    return best[steps][1]


def _sums(values: list[float]) -> list[float]:
    totals = [0.0]
    for value in values:
        totals.append(totals[-1] + value)
    return totals
