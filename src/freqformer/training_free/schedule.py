"""How the density is spread over a sampler's steps: alike, or more of it at more noise.

What the noisiest steps get wrong grows into the whole video, and what the last ones get wrong stays
a detail; and a short step, such as the first ones of a sampler with a large shift, moves little.
Shape legend: S banded steps, noisiest first.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from functools import lru_cache
from itertools import pairwise
from math import log
from statistics import fmean
from typing import Literal, get_args

DensitySchedule = Literal["falling", "constant"]
DENSITY_SCHEDULES = get_args(DensitySchedule)
KNEE = 1.2
"""A falling density is proportional to sqrt(length of the step) / (KNEE - noise level)."""
LEVELS = 3
"""Densities that the steps of a run have at most."""
HALVINGS = 60
TINY = 1e-9
NEAR = 1.15
"""Groups whose densities differ by a smaller factor are one."""
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
        noise_levels: of the banded steps, and of what comes after the last, falling (S + 1); 1 is
            noise.
        density: share of dense attention's FLOPs, the mean over the steps.
        least: that a step can have; where `density` is less, all steps have `density`.
        most: that a banded step takes, when it sees every tile; where `density` is more, all steps
            have `density`.
        knee: above 1; densities are proportional to sqrt(length of the step) / (knee - noise
            level), where that doesn't rise.
    """
    steps = len(noise_levels) - 1
    most = min(most, 1.0)
    if steps < 1 or density <= least or density >= most:
        return (density,) * steps
    shape = _without_rises(
        [
            max(length, TINY) ** 0.5 / (knee - min(level, 1.0))
            for level, length in zip(noise_levels, _lengths(noise_levels), strict=False)
        ]
    )
    low = 0.0
    high = most / max(min(shape), TINY)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        if sum(_clipped(shape, middle, least, most)) < density * steps:
            low = middle
        else:
            high = middle
    wanted = _clipped(shape, high, least, most)
    groups: list[list[float]] = []
    for first, end in pairwise(_borders(wanted)):
        group = wanted[first:end]
        if groups and fmean(groups[-1]) < NEAR * fmean(group):
            groups[-1] += group
        else:
            groups.append(group)
    return tuple(fmean(group) for group in groups for _ in group)


def _lengths(noise_levels: tuple[float, ...]) -> list[float]:
    """Of every step; steps at the same level, as some samplers have them, share its length.

    The last is as long as the one before at least: samplers stop just above 0, and a density for
    that step alone isn't worth a graph.
    """
    following = dict(pairwise(sorted(set(noise_levels), reverse=True)))
    shares = Counter(noise_levels[:-1])
    lengths = [(level - following.get(level, level)) / shares[level] for level in noise_levels[:-1]]
    return [*lengths[:-1], max(lengths[-2:])]


def _without_rises(values: list[float]) -> list[float]:
    """The falling values nearest to these: neighbours that rise all get their mean."""
    groups: list[list[float]] = []
    for value in values:
        groups.append([value])
        while len(groups) > 1 and fmean(groups[-2]) < fmean(groups[-1]):
            last = groups.pop()
            groups[-1] += last
    return [fmean(group) for group in groups for _ in group]


def step_of(noise_levels: tuple[float, ...], level: float) -> int:
    """The step that a call belongs to, however its noise level was rounded: the nearest one, of two
    the noisier.

    Args:
        noise_levels: as in `falling_densities`.
        level: of the call.
    """
    middles = [(first + second) / 2 for first, second in pairwise(noise_levels[-2::-1])]
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
