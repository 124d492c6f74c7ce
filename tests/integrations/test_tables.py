"""Tables of a pipeline as files, and at other sizes than they were made for."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from freqformer.config import Band, FreqFormerConfig
from freqformer.grid import Grid, tile_layout
from freqformer.integrations.diffusers.layer_bands import TableBands
from freqformer.integrations.diffusers.tables import load_tables, save_tables
from freqformer.routing import RoutingTable

CONFIG = FreqFormerConfig(tile=(4, 4, 4), summary_tokens=16)


def table(count: int, tiles: int | None = None) -> RoutingTable:
    bands = torch.full((2, 3, 2), Band.MID.value)
    bands[1] = Band.DENSE
    return RoutingTable(bands, torch.full_like(bands, count), CONFIG, tiles=tiles)


def test_a_table_for_each_transformer_comes_back(tmp_path: Path) -> None:
    save_tables({"transformer": table(3, 64), "transformer_2": table(5, 64)}, tmp_path)
    found = load_tables(tmp_path)
    assert isinstance(found, dict)
    assert {part: int(one.mid_tiles.max()) for part, one in found.items()} == {
        "transformer": 3,
        "transformer_2": 5,
    }
    assert found["transformer"].tiles == 64


def test_one_table_comes_back_too(tmp_path: Path) -> None:
    table(3).save(tmp_path)
    found = load_tables(tmp_path)
    assert isinstance(found, RoutingTable)
    assert found.tiles is None
    with pytest.raises(ValueError, match="routing_table"):
        load_tables(tmp_path / "nothing")


@pytest.mark.parametrize("wrong", [0, True])
def test_tiles_are_whole(wrong: object) -> None:
    with pytest.raises(ValueError, match="tiles is"):
        table(3, wrong)  # type: ignore[arg-type]


def test_the_share_of_tiles_is_kept_at_another_size() -> None:
    made_for, other = Grid(8, 16, 16), Grid(16, 32, 16)
    tiles = tile_layout(made_for, CONFIG.tile).num_tiles
    bands = torch.tensor([[Band.MID.value] * 2])
    layer = TableBands(bands, [CONFIG], tiles)
    noise = torch.tensor([0.5])
    (same,) = layer.configs(made_for, noise, 0)
    (scaled,) = layer.configs(other, noise, 0)
    assert same == CONFIG
    assert scaled is not None
    assert CONFIG.mid_tiles is not None
    assert scaled.mid_tiles == 4 * CONFIG.mid_tiles
    assert layer.density(other, 0) == pytest.approx(layer.density(made_for, 0), rel=0.1)
    (kept,) = TableBands(bands, [CONFIG]).configs(other, noise, 0)
    assert kept == CONFIG


def test_density_is_of_the_noise_levels_that_were_met() -> None:
    grid = Grid(8, 16, 16)
    bands = torch.tensor([[Band.MID.value] * 2, [Band.DENSE.value] * 2])
    layer = TableBands(bands, [CONFIG, CONFIG])
    banded = layer.density(grid, 0, [0.1])
    assert banded < 0.8
    assert layer.density(grid, 0, [0.9]) == 1
    assert layer.density(grid, 0, [0.1, 0.2, 0.3, 0.9]) == pytest.approx((3 * banded + 1) / 4)
    assert layer.density(grid, 0) == pytest.approx((banded + 1) / 2)


def test_every_sample_has_the_bands_of_its_own_bucket() -> None:
    low, mid, high = Band.LOW.value, Band.MID.value, Band.HIGH.value
    layer = TableBands(torch.tensor([[low, mid], [high, mid]]), [CONFIG, CONFIG])
    device = torch.device("cpu")
    found = layer.bands(torch.tensor([0.9, 0.1]), device)
    assert found.bands.tolist() == [[high, mid], [low, mid]]
    assert found.present == (low, mid, high)
    same = layer.bands(torch.tensor([0.9, 0.8]), device)
    assert same.bands.tolist() == [[high, mid]] * 2
    assert same.present == (mid, high)
