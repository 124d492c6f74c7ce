"""What heads of a converted layer see: a window of tiles about their own, and the LOW branch.

The window follows from the grid and the density, so that one adapter serves every length.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from math import log, prod

import torch
from torch import Tensor

from freqformer._validate import check_number, check_whole
from freqformer.attention.record import CallRecord
from freqformer.bands import low_grid
from freqformer.config import Band, FreqFormerConfig
from freqformer.grid import Extents, Grid, TileLayout, tile_layout
from freqformer.ops.parameters import KnownBands
from freqformer.training_free.preset import preset_tile

SLACK = 0.1
"""How far a window may be from the density, relatively, for its shape to decide."""
LEAST_DENSITY = 0.001


@dataclass(frozen=True)
class WindowSettings:
    """How the window of a grid is found.

    Args:
        density: attention FLOPs over those of dense attention, LOW branch included; 1 keeps every
            tile.
        tile: (frames, rows, columns) of a tile, at most 128 tokens; None takes boxes of at most 64,
            nearest a cube, by the grid.
        compression: tokens per low token.

    Raises:
        ValueError: for values out of range, naming the field.
    """

    density: float = 0.15
    tile: Extents | None = None
    compression: float = 32

    def __post_init__(self) -> None:
        check_number("density", self.density, LEAST_DENSITY, 1, "0.15 computes 15% of attention")
        made = FreqFormerConfig(tile=self.tile, compression=self.compression)  # checks both
        object.__setattr__(self, "tile", made.tile)


@lru_cache(maxsize=256)
def window_config(
    grid: Grid, settings: WindowSettings, num_text_tokens: int = 0
) -> FreqFormerConfig:
    """What heads of a converted layer do on a grid: HIGH, with the window whose density is nearest.

    Of several windows within 10% of the density the one nearest a cube in tiles is taken; an axis
    that is seen whole doesn't make one flat.

    Args:
        grid: of the video's tokens.
        settings: see `WindowSettings`.
        num_text_tokens: that every head sees beside the video.

    Raises:
        ValueError: where the own tile and the LOW branch alone cost more than the density.
    """
    check_whole("num_text_tokens", num_text_tokens, 0)
    tile = preset_tile(grid) if settings.tile is None else settings.tile
    base = FreqFormerConfig(tile=tile, compression=settings.compression)
    layout = tile_layout(grid, tile)
    every = Windows(layout, base, num_text_tokens)
    least = every.density((1, 1, 1))
    if settings.density < 1 and least > settings.density * (1 + SLACK):
        raise ValueError(
            f"density is {settings.density:g}; on {grid} with {num_text_tokens} text tokens "
            f"{least:.4f} and more is allowed, what the own tile and the LOW branch cost: raise "
            "density, or give a smaller tile or a larger compression"
        )
    return every.config(every.nearest(settings.density))


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
    """The bands of a converted layer's heads: all HIGH. Its settings may be changed between calls.

    Args:
        settings: see `WindowSettings`.
        heads: of the layer.
    """

    def __init__(self, settings: WindowSettings, heads: int) -> None:
        self.settings = settings
        self._bands = torch.full((heads,), Band.HIGH.value)

    def configs(
        self, grid: Grid, noise_level: Tensor, num_text_tokens: int
    ) -> list[FreqFormerConfig | None]:
        """As `LayerBands.configs`."""
        return [window_config(grid, self.settings, num_text_tokens)] * len(noise_level)

    def bands(self, noise_level: Tensor, device: torch.device) -> KnownBands:
        """As `LayerBands.bands`."""
        self._bands = self._bands.to(device)
        return KnownBands(self._bands.expand(len(noise_level), -1), (Band.HIGH.value,))

    def records(self, grid: Grid, num_text_tokens: int) -> set[CallRecord]:
        """As `LayerBands.records`."""
        config = window_config(grid, self.settings, num_text_tokens)
        return {CallRecord(grid, config, num_text_tokens, (Band.HIGH.value,))}

    def density(
        self, grid: Grid, num_text_tokens: int, noise_levels: Sequence[float] = ()
    ) -> float:
        """As `LayerBands.density`, the same at all noise levels."""
        return window_density(
            grid, window_config(grid, self.settings, num_text_tokens), num_text_tokens
        )


def window_density(grid: Grid, config: FreqFormerConfig, num_text_tokens: int = 0) -> float:
    """FLOPs of a window and the LOW branch over those of dense attention.

    Args:
        grid: of the video's tokens.
        config: of `window_config`.
        num_text_tokens: that every head sees beside the video.
    """
    return Windows(tile_layout(grid, config.tile), config, num_text_tokens).density(config.window)
