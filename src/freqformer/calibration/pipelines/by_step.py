"""What every head does in every step of a calibration, what that costs, and what it is expected to
change.

Shape legend: S steps, L layers, H heads.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

import numpy
import torch
from torch import Tensor

from freqformer.calibration.choice import Calibration
from freqformer.config import Band
from freqformer.grid import tile_layout
from freqformer.routing import RoutingTable
from freqformer.training_free.preset import mid_density


@dataclass(frozen=True, eq=False)
class StepChoice:
    """A table by step, and what is expected of it."""

    table: RoutingTable
    """(S, L, H)."""
    errors: Tensor
    """Part of the relative error of the final latents, float64 (S, L, H)."""
    costs: Tensor
    """Attention FLOPs of every head relative to dense, float64 (S, L, H)."""

    @property
    def cost(self) -> float:
        """Attention FLOPs relative to dense, every step weighing the same."""
        return float(self.costs.mean())

    @property
    def names(self) -> list[list[list[str]]]:
        """What every head became, like `low`, `mid-8`, `high-3x3x3` and `dense`, by step and
        layer."""
        window = "x".join(map(str, self.table.config.window))
        spelled = {Band.LOW: "low", Band.HIGH: f"high-{window}", Band.DENSE: "dense"}
        return [
            [
                [
                    spelled.get(Band(band), f"mid-{count}")
                    for band, count in zip(bands, counts, strict=True)
                ]
                for bands, counts in zip(*layers, strict=True)
            ]
            for layers in zip(self.table.bands.tolist(), self.table.mid_tiles.tolist(), strict=True)
        ]


def priced(table: RoutingTable, calibration: Calibration, exact: int) -> StepChoice:
    """A table by step with its costs and expected errors.

    Args:
        table: (S, L, H), of the calibration's config but for numbers of tiles and the window, which
            is a measured one. Between measured numbers of tiles errors are interpolated, up to all
            tiles, which miss nothing.
        calibration: whose errors are of the same steps.
        exact: tokens beside the video.
    """
    candidates, grid = calibration.candidates, calibration.grid
    window = 1 + len(candidates.mid_tiles) + candidates.windows.index(table.config.window)
    dense = calibration.costs[-1]
    errors = torch.zeros_like(calibration.errors[..., 0])
    costs = torch.ones_like(errors)
    for band, column in ((Band.LOW, 0), (Band.HIGH, window)):
        here = table.bands == band
        errors[here] = calibration.errors[..., column][here]
        costs[here] = calibration.costs[column] / dense
    middle = table.bands == Band.MID
    for count in table.mid_tiles[middle].unique().tolist():
        here = middle & (table.mid_tiles == count)
        errors[here] = _mid_errors(calibration, count)[here]
        costs[here] = mid_density(grid, replace(candidates.config, mid_tiles=count), exact)
    return StepChoice(table, errors, costs)


def _mid_errors(calibration: Calibration, count: int) -> Tensor:
    """Of MID heads with so many tiles, (S, L, H)."""
    candidates = calibration.candidates
    every = tile_layout(calibration.grid, candidates.config.tile).num_tiles
    known = [*candidates.mid_tiles, every]
    measured = calibration.errors[..., 1 : len(known)]
    measured = torch.cat([measured, torch.zeros_like(measured[..., :1])], -1)
    place = float(numpy.interp(count, known, range(len(known))))
    share = place - int(place)
    after = min(int(place) + 1, len(known) - 1)
    return (1 - share) * measured[..., int(place)] + share * measured[..., after]


def cheapest_density(calibration: Calibration) -> float:
    """Of all heads in the cheapest candidate."""
    return float(calibration.costs.min() / calibration.costs[-1])


def digest(table: RoutingTable) -> str:
    """The same for tables that compute the same: SHA-256, shortened."""
    counts = table.mid_tiles.where(table.bands == Band.MID, 0)
    window = table.config.window if bool((table.bands == Band.HIGH).any()) else None
    found = hashlib.sha256(repr(window).encode())
    for tensor in (table.bands, counts):
        found.update(tensor.contiguous().numpy().tobytes())
    return found.hexdigest()[:24]
