"""Key tiles of every query tile against brute force, and the cells of summaries."""

from __future__ import annotations

import math
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from freqformer import patterns
from freqformer.config import FreqFormerConfig, MidPattern
from freqformer.grid import Grid, TileLayout, tile_layout

TILE = (1, 2, 2)
layouts = st.builds(Grid, st.integers(1, 9), st.integers(1, 9), st.integers(1, 9)).map(
    lambda g: tile_layout(g, TILE)
)
windows = st.tuples(*[st.integers(1, 5)] * 3)


def _places(layout: TileLayout) -> list[tuple[int, int, int]]:
    t, h, w = layout.tiles
    return [(i, j, k) for i in range(t) for j in range(h) for k in range(w)]


def _listed(lists: torch.Tensor) -> list[list[int]]:
    """The lists as Python lists; checks that -1 is behind the end alone and that tiles ascend."""
    rows = []
    for row in lists.tolist():
        tiles = [tile for tile in row if tile >= 0]
        assert row == tiles + [-1] * (len(row) - len(tiles))
        assert tiles == sorted(set(tiles))
        rows.append(tiles)
    return rows


def _window(place: tuple[int, ...], tiles: tuple[int, ...], window: tuple[int, ...]) -> list[range]:
    ranges = []
    for i, n, w in zip(place, tiles, window, strict=True):
        start = min(max(i - (w - 1) // 2, 0), max(0, n - w))
        ranges.append(range(start, start + min(w, n)))
    return ranges


@given(layouts, windows)
def test_window(layout: TileLayout, window: tuple[int, int, int]) -> None:
    places = _places(layout)
    lists = patterns.window_tiles(layout, window)
    assert lists.shape[1] == math.prod(min(w, n) for w, n in zip(window, layout.tiles, strict=True))
    for place, listed in zip(places, _listed(lists), strict=True):
        box = _window(place, layout.tiles, window)
        assert listed == [
            i for i, p in enumerate(places) if all(x in r for x, r in zip(p, box, strict=True))
        ]
        assert places.index(place) in listed


@given(layouts, windows)
def test_axial(layout: TileLayout, window: tuple[int, int, int]) -> None:
    places = _places(layout)
    for place, listed in zip(places, _listed(patterns.axial_tiles(layout, window)), strict=True):
        _, rows, columns = _window(place, layout.tiles, window)
        assert listed == [
            i
            for i, p in enumerate(places)
            if p[1:] == place[1:] or (p[0] == place[0] and p[1] in rows and p[2] in columns)
        ]


@given(layouts, st.integers(0, 6))
def test_radial(layout: TileLayout, radius: int) -> None:
    places = _places(layout)
    for place, listed in zip(places, _listed(patterns.radial_tiles(layout, radius)), strict=True):
        assert listed == [
            i
            for i, p in enumerate(places)
            if max(abs(p[1] - place[1]), abs(p[2] - place[2]))
            <= radius / 2 ** math.floor(math.log2(abs(p[0] - place[0]) + 1))
        ]


@given(layouts, windows, st.integers(0, 6))
def test_lists_of_fixed_patterns_are_no_longer_than_told(
    layout: TileLayout, window: tuple[int, int, int], radius: int
) -> None:
    """Every pattern of the config has a row, with a bound that its lists keep to."""
    assert {"topk", *patterns.FIXED_PATTERNS} == set(get_args(MidPattern))
    config = FreqFormerConfig(window=window, radial_radius=radius)
    for pattern in patterns.FIXED_PATTERNS.values():
        lists = pattern.lists(layout, config)
        assert lists.shape[1] <= pattern.most(layout, config)
        assert hasattr(config, pattern.reads)


def test_patterns_in_chunks_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    layout = tile_layout(Grid(6, 9, 7), TILE)
    means = torch.randn(2, 2, layout.num_tiles, 8).unbind(0)
    calls = {
        "radial": lambda: patterns.radial_tiles(layout, 3),
        "axial": lambda: patterns.axial_tiles(layout, (3, 3, 3)),
        "topk": lambda: patterns.topk_tiles(*means, 5),
    }
    whole = {name: call() for name, call in calls.items()}
    monkeypatch.setattr(patterns, "SCORE_CHUNK", 8 * layout.num_tiles)
    for name, call in calls.items():
        assert torch.equal(call(), whole[name]), name


@settings(max_examples=50)
@given(st.integers(1, 3), st.integers(1, 20), st.integers(1, 24), st.integers(0, 10_000))
def test_topk(rows: int, tiles: int, count: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    query, key = (torch.randn(rows, tiles, 4, generator=generator) for _ in range(2))
    lists = patterns.topk_tiles(query, key, count)
    assert lists.shape == (rows, tiles, min(count, tiles))
    for row in range(rows):
        scores = query[row] @ key[row].T
        for tile, listed in enumerate(_listed(lists[row])):
            others = sorted(
                (float(scores[tile, i]) for i in range(tiles) if i != tile), reverse=True
            )
            assert tile in listed
            kept = sorted((float(scores[tile, i]) for i in listed if i != tile), reverse=True)
            assert kept == pytest.approx(others[: min(count, tiles) - 1], abs=1e-6)


def test_topk_passes_no_gradient() -> None:
    query = torch.randn(1, 6, 4, requires_grad=True)
    assert not patterns.topk_tiles(query, query, 3).requires_grad


@given(layouts, st.integers(0, 40))
def test_cells_are_boxes_of_whole_tiles(layout: TileLayout, most: int) -> None:
    cells = patterns.summary_cells(layout, most)
    assert cells.num_cells <= min(most, layout.num_tiles)
    if most == 0:
        return
    assert cells.counts.sum() == layout.grid.num_tokens
    places = torch.tensor(_places(layout))
    tiles_inside = 0
    for cell in range(cells.num_cells):
        inside = places[cells.cell_of_tile == cell]
        assert len(inside) > 0
        low, high = inside.amin(0), inside.amax(0)
        assert len(inside) == int((high - low + 1).prod())
        assert cells.counts[cell] == layout.counts[cells.cell_of_tile == cell].sum()
        tiles_inside += len(inside)
    assert tiles_inside == layout.num_tiles


@given(layouts, st.integers(1, 40))
def test_no_box_would_make_more_cells(layout: TileLayout, most: int) -> None:
    t, h, w = layout.tiles
    counts = {
        math.ceil(t / a) * math.ceil(h / b) * math.ceil(w / c)
        for a in range(1, t + 1)
        for b in range(1, h + 1)
        for c in range(1, w + 1)
    }
    assert patterns.summary_cells(layout, most).num_cells == max(
        count for count in counts if count <= most
    )
