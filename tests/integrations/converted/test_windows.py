"""Windows of converted layers: by density, nearest a cube, and their cost as plans count it."""

from __future__ import annotations

import pytest
import torch

from freqformer.config import Band
from freqformer.grid import Grid
from freqformer.integrations.diffusers.converted.windows import (
    WindowBands,
    WindowSettings,
    window_config,
    window_density,
)
from freqformer.plan import build_plan

GRIDS = [Grid(5, 7, 9), Grid(4, 16, 12), Grid(1, 13, 20)]


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("density", [1.0, 0.6, 0.35])
def test_density_is_that_of_the_plan(grid: Grid, density: float) -> None:
    config = window_config(grid, WindowSettings(density, (1, 2, 2), 128))
    low, _, high, dense = build_plan(grid, config, num_heads=1, head_dim=1).band_costs()
    assert window_density(grid, config) == pytest.approx((low + high) / dense)
    assert window_density(grid, config) == pytest.approx(density, rel=0.15)


def test_text_is_paid_once() -> None:
    grid, text = Grid(4, 16, 12), 50
    settings = WindowSettings(0.5, (1, 4, 4), 128)
    config = window_config(grid, settings, text)
    plan = build_plan(grid, config, num_heads=1, head_dim=1, num_text_tokens=text)
    low, _, high, dense = plan.band_costs()
    of_text = 4 * text * (grid.num_tokens + text)
    assert window_density(grid, config, text) == pytest.approx((low + high - of_text) / dense)


def test_density_1_sees_every_tile() -> None:
    config = window_config(Grid(21, 45, 80), WindowSettings(1.0))
    assert config.window == (7, 9, 20)
    assert config.tile == (3, 5, 4)


def test_windows_are_near_cubes_where_several_fit() -> None:
    assert window_config(Grid(16, 32, 32), WindowSettings(0.15)).window == (3, 3, 4)
    assert window_config(Grid(30, 48, 80), WindowSettings(0.1)).window == (6, 5, 6)


def test_what_no_window_can_meet_is_refused() -> None:
    with pytest.raises(ValueError, match=r"density is 0\.01; on Grid.* 0\.\d+ and more is allowed"):
        window_config(Grid(2, 6, 8), WindowSettings(0.01, (1, 2, 2), 128))
    for values, named in (
        ({"density": 0.0}, "density is 0"),
        ({"density": float("nan")}, "density is nan"),
        ({"tile": (8, 8, 8)}, "tile is"),
        ({"compression": 0}, "compression is 0"),
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
