"""The preset: its tile, and the density that it delivers."""

from __future__ import annotations

import logging
from math import prod

import pytest

from freqformer.config import Band
from freqformer.grid import Grid, choose_tile
from freqformer.plan import build_plan
from freqformer.training_free.preset import SLOTS, preset_configs, preset_tile

GRIDS = {
    "wan 480p": Grid(21, 30, 52),
    "wan 720p": Grid(21, 45, 80),
    "hunyuan 720p": Grid(33, 45, 80),
    "hunyuan 1.5 480p": Grid(31, 30, 53),
    "ltx 704 x 1216": Grid(21, 22, 38),
    "cogvideox": Grid(13, 30, 45),
    "a long one": Grid(84, 45, 80),
    "a prime one": Grid(31, 37, 61),
}


NO_SMALL_TILE = {"hunyuan 1.5 480p", "ltx 704 x 1216", "cogvideox", "a prime one"}
"""Grids that no box of 64 tokens cuts with 9% of padding."""


@pytest.mark.parametrize("name", GRIDS)
def test_the_tile_pads_little_and_is_near_a_cube(name: str) -> None:
    grid = GRIDS[name]
    tile = preset_tile(grid)
    if name in NO_SMALL_TILE:
        assert tile == choose_tile(grid)
        return
    tiles = prod(-(-side // step) for side, step in zip(grid.shape, tile, strict=True))
    assert prod(tile) <= SLOTS
    assert tiles * SLOTS / grid.num_tokens - 1 <= 0.09
    assert max(tile) / min(tile) <= 5 / 3


def test_the_tile_is_a_cube_where_cubes_fit() -> None:
    assert preset_tile(Grid(16, 32, 32)) == (4, 4, 4)
    assert preset_tile(Grid(1, 64, 64)) == (1, 8, 8)


@pytest.mark.parametrize("text", [0, 512])
@pytest.mark.parametrize("density", [0.5, 0.2, 0.1, 0.05])
@pytest.mark.parametrize("name", GRIDS)
def test_the_density_is_the_asked_one(name: str, density: float, text: int) -> None:
    grid, layers = GRIDS[name], 30
    if grid.num_tokens < 20_000 and text and density == 0.05:
        density = 0.08  # text itself takes 5.9% there
    configs = preset_configs(grid, text, density, layers)
    assert len(configs) == layers
    assert len(set(configs)) <= 2
    shares = []
    for config in configs:
        assert config is not None
        plan = build_plan(grid, config, num_heads=3, head_dim=64, num_text_tokens=text)
        shares.append(plan.flops([Band.MID] * 3).useful / plan.flops([Band.DENSE] * 3).useful)
    assert sum(shares) / layers == pytest.approx(density, rel=0.02)


def test_layers_share_one_plan_where_that_is_near_enough() -> None:
    assert len(set(preset_configs(GRIDS["wan 720p"], 0, 0.2, 30))) == 1
    short = preset_configs(Grid(8, 40, 40), 0, 0.037, 30)
    counts = sorted({config.mid_tiles or 0 for config in short if config is not None})
    assert counts[1] == counts[0] + 1


def test_what_can_not_be_delivered_is_said(caplog: pytest.LogCaptureFixture) -> None:
    small = Grid(4, 8, 8)
    with pytest.raises(ValueError, match=r"density is 0\.01; on .* 0\.\d+ and more is allowed"):
        preset_configs(small, 0, 0.01, 3)
    with caplog.at_level(logging.WARNING):
        preset_configs(small, 0, 0.45, 1)
    assert "density is 0.45 and 0.5156 is delivered" in caplog.text


def test_all_tiles_are_the_models_own_attention() -> None:
    assert preset_configs(Grid(16, 32, 32), 0, 1.0, 2) == (None, None)
