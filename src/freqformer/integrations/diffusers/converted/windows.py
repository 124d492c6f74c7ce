"""What heads of a converted layer see: a window of tiles about their own, or their best tiles with
low summaries of all else; and the LOW branch.

How many tiles follows from the grid and the density, so that one adapter serves every length.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import product
from math import log, prod
from typing import Literal, get_args

import torch
from torch import Tensor

from freqformer._validate import check_choice, check_number, check_whole
from freqformer.attention.record import CallRecord
from freqformer.bands import low_grid
from freqformer.config import Band, FreqFormerConfig
from freqformer.grid import Extents, Grid, TileLayout, tile_layout
from freqformer.ops.parameters import KnownBands
from freqformer.plan import build_plan
from freqformer.training_free.preset import SUMMARIES, preset_tile

Pattern = Literal["window", "tiles"]
SLACK = 0.1
"""How far a window may be from the density, relatively, for its shape to decide."""
LEAST_DENSITY = 0.001


@dataclass(frozen=True)
class WindowSettings:
    """What heads see, and how much of it.

    Args:
        density: attention FLOPs over those of dense attention, LOW branch included; 1 keeps every
            tile.
        tile: (frames, rows, columns) of a tile, at most 128 tokens; None takes boxes of at most 64,
            nearest a cube, by the grid.
        compression: tokens per low token.
        pattern: `window`: the tiles about a head's own. `tiles`: as the preset of the plug-in, the
            tiles that tile means score highest, and at most 256 low summaries of all tiles.

    Raises:
        ValueError: for values out of range, naming the field.
    """

    density: float = 0.15
    tile: Extents | None = None
    compression: float = 32
    pattern: Pattern = "window"

    def __post_init__(self) -> None:
        check_number("density", self.density, LEAST_DENSITY, 1, "0.15 computes 15% of attention")
        made = FreqFormerConfig(tile=self.tile, compression=self.compression)  # checks both
        object.__setattr__(self, "tile", made.tile)
        check_choice("pattern", self.pattern, get_args(Pattern))

    @property
    def band(self) -> Band:
        """Of every head."""
        return Band.HIGH if self.pattern == "window" else Band.MID


@lru_cache(maxsize=256)
def window_config(
    grid: Grid, settings: WindowSettings, num_text_tokens: int = 0
) -> FreqFormerConfig:
    """What heads of a converted layer do on a grid, as near the density as tiles allow.

    HIGH heads have a window. Of several windows within 10% of the density the one nearest a cube in
    tiles is taken; an axis that is seen whole doesn't make one flat. MID heads have a number of
    tiles, and summaries unless they keep all.

    Args:
        grid: of the video's tokens.
        settings: see `WindowSettings`.
        num_text_tokens: that every head sees beside the video.

    Raises:
        ValueError: where the own tile, summaries and the LOW branch alone cost more than the
            density.
    """
    check_whole("num_text_tokens", num_text_tokens, 0)
    tile = preset_tile(grid) if settings.tile is None else settings.tile
    base = FreqFormerConfig(tile=tile, compression=settings.compression)
    if settings.pattern == "tiles":
        return _best_tiles(grid, base, settings.density, num_text_tokens)
    every = Windows(tile_layout(grid, tile), base, num_text_tokens)
    _check_density(grid, settings.density, every.density((1, 1, 1)), num_text_tokens)
    return every.config(every.nearest(settings.density))


def _check_density(
    grid: Grid, density: float, least: float, num_text_tokens: int, summaries: bool = False
) -> None:
    """Raise ValueError where the least that there is costs more than the density."""
    if density < 1 and least > density * (1 + SLACK):
        cost = "the own tile, low summaries" if summaries else "the own tile"
        other = ', or take pattern "window"' if summaries else ""
        raise ValueError(
            f"density is {density:g}; on {grid} with {num_text_tokens} text tokens {least:.4f} and "
            f"more is allowed, what {cost} and the LOW branch cost: raise density, or give a "
            f"smaller tile or a larger compression{other}"
        )


def _best_tiles(
    grid: Grid, base: FreqFormerConfig, density: float, num_text_tokens: int
) -> FreqFormerConfig:
    """The number of tiles of MID heads whose density is nearest; all of them at a density of 1
    alone, since summaries of what is seen already would keep it from being dense attention."""
    tiles = tile_layout(grid, base.tile).num_tiles
    if density >= 1:
        return replace(base, mid_tiles=tiles)
    fewest = replace(base, mid_tiles=1, summary_tokens=SUMMARIES)
    least = tiles_density(grid, fewest, num_text_tokens)
    _check_density(grid, density, least, num_text_tokens, summaries=True)
    if tiles == 1:
        return fewest
    # Each tile costs the same, so the density is a straight line in their number.
    most = tiles_density(grid, replace(fewest, mid_tiles=tiles), num_text_tokens)
    nearest = 1 + round((density - least) / (most - least) * (tiles - 1))
    return replace(fewest, mid_tiles=min(max(1, nearest), tiles - 1))


class Windows:
    """The windows of a layout, and what they cost.

    Args:
        layout: of the tiles.
        base: what all of them share.
        num_text_tokens: that every head sees beside the video.
    """

    def __init__(self, layout: TileLayout, base: FreqFormerConfig, num_text_tokens: int) -> None:
        self._layout, self._base, self._text = layout, base, num_text_tokens
        # Pairs of a query and a key in its window factor into those of each axis.
        self._pairs = [_pairs_by_width(layout.extents(axis)) for axis in range(3)]
        low = prod(low_grid(layout, base))
        self._low_pairs = low * (low + num_text_tokens)

    def config(self, window: Extents) -> FreqFormerConfig:
        """The record of a window."""
        return FreqFormerConfig(
            tile=self._base.tile, compression=self._base.compression, window=window
        )

    def density(self, window: Extents) -> float:
        """FLOPs of a window and the LOW branch over those of dense attention."""
        video, text = self._layout.grid.num_tokens, self._text
        seen = prod(pairs[width - 1] for pairs, width in zip(self._pairs, window, strict=True))
        exact = video * text + text * (video + text)
        return (seen + exact + self._low_pairs) / (video + text) ** 2

    def nearest(self, density: float) -> Extents:
        """The window of a density, by the rule of `window_config`."""
        if density >= 1:
            return self._layout.tiles
        widths = (range(1, count + 1) for count in self._layout.tiles)
        return min(
            ((time, height, width) for time, height, width in product(*widths)),
            key=lambda window: self._rank(window, density),
        )

    def _rank(self, window: Extents, density: float) -> tuple[float, float, float]:
        off = abs(log(self.density(window) / density))
        if off > log(1 + SLACK):
            return (off, 0.0, 0.0)
        cut = [
            width for width, count in zip(window, self._layout.tiles, strict=True) if width < count
        ]
        return (log(1 + SLACK), max(window) / min(cut, default=max(window)), off)


def _pairs_by_width(extents: list[int]) -> list[int]:
    """Pairs of a query and a key along one axis, for windows of 1 tile and up."""
    count = len(extents)
    found = []
    for width in range(1, count + 1):
        total = 0
        for place, extent in enumerate(extents):
            start = min(max(0, place - (width - 1) // 2), count - width)
            total += extent * sum(extents[start : start + width])
        found.append(total)
    return found


class WindowBands:
    """The bands of a converted layer's heads, all the same. Its settings may be changed between
    calls, but for the pattern.

    Args:
        settings: see `WindowSettings`.
        heads: of the layer.
    """

    def __init__(self, settings: WindowSettings, heads: int) -> None:
        self.settings = settings
        self._band = settings.band.value
        self._bands = torch.full((heads,), self._band)

    def configs(
        self, grid: Grid, noise_level: Tensor, num_text_tokens: int
    ) -> list[FreqFormerConfig | None]:
        """As `LayerBands.configs`."""
        return [window_config(grid, self.settings, num_text_tokens)] * len(noise_level)

    def bands(self, noise_level: Tensor, device: torch.device) -> KnownBands:
        """As `LayerBands.bands`."""
        self._bands = self._bands.to(device)
        return KnownBands(self._bands.expand(len(noise_level), -1), (self._band,))

    def records(self, grid: Grid, num_text_tokens: int) -> set[CallRecord]:
        """As `LayerBands.records`."""
        config = window_config(grid, self.settings, num_text_tokens)
        return {CallRecord(grid, config, num_text_tokens, (self._band,))}

    def density(
        self, grid: Grid, num_text_tokens: int, noise_levels: Sequence[float] = ()
    ) -> float:
        """As `LayerBands.density`, the same at all noise levels."""
        return window_density(grid, self.settings, num_text_tokens)


def window_density(grid: Grid, settings: WindowSettings, num_text_tokens: int = 0) -> float:
    """FLOPs of what `window_config` gives, LOW branch included, over those of dense attention.

    Args:
        grid: of the video's tokens.
        settings: see `WindowSettings`.
        num_text_tokens: that every head sees beside the video.
    """
    config = window_config(grid, settings, num_text_tokens)
    if settings.pattern == "tiles":
        return tiles_density(grid, config, num_text_tokens)
    return Windows(tile_layout(grid, config.tile), config, num_text_tokens).density(config.window)


def tiles_density(grid: Grid, config: FreqFormerConfig, num_text_tokens: int = 0) -> float:
    """FLOPs of MID heads and the LOW branch over those of dense attention.

    Args:
        grid: of the video's tokens.
        config: with `mid_tiles`, and at most low summaries.
        num_text_tokens: that every head sees beside the video.
    """
    # All FLOPs are proportional to the head_dim, whatever it is.
    plan = build_plan(grid, config, num_heads=1, head_dim=1, num_text_tokens=num_text_tokens)
    low, mid, _, dense = plan.band_costs()
    of_text = 4 * num_text_tokens * (grid.num_tokens + num_text_tokens)
    return (mid + low - of_text) / dense  # text asks once
