"""The preset: in every head the tiles that tile means score highest, and low summaries of all else.

Up to a density of 30% it keeps videos nearer to dense attention's than the published patterns of
docs/calibration.md. The tile and the number of tiles follow from a call's grid and the density.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from functools import lru_cache
from itertools import product
from math import ceil, floor, prod

from freqformer.config import Band, FreqFormerConfig
from freqformer.grid import Extents, Grid, choose_tile, tile_layout
from freqformer.plan import build_plan

logger = logging.getLogger(__name__)

SLOTS = 64
"""Tokens of a tile at most: cubes of (4, 4, 4) select more finely than tiles of 128 at equal
FLOPs."""
MOST_PADDING = 0.09
MOST_ASPECT = 4
SUMMARIES = 256
TOLERANCE = 0.02
"""How far, relatively, the delivered density may be from the asked one."""


def preset_tile(grid: Grid) -> Extents:
    """The tile that a grid is cut into: of boxes of at most 64 tokens that pad by at most 9% the
    one nearest a cube, where there is one of aspect 4 at most; else what `choose_tile` takes. A
    single frame is cut into squares.

    Padding is tiles · 64 / N - 1, of N tokens.

    Args:
        grid: of the video's tokens.
    """
    frames, height, width = (range(1, min(side, SLOTS) + 1) for side in grid.shape)
    ranked = []
    for box in product(frames, height, width):
        sides = [side for side, extent in zip(box, grid.shape, strict=True) if extent > 1] or [1]
        aspect = max(sides) / min(sides)
        if prod(box) > SLOTS or aspect > MOST_ASPECT:
            continue
        tiles = prod(-(-extent // side) for extent, side in zip(grid.shape, box, strict=True))
        padding = tiles * SLOTS / grid.num_tokens - 1
        if padding <= MOST_PADDING:
            ranked.append((aspect, padding, box))
    return min(ranked)[2] if ranked else choose_tile(grid)


@lru_cache(maxsize=256)
def preset_configs(
    grid: Grid, num_text_tokens: int, density: float, layers: int
) -> tuple[FreqFormerConfig | None, ...]:
    """What MID heads of every layer do; None where that is dense attention.

    All layers keep the same number of tiles, unless that is farther than 2% from the density, as
    on short videos: then some keep one more than others.

    Args:
        grid: of the video's tokens.
        num_text_tokens: that every head sees beside them.
        density: share of dense attention's FLOPs.
        layers: how many.

    Raises:
        ValueError: where one tile and the summaries cost more than the density.
    """
    base = _base(grid)
    tiles = tile_layout(grid, base.tile).num_tiles
    least, most = preset_range(grid, num_text_tokens)
    if density >= min(1.0, most):
        return (None,) * layers
    if least > density * (1 + TOLERANCE):
        raise ValueError(
            f"density is {density:g}; on {grid} with {num_text_tokens} text tokens {least:.4f} and "
            "more is allowed, what one tile and the summaries cost: raise density, or min_tokens "
            f"above {grid.num_tokens}"
        )
    # Each tile costs the same, so the density is a straight line in their number.
    wanted = 1 + (density - least) / (most - least) * (tiles - 1)
    nearest = max(1, round(wanted))
    off = abs(nearest - wanted) * (most - least) / (tiles - 1)
    if off <= TOLERANCE * density:
        return (_keeping(base, nearest, tiles),) * layers
    fewer, more = max(1, floor(wanted)), max(1, ceil(wanted))
    longer = round((wanted - floor(wanted)) * layers)
    chosen = [
        more if (place + 1) * longer // layers > place * longer // layers else fewer
        for place in range(layers)
    ]
    delivered = least + (sum(chosen) / layers - 1) * (most - least) / (tiles - 1)
    if abs(delivered - density) > TOLERANCE * density:
        logger.warning(
            "density is %g and %.4f is delivered: %s has %d tiles only",
            density,
            delivered,
            grid,
            tiles,
        )
    return tuple(_keeping(base, count, tiles) for count in chosen)


def _keeping(base: FreqFormerConfig, count: int, tiles: int) -> FreqFormerConfig | None:
    """The preset with so many of all tiles; with all of them dense attention, which needs no
    summaries."""
    return None if count >= tiles else replace(base, mid_tiles=count)


def _base(grid: Grid) -> FreqFormerConfig:
    """The preset with one tile."""
    return FreqFormerConfig(tile=preset_tile(grid), mid_tiles=1, summary_tokens=SUMMARIES)


@lru_cache(maxsize=64)
def preset_range(grid: Grid, num_text_tokens: int) -> tuple[float, float]:
    """The shares of dense attention's FLOPs that one tile of the preset takes, and all of them:
    with their summaries the last is above 1 on some grids.

    Args:
        grid: of the video's tokens.
        num_text_tokens: that every head sees beside them.
    """
    base = _base(grid)
    tiles = tile_layout(grid, base.tile).num_tiles
    every = replace(base, mid_tiles=tiles)
    return mid_density(grid, base, num_text_tokens), mid_density(grid, every, num_text_tokens)


def mid_density(grid: Grid, config: FreqFormerConfig, num_text_tokens: int) -> float:
    """The share of dense attention's FLOPs that MID heads take.

    Args:
        grid, config: of the call.
        num_text_tokens: that every head sees beside the video.
    """
    return band_density(grid, config, num_text_tokens, (Band.MID,))


def band_density(
    grid: Grid, config: FreqFormerConfig, num_text_tokens: int, bands: tuple[int, ...]
) -> float:
    """The share of dense attention's FLOPs that heads of these bands take by the plan.

    Args:
        grid, config: of the call.
        num_text_tokens: that every head sees beside the video.
        bands: of every head.
    """
    # Both FLOPs are proportional to the head_dim, whatever it is.
    plan = build_plan(
        grid, config, num_heads=len(bands), head_dim=1, num_text_tokens=num_text_tokens
    )
    return plan.density(bands)
