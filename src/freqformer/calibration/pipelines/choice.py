"""From what was measured in a pipeline to a table for each of its transformers.

Shape legend: S steps, L layers, H heads, K candidates, T timestep buckets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from freqformer.calibration.choice import Calibration, Choice
from freqformer.calibration.pipelines.steps import Step
from freqformer.config import Band
from freqformer.grid import tile_layout
from freqformer.routing import RoutingTable
from freqformer.routing.origin import Origin

BUCKETS = 200
"""Of the tables: steps of samplers with large shifts lie close together at high noise."""
PROBE_DENSITY = 0.1
"""About what is probed costs."""


@dataclass(frozen=True, eq=False)
class PipelineChoice:
    """Tables, and what is expected of them."""

    tables: dict[str, RoutingTable]
    """By the transformers' names in the pipeline, as `enable_frequency_attention` takes them."""
    choice: Choice
    """What every head became, (S, L, H) by step of the calibration."""
    calibration: PipelineCalibration
    """That it was chosen from; other densities take no run."""

    @property
    def density(self) -> float:
        """Attention FLOPs of the banded steps over those of dense attention."""
        return self.choice.cost

    @property
    def expected_error(self) -> float:
        """Of the final latents, relative (L2), by the sum over steps, layers and heads."""
        return float(self.choice.errors.square().sum().sqrt())


@dataclass(frozen=True, eq=False)
class PipelineCalibration:
    """What `calibrate_pipeline` measured; tables for any density or tolerance follow from it."""

    calibration: Calibration
    """Its errors are parts of the relative error of the final latents, its buckets are `steps`."""
    steps: Sequence[Step]
    """Noisiest first."""
    origins: dict[str, Origin | None]
    """What marks each transformer."""

    def choose(self, density: float) -> PipelineChoice:
        """The tables with the least expected error for at most this share of dense attention's
        FLOPs, the mean over banded steps.

        Raises:
            ValueError: for a density that no choice keeps to.
        """
        return self._finished(self.calibration.choose_within(density))

    def choose_tolerance(self, tolerance: float) -> PipelineChoice:
        """The cheapest tables whose expected relative error of the final latents is at most this.

        Raises:
            ValueError: for a tolerance that is not positive.
        """
        return self._finished(self.calibration.cheapest(tolerance))

    def _finished(self, choice: Choice) -> PipelineChoice:
        tables = {
            part: self._table(choice.table, part)
            for part in dict.fromkeys(step.part for step in self.steps)
        }
        return PipelineChoice(tables, choice, self)

    def _table(self, by_step: RoutingTable, part: str) -> RoutingTable:
        places = [place for place, step in enumerate(self.steps) if step.part == part]
        rows = bucket_rows([self.steps[place].level for place in places])
        found = torch.tensor(places)[rows]
        bands = by_step.bands[found]
        bands[dense_buckets(self.steps)] = Band.DENSE
        tiles = tile_layout(self.calibration.grid, by_step.config.tile).num_tiles
        origin = self.origins.get(part)
        return RoutingTable(bands, by_step.mid_tiles[found], by_step.config, origin, tiles)


def bucket_rows(levels: Sequence[float]) -> Tensor:
    """Which step every bucket of noise levels follows: int64 (T,).

    A step stands for all levels from its own down to the next one's: another number of steps then
    keeps the density.

    Args:
        levels: falling.
    """
    # The lower edge, so that the bucket that a level lies in belongs to it.
    edges = torch.arange(BUCKETS, dtype=torch.float64) / BUCKETS
    at_most = edges[:, None] <= torch.tensor(levels, dtype=torch.float64)
    return (at_most.sum(1) - 1).clamp_min(0)


def dense_buckets(steps: Sequence[Step]) -> Tensor:
    """Buckets of more noise than the noisiest step that is banded: bool (T,)."""
    edges = torch.arange(BUCKETS, dtype=torch.float64) / BUCKETS
    return edges > max(step.level for step in steps)


def probe_column(calibration_costs: Tensor, counts: int) -> int:
    """The MID candidate whose cost is nearest to what is probed.

    Args:
        calibration_costs: of LOW, MID by count, HIGH and DENSE.
        counts: how many of them are MID.
    """
    relative = calibration_costs[1 : 1 + counts] / calibration_costs[-1]
    return 1 + int((relative - PROBE_DENSITY).abs().argmin())
