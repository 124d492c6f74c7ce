"""What converted layers see: windows by density, nearest a cube, or their best tiles; and what it
costs as plans count it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from freqformer.config import Band
from freqformer.grid import Grid
from freqformer.integrations.diffusers.converted.windows import (
    WindowBands,
    WindowSettings,
    tiles_density,
    window_config,
    window_density,
)
from freqformer.plan import build_plan
from freqformer.training_free.preset import mid_density, preset_configs

GRIDS = [Grid(5, 7, 9), Grid(4, 16, 12), Grid(1, 13, 20)]


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("density", [1.0, 0.6, 0.35])
def test_density_is_that_of_the_plan(grid: Grid, density: float) -> None:
    settings = WindowSettings(density, (1, 2, 2), 128)
    plan = build_plan(grid, window_config(grid, settings), num_heads=1, head_dim=1)
    low, _, high, dense = plan.band_costs()
    assert window_density(grid, settings) == pytest.approx((low + high) / dense)
    assert window_density(grid, settings) == pytest.approx(density, rel=0.15)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("density", [1.0, 0.6, 0.35])
def test_density_of_tiles_is_that_of_the_plan(grid: Grid, density: float) -> None:
    settings = WindowSettings(density, (1, 2, 4), 128, "tiles")
    config = window_config(grid, settings)
    plan = build_plan(grid, config, num_heads=1, head_dim=1)
    low, mid, _, dense = plan.band_costs()
    assert window_density(grid, settings) == pytest.approx((low + mid) / dense)
    assert window_density(grid, settings) == pytest.approx(density, rel=0.05)
    assert not plan.learned_summaries
    assert WindowBands(settings, 2).density(grid, 0) == window_density(grid, settings)


def test_density_of_tiles_is_what_every_query_sees() -> None:
    """Tiles of 16 tokens, a summary of each, low tokens that ask one another, and text."""
    grid, text = Grid(4, 16, 12), 50
    settings = WindowSettings(0.6, (1, 4, 4), 128, "tiles")
    config = window_config(grid, settings, text)
    assert config.mid_tiles is not None
    video, tiles, low = grid.num_tokens, 48, 48
    seen = video * (16 * config.mid_tiles + tiles + text) + low * (low + text)
    pairs = seen + text * (video + text)
    assert window_density(grid, settings, text) == pytest.approx(pairs / (video + text) ** 2)
    more = replace(config, mid_tiles=config.mid_tiles + 1)
    step = tiles_density(grid, more, text) - tiles_density(grid, config, text)
    assert abs(window_density(grid, settings, text) - 0.6) <= step / 2


def test_text_is_paid_once() -> None:
    grid, text = Grid(4, 16, 12), 50
    settings = WindowSettings(0.5, (1, 4, 4), 128)
    config = window_config(grid, settings, text)
    plan = build_plan(grid, config, num_heads=1, head_dim=1, num_text_tokens=text)
    low, _, high, dense = plan.band_costs()
    of_text = 4 * text * (grid.num_tokens + text)
    assert window_density(grid, settings, text) == pytest.approx((low + high - of_text) / dense)


def test_density_1_sees_every_tile() -> None:
    config = window_config(Grid(21, 45, 80), WindowSettings(1.0))
    assert config.window == (7, 9, 20)
    assert config.tile == (3, 5, 4)
    best = window_config(Grid(21, 45, 80), WindowSettings(1.0, pattern="tiles"))
    assert best.mid_tiles == 7 * 9 * 20
    assert best.summary_tokens == 0


def test_tiles_are_those_of_the_preset() -> None:
    """Of which they are the attention: its tile, its summaries, and as many tiles at its FLOPs."""
    grid = Grid(16, 32, 32)
    for density in (0.1, 0.2, 0.5):
        config = window_config(grid, WindowSettings(density, pattern="tiles"))
        (preset,) = preset_configs(grid, 0, mid_density(grid, config, 0), 1)
        assert config == preset


def test_below_a_density_of_1_some_tile_is_left_out() -> None:
    """Beside summaries a head with every tile would see all of it twice."""
    grid = Grid(2, 6, 8)
    config = window_config(grid, WindowSettings(0.999, (2, 3, 4), 128, "tiles"))
    assert config.mid_tiles == 3
    assert config.summary_tokens == 256


def test_windows_are_near_cubes_where_several_fit() -> None:
    assert window_config(Grid(16, 32, 32), WindowSettings(0.15)).window == (3, 3, 4)
    assert window_config(Grid(30, 48, 80), WindowSettings(0.1)).window == (6, 5, 6)


def test_what_no_window_can_meet_is_refused() -> None:
    with pytest.raises(ValueError, match=r"density is 0\.01; on Grid.* 0\.\d+ and more is allowed"):
        window_config(Grid(2, 6, 8), WindowSettings(0.01, (1, 2, 2), 128))
    with pytest.raises(ValueError, match=r"low summaries and .*, or take pattern .window."):
        window_config(Grid(2, 6, 8), WindowSettings(0.2, (1, 2, 2), 128, "tiles"))
    for values, named in (
        ({"density": 0.0}, "density is 0"),
        ({"density": float("nan")}, "density is nan"),
        ({"tile": (8, 8, 8)}, "tile is"),
        ({"compression": 0}, "compression is 0"),
        ({"pattern": "best"}, "pattern is 'best'"),
    ):
        with pytest.raises(ValueError, match=named):
            WindowSettings(**values)  # type: ignore[arg-type]


def test_bands_follow_their_settings() -> None:
    grid, bands = Grid(2, 6, 8), WindowBands(WindowSettings(1.0, (1, 2, 2), 128), 3)
    level = torch.tensor([0.2, 0.9])
    (every, same) = bands.configs(grid, level, 0)
    assert every == same
    assert every is not None
    assert every.window == (2, 3, 4)
    bands.settings = WindowSettings(0.4, (1, 2, 2), 128)
    (less, _) = bands.configs(grid, level, 0)
    assert less is not None
    assert less.window != every.window
    assert bands.density(grid, 0) == pytest.approx(0.4, rel=0.15)
    known = bands.bands(level, torch.device("cpu"))
    assert known.bands.tolist() == [[Band.HIGH] * 3] * 2
    (record,) = bands.records(grid, 0)
    assert (record.config, record.present) == (less, (Band.HIGH,))


def test_heads_with_tiles_are_mid() -> None:
    grid, bands = Grid(2, 6, 8), WindowBands(WindowSettings(0.6, (1, 2, 2), 128, "tiles"), 3)
    known = bands.bands(torch.tensor([0.2, 0.9]), torch.device("cpu"))
    assert known.bands.tolist() == [[Band.MID] * 3] * 2
    (record,) = bands.records(grid, 0)
    assert (record.config, record.present) == (window_config(grid, bands.settings), (Band.MID,))
