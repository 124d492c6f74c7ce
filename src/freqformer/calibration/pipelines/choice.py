"""From what was measured in a pipeline to a table for each of its transformers.

Shape legend: S steps, L layers, H heads, K candidates, T timestep buckets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from freqformer.calibration.choice import Calibration
from freqformer.calibration.pipelines.by_step import StepChoice, priced
from freqformer.calibration.pipelines.steps import Step
from freqformer.config import Band
from freqformer.grid import tile_layout
from freqformer.routing import RoutingTable
from freqformer.routing.origin import Origin

BUCKETS = 200
"""Of the tables: steps of samplers with large shifts lie close together at high noise."""
PROBE_DENSITY = 0.1
"""About what is probed costs."""


@dataclass(frozen=True)
class Tried:
    """A table that made the calibration's own videos."""

    name: str
    """What it follows from."""
    density: float
    """Attention FLOPs of the banded steps over those of dense attention."""
    nearness: float
    """Of its final latents to dense attention's in dB: their energy over that of the difference,
    the mean of its logarithm over prompts; -inf where they aren't finite."""


@dataclass(frozen=True, eq=False)
class PipelineChoice:
    """Tables, what is expected of them, and what was tried beside them."""

    tables: dict[str, RoutingTable]
    """By the transformers' names in the pipeline, as `enable_frequency_attention` takes them."""
    choice: StepChoice
    """What every head became, (S, L, H) by step of the calibration."""
    calibration: PipelineCalibration
    """That it was chosen from; other densities take no run where nothing is tried."""
    chosen: Tried | None = None
    """How near these tables are; None where nothing was tried."""
    tried: tuple[Tried, ...] = ()
    """All that were compared, in the order in which they were tried."""

    @property
    def density(self) -> float:
        """Attention FLOPs of the banded steps over those of dense attention: less than asked for
        where a choice for less was nearer."""
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
    by_tokens: Calibration | None = None
    """The same by errors that don't count what tiles miss on the whole; None where unknown."""
    exact: int = 0
    """Tokens beside the video."""

    def choose(self, density: float) -> PipelineChoice:
        """The tables with the least expected error for at most this share of dense attention's
        FLOPs, the mean over banded steps.

        Raises:
            ValueError: for a density that no choice keeps to.
        """
        return self.delivered(self.calibration.choose_within(density).table)

    def choose_tolerance(self, tolerance: float) -> PipelineChoice:
        """The cheapest tables whose expected relative error of the final latents is at most this.

        Raises:
            ValueError: for a tolerance that is not positive.
        """
        return self.delivered(self.calibration.cheapest(tolerance).table)

    def delivered(self, by_step: RoutingTable) -> PipelineChoice:
        """The tables that do what one by step says.

        Args:
            by_step: (S, L, H).
        """
        return PipelineChoice(
            self.tables(by_step), priced(by_step, self.calibration, self.exact), self
        )

    def tables(self, by_step: RoutingTable) -> dict[str, RoutingTable]:
        """Of every transformer, from one by step (S, L, H)."""
        return {
            part: self._table(by_step, part)
            for part in dict.fromkeys(step.part for step in self.steps)
        }

    def _table(self, by_step: RoutingTable, part: str) -> RoutingTable:
        places = [place for place, step in enumerate(self.steps) if step.part == part]
        rows = bucket_rows([self.steps[place].level for place in places])
        found = torch.tensor(places)[rows]
        bands = by_step.bands[found]
        bands[dense_buckets(self.steps)] = Band.DENSE
        tiles = tile_layout(self.calibration.grid, by_step.config.tile).num_tiles
        origin = self.origins.get(part)
        return RoutingTable(bands, by_step.mid_tiles[found], by_step.config, origin, tiles)


def evened(calibration: Calibration, power: float) -> Calibration:
    """The calibration with its steps' errors nearer to one another.

    Args:
        calibration: by step.
        power: to which what every step weighs is raised; 1 changes nothing, 0 makes all steps weigh
            the same.
    """
    steps = calibration.errors.square().mean((1, 2, 3)).sqrt()
    factors = (steps / steps.max()).clamp_min(1e-12) ** (power - 1)
    return replace(calibration, errors=calibration.errors * factors[:, None, None, None])


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
