"""What a calibration of a pipeline is asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from freqformer._validate import check_number, check_whole
from freqformer.calibration.candidates import Candidates
from freqformer.config import FreqFormerConfig
from freqformer.grid import Extents, Grid, tile_layout
from freqformer.training_free.preset import SUMMARIES, mid_density, preset_tile

Prompts = Sequence[str | Mapping[str, Any]]
"""Texts, or arguments of a call of the pipeline each, such as a prompt and an image."""


@dataclass(frozen=True)
class CalibrationSettings:
    """How much is run and measured.

    Args:
        steps: of the sampler in every run.
        start_percent: share of the steps, from the first, that stay dense and out of the density.
        probes: steps of every transformer, spread over its own, whose errors are followed to the
            final latents.
        densities: about which MID heads are measured, shares of dense attention's FLOPs; one tile
            is measured too.
        windows: of HIGH heads, in tiles; one.
        seed: of the first prompt's noise; later ones count up.
        trials: tables that make every prompt's video again, of which the nearest to dense
            attention's is taken; 0 takes the one with the least expected error untried. Each costs
            prompts · steps calls of the transformers (twice that where guidance is a call of its
            own) at the asked density.
    """

    steps: int = 8
    start_percent: float = 0.0
    probes: int = 4
    densities: tuple[float, ...] = (0.02, 0.05, 0.1, 0.2, 0.35, 0.6)
    windows: tuple[Extents, ...] = ((3, 3, 3),)
    seed: int = 0
    trials: int = 16

    def __post_init__(self) -> None:
        check_whole("steps", self.steps, 2)
        check_whole("probes", self.probes, 1)
        check_whole("seed", self.seed, 0)
        check_whole("trials", self.trials, 0)
        check_number("start_percent", self.start_percent, 0, 0.99)
        if not self.densities:
            raise ValueError("densities is empty; one share of dense attention at least is allowed")
        for density in self.densities:
            check_number("densities", density, 0.001, 1)

    def candidates(self, grid: Grid, exact: int) -> Candidates:
        """What is measured on a grid: the preset's pattern with several numbers of tiles, a window,
        and LOW.

        Args:
            grid: of the video's tokens.
            exact: tokens beside them.
        """
        base = FreqFormerConfig(tile=preset_tile(grid), mid_tiles=1, summary_tokens=SUMMARIES)
        tiles = tile_layout(grid, base.tile).num_tiles
        least = mid_density(grid, base, exact)
        # Each tile costs the same, so a density is a straight line in their number.
        by_density = (
            1 + round((density - least) / (1 - least) * (tiles - 1)) for density in self.densities
        )
        counts = {1, *(count for count in by_density if 1 <= count < tiles)}
        return Candidates(base, tuple(sorted(counts)), self.windows)
