"""Grids and tile layouts: the tiling rule, its figures, and the round trip between orders."""

from __future__ import annotations

import math
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from freqformer.grid import Grid, choose_tile, tile_layout

extents = st.integers(1, 40)
grids = st.builds(Grid, extents, extents, extents).filter(lambda grid: grid.num_tokens <= 4000)


def _padding(box: tuple[int, ...], shape: tuple[int, ...]) -> float:
    tiles = math.prod(math.ceil(extent / side) for side, extent in zip(box, shape, strict=True))
    return tiles * 128 / math.prod(shape) - 1


def _aspect(box: tuple[int, ...], shape: tuple[int, ...]) -> float:
    cut = [side for side, extent in zip(box, shape, strict=True) if extent > side]
    return max(box) / min(cut) if cut else 1.0


@pytest.mark.parametrize(
    ("shape", "padding"),
    [
        ((21, 45, 80), 0.067),
        ((30, 48, 80), 0.0),
        ((13, 45, 80), 0.094),
        ((16, 32, 32), 0.0),
        ((273, 48, 80), 0.004),
    ],
)
def test_padding_of_known_grids(shape: tuple[int, int, int], padding: float) -> None:
    layout = tile_layout(Grid(*shape))
    assert layout.padding == pytest.approx(padding, abs=5e-4)
    assert layout.padding == pytest.approx(_padding(layout.tile, shape))


def test_long_tiles_only_where_compact_ones_cost_too_much() -> None:
    # The best of aspect 1:4 costs 14.9% here, so that 1:9 is allowed; at 21 x 45 x 80 it costs 6.7%
    # and is not.
    assert _aspect(choose_tile(Grid(13, 45, 80)), (13, 45, 80)) == 4.5
    assert _padding((7, 3, 6), (13, 45, 80)) == pytest.approx(0.149, abs=5e-4)
    assert choose_tile(Grid(21, 45, 80)) == (7, 3, 6)


@settings(max_examples=60)
@given(st.builds(Grid, *[st.integers(1, 14)] * 3))
def test_tile_follows_the_rule(grid: Grid) -> None:
    boxes = [
        box for box in product(*(range(1, n + 1) for n in grid.shape)) if math.prod(box) <= 128
    ]
    best = {
        limit: min(_padding(b, grid.shape) for b in boxes if _aspect(b, grid.shape) <= limit)
        for limit in (4, 9)
    }
    tile = choose_tile(grid)
    limit = 4 if best[4] <= 0.09 else 9
    assert _aspect(tile, grid.shape) <= limit
    assert _padding(tile, grid.shape) == best[limit]
    equal = [
        b
        for b in boxes
        if _padding(b, grid.shape) == best[limit] and _aspect(b, grid.shape) <= limit
    ]
    assert _aspect(tile, grid.shape) == min(_aspect(b, grid.shape) for b in equal)


@given(grids)
def test_tiles_are_boxes_that_cover_every_token_once(grid: Grid) -> None:
    layout = tile_layout(grid)
    assert math.prod(layout.tile) <= 128
    assert layout.counts.sum() == grid.num_tokens
    assert layout.offsets.tolist() == [0, *layout.counts.cumsum(0).tolist()]
    assert layout.ragged == (len(layout.counts.unique()) > 1)
    place = torch.stack(
        torch.meshgrid(*(torch.arange(n) for n in grid.shape), indexing="ij"), -1
    ).flatten(0, 2)
    sides = torch.tensor(layout.tile)
    for tile, where in enumerate(layout.coordinates()):
        tokens = place[layout.raster_to_tile[layout.offsets[tile] : layout.offsets[tile + 1]]]
        first, end = where * sides, torch.minimum((where + 1) * sides, torch.tensor(grid.shape))
        box = torch.stack(
            torch.meshgrid(
                *(torch.arange(a, b) for a, b in zip(first, end, strict=True)), indexing="ij"
            ),
            -1,
        )
        assert torch.equal(tokens, box.flatten(0, 2))  # every token of the box, in raster order


@given(grids)
def test_orders_round_trip(grid: Grid) -> None:
    layout = tile_layout(grid)
    x = torch.arange(grid.num_tokens)
    assert torch.equal(x[layout.raster_to_tile][layout.tile_to_raster], x)
    assert torch.equal(x[layout.tile_to_raster][layout.raster_to_tile], x)


@given(grids)
def test_extents_and_padded_index(grid: Grid) -> None:
    layout = tile_layout(grid)
    for axis in range(3):
        assert sum(layout.extents(axis)) == grid.shape[axis]
        assert len(layout.extents(axis)) == layout.tiles[axis]
    index = layout.padded_index()
    for tile, row in enumerate(index):
        own = torch.arange(int(layout.offsets[tile]), int(layout.offsets[tile + 1]))
        assert torch.equal(row[: len(own)], own)
        assert (row[len(own) :] == own[-1]).all()


def test_pinned_tile_is_kept_and_clipped() -> None:
    assert tile_layout(Grid(9, 9, 9), (4, 4, 8)).tile == (4, 4, 8)
    assert tile_layout(Grid(1, 9, 5), (4, 4, 8)).tile == (1, 4, 5)
    assert tile_layout(Grid(9, 9, 9), (4, 4, 8)) is tile_layout(Grid(9, 9, 9), (4, 4, 8))


@pytest.mark.parametrize("shape", [(0, 4, 4), (4, -1, 4), (4, 4, True), (4, 4.0, 4), (4, 4, None)])
def test_grid_refuses_what_is_no_count(shape: tuple) -> None:
    with pytest.raises(ValueError, match="whole numbers of tokens"):
        Grid(*shape)


@pytest.mark.parametrize("tile", [(4, 4, 9), (0, 4, 4), (4, 4), (4, 2.5, 4)])
def test_pinned_tile_refuses_what_is_no_box(tile: tuple) -> None:
    with pytest.raises(ValueError, match="at most 128 tokens"):
        tile_layout(Grid(8, 8, 8), tile)
