"""What the heads of one layer do in a call: as a table says, or by the preset.

Shape legend: T timestep buckets, H heads, B samples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Protocol

import torch
from torch import Tensor

from freqformer.attention.record import CallRecord
from freqformer.config import Band, FreqFormerConfig
from freqformer.grid import Grid, tile_layout
from freqformer.integrations.diffusers.steps import SamplerSteps, Schedule, plain_schedule
from freqformer.ops.parameters import KnownBands
from freqformer.routing import timestep_bucket
from freqformer.training_free.preset import band_density, mid_density, preset_configs, preset_range
from freqformer.training_free.schedule import falling_densities, step_of


class LayerBands(Protocol):
    """The bands of one layer's heads."""

    def configs(
        self, grid: Grid, noise_level: Tensor, num_text_tokens: int
    ) -> list[FreqFormerConfig | None]:
        """What every sample's heads do; None where all are DENSE, which is the model's own
        attention.

        Args:
            grid: of the video's tokens.
            noise_level: of every sample, (B,) on the host, in [0, 1].
            num_text_tokens: exact tokens beside the video's.
        """
        ...

    def bands(self, noise_level: Tensor, device: torch.device) -> KnownBands:
        """The bands of these samples' heads, which share a config, on the device."""
        ...

    def records(self, grid: Grid, num_text_tokens: int) -> set[CallRecord]:
        """What the layer does on this grid at any noise level that is banded."""
        ...

    def density(
        self, grid: Grid, num_text_tokens: int, noise_levels: Sequence[float] = ()
    ) -> float:
        """The layer's share of dense attention's FLOPs, the mean over noise levels; without any,
        over all timestep buckets."""
        ...


class TableBands:
    """The bands of one layer of a `RoutingTable`.

    Args:
        bands: of every head by timestep bucket, int64 (T, H).
        configs: of every bucket.
        tiles: as `RoutingTable.tiles`.
    """

    def __init__(
        self, bands: Tensor, configs: Sequence[FreqFormerConfig], tiles: int | None = None
    ) -> None:
        self._bands = bands
        self._tiles = tiles
        self._rows: list[list[int]] = bands.tolist()
        self._configs = [
            None if all(band == Band.DENSE for band in row) else config
            for row, config in zip(self._rows, configs, strict=True)
        ]
        buckets = range(len(self._rows))
        kinds = {(self._configs[one], self._present([one])): one for one in buckets}
        self._different = list(kinds.values())
        """Buckets, one of each that do the same."""

    def configs(
        self, grid: Grid, noise_level: Tensor, num_text_tokens: int
    ) -> list[FreqFormerConfig | None]:
        """As `LayerBands.configs`."""
        return [self._config(grid, bucket) for bucket in self._buckets(noise_level)]

    def _config(self, grid: Grid, bucket: int) -> FreqFormerConfig | None:
        config = self._configs[bucket]
        if config is None or self._tiles is None or config.mid_tiles is None:
            return config
        return kept_share(config, grid, self._tiles)

    def bands(self, noise_level: Tensor, device: torch.device) -> KnownBands:
        """As `LayerBands.bands`."""
        self._bands = self._bands.to(device)
        buckets = self._buckets(noise_level)
        first = buckets[0]
        same = len(set(buckets)) == 1
        rows = self._bands[first].expand(len(buckets), -1) if same else self._bands[buckets]
        return KnownBands(rows, self._present(buckets))

    def _present(self, buckets: Sequence[int]) -> tuple[int, ...]:
        return tuple(sorted({band for bucket in buckets for band in self._rows[bucket]}))

    def records(self, grid: Grid, num_text_tokens: int) -> set[CallRecord]:
        """As `LayerBands.records`."""
        found = set()
        for bucket in self._different:
            config = self._config(grid, bucket)
            if config is not None:
                found.add(CallRecord(grid, config, num_text_tokens, self._present([bucket])))
        return found

    def density(
        self, grid: Grid, num_text_tokens: int, noise_levels: Sequence[float] = ()
    ) -> float:
        """As `LayerBands.density`."""
        every = range(len(self._rows))
        buckets = self._buckets(torch.tensor(noise_levels)) if noise_levels else every
        shares = []
        for bucket in buckets:
            config = self._config(grid, bucket)
            row = tuple(self._rows[bucket])
            shares.append(
                1.0 if config is None else band_density(grid, config, num_text_tokens, row)
            )
        return sum(shares) / len(shares)

    def _buckets(self, noise_level: Tensor) -> list[int]:
        return timestep_bucket(noise_level, len(self._configs)).tolist()


@lru_cache(maxsize=1024)
def kept_share(config: FreqFormerConfig, grid: Grid, tiles: int) -> FreqFormerConfig:
    """The config with its number of MID tiles for another grid, at the same share of all tiles.

    Args:
        config: whose number is one of `tiles`.
        grid: of the call.
        tiles: of the video that it was chosen for.
    """
    assert config.mid_tiles is not None
    own = tile_layout(grid, config.tile).num_tiles
    return replace(config, mid_tiles=max(1, round(config.mid_tiles * own / tiles)))


class StepLevels:
    """The noise levels of a sampler's banded steps, as its schedule is now.

    Args:
        steps: which of the sampler's steps are banded.
        noise_level: from timesteps to noise levels, as the model's family says.
        schedule: from a scheduler to such timesteps, as it says too.
    """

    def __init__(
        self,
        steps: SamplerSteps,
        noise_level: Callable[[Tensor], Tensor],
        schedule: Schedule = plain_schedule,
    ) -> None:
        self._steps = steps
        self._noise_level = noise_level
        self._schedule = schedule
        self._timesteps: Tensor | None = None
        self._levels: tuple[float, ...] = ()

    def __call__(self) -> tuple[float, ...]:
        """Of every banded step, noisiest first, and of what comes after the last: of the next step,
        or of a clean video."""
        timesteps = self._steps.timesteps(schedule_of=self._schedule)
        if timesteps is not self._timesteps:  # every layer asks at every call
            self._timesteps = timesteps
            self._levels = self._read(timesteps)
        return self._levels

    def _read(self, timesteps: Tensor) -> tuple[float, ...]:
        levels = self._noise_level(timesteps)
        banded = self._steps.banded()
        found = sorted(levels[banded].tolist(), reverse=True)
        after = levels[~banded & (levels < min(found, default=0.0))].tolist()
        return (*found, max(after, default=0.0))


class PresetBands:
    """The preset in one layer: all heads MID, their tiles as many as make the density.

    Args:
        density: share of dense attention's FLOPs, the mean over the banded steps.
        place: of the layer among those that have the preset, from 0.
        layers: how many have it.
        heads: of the layer.
        levels: noise levels of the banded steps, over which the density falls; None for the same
            density in all of them.
    """

    def __init__(
        self,
        density: float,
        place: int,
        layers: int,
        heads: int,
        levels: Callable[[], tuple[float, ...]] | None = None,
    ) -> None:
        self._density = density
        self._place = place
        self._layers = layers
        self._levels = levels
        self._bands = torch.full((heads,), Band.MID.value)

    def config(
        self, grid: Grid, num_text_tokens: int, noise_level: float = 0.0
    ) -> FreqFormerConfig | None:
        """What the heads do on a grid; None where that is dense attention.

        Args:
            grid: of the video's tokens.
            num_text_tokens: exact tokens beside them.
            noise_level: in [0, 1]; read where the density falls.
        """
        density = self._density
        if self._levels is not None:
            densities = self._densities(grid, num_text_tokens)
            density = densities[step_of(self._levels(), noise_level)]
        return preset_configs(grid, num_text_tokens, density, self._layers)[self._place]

    def _densities(self, grid: Grid, num_text_tokens: int) -> tuple[float, ...]:
        """Of every banded step; of all of them at once where the density doesn't fall."""
        if self._levels is None:
            return (self._density,)
        least, most = preset_range(grid, num_text_tokens)
        return falling_densities(self._levels(), self._density, least, most)

    def records(self, grid: Grid, num_text_tokens: int) -> set[CallRecord]:
        """As `LayerBands.records`."""
        found = set()
        for density in set(self._densities(grid, num_text_tokens)):
            config = preset_configs(grid, num_text_tokens, density, self._layers)[self._place]
            if config is not None:
                found.add(CallRecord(grid, config, num_text_tokens, (Band.MID.value,)))
        return found

    def configs(
        self, grid: Grid, noise_level: Tensor, num_text_tokens: int
    ) -> list[FreqFormerConfig | None]:
        """As `LayerBands.configs`."""
        return [self.config(grid, num_text_tokens, level) for level in noise_level.tolist()]

    def bands(self, noise_level: Tensor, device: torch.device) -> KnownBands:
        """As `LayerBands.bands`."""
        self._bands = self._bands.to(device)
        return KnownBands(self._bands.expand(len(noise_level), -1), (Band.MID.value,))

    def density(
        self, grid: Grid, num_text_tokens: int, noise_levels: Sequence[float] = ()
    ) -> float:
        """As `LayerBands.density`; without noise levels over all banded steps."""
        if self._levels is not None and not noise_levels:
            noise_levels = self._levels()[:-1]
        shares = []
        for level in noise_levels or (0.0,):
            config = self.config(grid, num_text_tokens, level)
            shares.append(1.0 if config is None else mid_density(grid, config, num_text_tokens))
        return sum(shares) / len(shares)
