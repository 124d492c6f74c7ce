"""What a router is given: band energies and roughness over a sample of tiles, on any grid and in
either order."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from freqformer.bands import split_bands
from freqformer.config import FreqFormerConfig
from freqformer.grid import Grid, TileLayout, tile_layout
from freqformer.routing import routing_statistics
from freqformer.routing.statistics import STATISTIC_TILES, tile_sample

CONFIG = FreqFormerConfig(tile=(2, 3, 4), compression=16)
GRIDS = [
    Grid(5, 7, 6),
    Grid(1, 6, 8),
    Grid(4, 1, 9),
    Grid(1, 1, 1),
    Grid(7, 11, 13),
    Grid(4, 24, 29),
]
"""Less and more tiles than the sample, ragged on every axis but for one."""


def sampled_boxes(layout: TileLayout, config: FreqFormerConfig) -> list[tuple[slice, slice, slice]]:
    """The sampled tiles as boxes of the grid, from the raster places."""
    boxes = []
    for places in tile_sample(layout.grid, config).raster:
        real = places[places >= 0]
        _, height, width = layout.grid.shape
        axes = (real // (height * width), real // width % height, real % width)
        box = [slice(int(axis.min()), int(axis.max()) + 1) for axis in axes]
        boxes.append((box[0], box[1], box[2]))
    return boxes


def expected_statistics(
    query: Tensor, key: Tensor, hidden: Tensor, grid: Grid, config: FreqFormerConfig
) -> Tensor:
    """By `split_bands` and differences of neighbours, tile by tile, float64."""
    boxes = sampled_boxes(tile_layout(grid, config.tile), config)
    columns = []
    for features in (query, key):
        bands = split_bands(features.double().flatten(2), grid, config)
        for band in bands:
            video = band.unflatten(2, features.shape[2:]).unflatten(1, grid.shape)
            tokens = torch.cat([video[:, *box].flatten(1, 3) for box in boxes], 1)
            columns.append((tokens.square().mean((1, 3)) + 1e-6).log())
    video = hidden.double().unflatten(1, grid.shape)
    tiles = [video[:, *box] for box in boxes]
    counts = [tile[0, ..., 0].numel() for tile in tiles]
    centred = [tile - tile.mean((1, 2, 3), keepdim=True) for tile in tiles]
    freedom = max(sum(counts) - len(counts), 1)
    variance = sum(tile.square().sum((1, 2, 3)) for tile in centred).mean(-1) / freedom + 1e-6
    for axes in ((1,), (2, 3)):
        steps = [tile.diff(dim=axis).flatten(1, 3) for tile in tiles for axis in axes]
        squares = torch.cat(steps, 1).square()
        rough = squares.sum((1, 2)) / max(squares[0].numel(), 1) / variance
        columns.append(rough[:, None].expand(-1, query.shape[2]))
    return torch.stack(columns, -1)


def make_features(grid: Grid, **changes: Any) -> tuple[Tensor, Tensor, Tensor]:
    query, key = torch.randn(2, 2, grid.num_tokens, 3, 8, **changes)
    return query, key, torch.randn(2, grid.num_tokens, 5, **changes)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("tile", [CONFIG.tile, None])
def test_they_are_energies_of_bands_and_differences_of_neighbours(grid, tile):
    config = FreqFormerConfig(tile=tile, compression=16)
    features = make_features(grid, dtype=torch.float64)
    statistics = routing_statistics(*features, grid, config)
    assert statistics.dtype == torch.float32
    expected = expected_statistics(*features, grid, config)
    torch.testing.assert_close(statistics.double(), expected, rtol=1e-5, atol=1e-5)
    single = routing_statistics(*(x.float() for x in features), grid, config)
    torch.testing.assert_close(single, statistics, rtol=1e-4, atol=1e-4)


@given(st.builds(Grid, st.integers(1, 9), st.integers(1, 40), st.integers(1, 40)))
def test_the_sample_is_of_whole_different_tiles(grid):
    layout, sample = tile_layout(grid, CONFIG.tile), tile_sample(grid, CONFIG)
    first, last = sample.tile[:, 0].clone(), sample.tile.amax(1)
    chosen = torch.searchsorted(layout.offsets, first, right=True) - 1
    assert torch.equal(layout.offsets[chosen], first)
    assert torch.equal(layout.offsets[chosen + 1], last + 1)
    assert (chosen.diff() > 0).all()
    assert len(chosen) == min(layout.num_tiles, STATISTIC_TILES)
    assert torch.equal(
        sample.raster[sample.raster >= 0], layout.raster_to_tile[sample.tile[sample.tile >= 0]]
    )


def test_the_sample_reaches_every_part_of_a_video():
    # Tiles in runs of whole rows: evenly spaced ones would all lie in one column.
    grid = Grid(16, 64, 64)
    layout, config = tile_layout(grid), FreqFormerConfig()
    first = tile_sample(grid, config).raster[:, 0]
    axes = (first // 4096, first // 64 % 64, first % 64)
    places = [axis // side for axis, side in zip(axes, layout.tile, strict=True)]
    for along, count in zip(places, layout.tiles, strict=True):
        quarter = along * 4 // count
        assert quarter.bincount(minlength=4).min() >= STATISTIC_TILES // 8


def test_tile_order_and_the_batch_change_nothing():
    grid = Grid(5, 7, 6)
    index = tile_layout(grid, CONFIG.tile).raster_to_tile
    features = make_features(grid)
    statistics = routing_statistics(*features, grid, CONFIG)
    assert torch.equal(
        routing_statistics(*(x[:, index] for x in features), grid, CONFIG, "tile"), statistics
    )
    alone = routing_statistics(*(x[1:] for x in features), grid, CONFIG)
    torch.testing.assert_close(alone, statistics[1:], rtol=1e-6, atol=1e-6)


def test_white_noise_has_roughness_two_and_a_still_none_in_time():
    grid = Grid(8, 16, 16)
    query, key, hidden = (
        torch.randn(1, 2048, 1, 4),
        torch.randn(1, 2048, 1, 4),
        torch.randn(1, 2048, 16),
    )
    rough = routing_statistics(query, key, hidden * 3 + 100, grid, CONFIG)[0, 0, 6:]
    torch.testing.assert_close(rough, torch.full((2,), 2.0), rtol=0.05, atol=0)
    still = hidden[:, :256].repeat(1, 8, 1)
    rough = routing_statistics(query, key, still, grid, CONFIG)[0, 0, 6:]
    assert rough[0].abs() < 1e-6
    assert rough[1] > 0.5
    assert (
        routing_statistics(query, key, torch.full_like(hidden, 100), grid, CONFIG)[..., 6:]
        .abs()
        .max()
        < 1e-3
    )


def test_no_gradient_flows_into_the_features():
    features = torch.randn(1, 60, 2, 4, requires_grad=True)
    hidden = torch.randn(1, 60, 3, requires_grad=True)
    assert not routing_statistics(features, features, hidden, Grid(3, 4, 5), CONFIG).requires_grad


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_statistics_of_half_precision_are_near_those_of_the_rounded_values(dtype):
    grid = Grid(3, 4, 5)
    features = [x.to(dtype) for x in make_features(grid)]
    half = routing_statistics(*features, grid, CONFIG)
    assert half.dtype == torch.float32
    torch.testing.assert_close(
        half, routing_statistics(*(x.float() for x in features), grid, CONFIG), rtol=0, atol=5e-3
    )


@pytest.mark.parametrize(
    ("dtype", "most"), [(torch.float32, 1e-11), (torch.float16, 1e-6), (torch.bfloat16, 2.3e-5)]
)
@pytest.mark.parametrize("grid", [Grid(5, 5, 5), Grid(1, 1, 114)])
def test_little_of_a_constant_leaks_out_of_the_low_band(grid, dtype, most):
    # Of all tiles the second leaks most; on some sides the rounded rows still add up to zero.
    constant = torch.ones(1, grid.num_tokens, 1, 16, dtype=dtype)
    statistics = routing_statistics(constant, constant, constant[:, :, 0], grid, FreqFormerConfig())
    low, mid, high = statistics[0, 0, :3].double().exp() - 1e-6
    assert abs(low - 1) < 5e-3
    assert max(abs(mid), abs(high)) < most


def test_tokens_of_another_grid_are_refused():
    right, wrong = torch.zeros(1, 60, 2, 4), torch.zeros(1, 61, 2, 4)
    grid = Grid(3, 4, 5)
    for name, given_ in (
        ("query", (wrong, right, right.flatten(2))),
        ("key", (right, wrong, right.flatten(2))),
        ("hidden_states", (right, right, wrong.flatten(2))),
    ):
        with pytest.raises(ValueError, match=f"{name} has 61 tokens"):
            routing_statistics(*given_, grid, CONFIG)


@pytest.mark.parametrize("tile", [(1, 4, 4), (1, 8, 16), (1, 5, 7), (8, 1, 1)])
def test_differences_are_read_across_tiles_that_have_no_neighbours_inside(tile):
    """Roughness of axes along which a tile is one token wide: of noise 2, of what doesn't change
    along them 0."""
    grid, config = Grid(9, 15, 16), FreqFormerConfig(tile=tile)
    noise = torch.randn(1, *grid.shape, 64)
    kept = (1,) if tile[0] == 1 else (2, 3)
    still = noise.mean(kept, keepdim=True).expand_as(noise)
    query, key = torch.randn(2, 1, grid.num_tokens, 1, 4)
    rough = [
        routing_statistics(query, key, x.flatten(1, 3), grid, config)[0, 0, 6:]
        for x in (noise, still)
    ]
    torch.testing.assert_close(rough[0], torch.full((2,), 2.0), rtol=0.1, atol=0)
    changed = 0 if tile[0] == 1 else 1
    assert rough[1][changed].abs() < 1e-5
    assert rough[1][1 - changed] > 0.5
    # Energies are of the tiles alone, and of as many as ever.
    sample = tile_sample(grid, config)
    alone = sample.weights[sample.kind, :3].abs().sum((1, 2)) > 0
    assert (
        int(alone.sum())
        == min(tile_layout(grid, tile).num_tiles, STATISTIC_TILES)
        == len(alone) // 2
    )
    assert torch.equal(sample.raster >= 0, sample.tile >= 0)


def test_one_frame_has_no_roughness_in_time():
    grid, config = Grid(1, 8, 8), FreqFormerConfig(tile=(1, 4, 4))
    assert routing_statistics(*make_features(grid), grid, config)[..., 6].abs().max() == 0
