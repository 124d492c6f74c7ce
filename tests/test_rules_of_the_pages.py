"""The rules that docs/attention.md, bands.md and routing.md state in words, written again from the
words alone."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from fractions import Fraction
from itertools import product

import pytest
import torch
from torch import Tensor

from freqformer import AttentionParameters, frequency_attention
from freqformer.bands import low_box, split_bands
from freqformer.config import Band, FreqFormerConfig
from freqformer.grid import Grid, choose_tile, tile_layout
from freqformer.patterns import axial_tiles, radial_tiles, summary_cells, window_tiles
from freqformer.routing.network import Prior, RoutingNetwork
from freqformer.routing.statistics import statistics_of_means, tile_sample

Box = tuple[int, int, int]


def some_grids() -> list[Box]:
    """130 grids: those of models that people use, flat, long and prime ones, and random ones."""
    known = [
        (21, 45, 80),
        (13, 45, 80),
        (30, 48, 80),
        (31, 48, 80),
        (21, 30, 52),
        (13, 30, 45),
        (33, 45, 80),
    ]
    known += [
        (1, 45, 80),
        (1, 1, 1),
        (1, 1, 500),
        (300, 1, 1),
        (1, 64, 64),
        (2, 3, 4),
        (8, 16, 16),
        (16, 8, 12),
    ]
    known += [
        (7, 11, 13),
        (17, 19, 23),
        (61, 45, 80),
        (121, 48, 80),
        (273, 48, 80),
        (16, 6, 10),
        (8, 12, 20),
    ]
    draw = random.Random(0)
    known += [
        (draw.randint(1, 40), draw.randint(1, 60), draw.randint(1, 90))
        for _ in range(130 - len(known))
    ]
    return known


def boxes(shape: Box, most: int) -> Iterator[Box]:
    """Every box inside `shape` that holds at most so many."""
    for t in range(1, min(shape[0], most) + 1):
        for h in range(1, min(shape[1], most // t) + 1):
            for w in range(1, min(shape[2], most // (t * h)) + 1):
                yield (t, h, w)


def pieces(shape: Box, box: Box) -> Box:
    """How many boxes lie along each axis."""
    t, h, w = (math.ceil(Fraction(extent, side)) for extent, side in zip(shape, box, strict=True))
    return (t, h, w)


def tile_by_the_page(shape: Box) -> Box:
    def padding(box: Box) -> Fraction:
        return Fraction(128 * math.prod(pieces(shape, box)), math.prod(shape)) - 1

    def aspect(box: Box) -> Fraction:
        cut = [side for extent, side in zip(shape, box, strict=True) if extent > side]
        return Fraction(max(box), min(cut)) if cut else Fraction(1)

    def best(limit: int) -> Box:
        allowed = [box for box in boxes(shape, 128) if aspect(box) <= limit]
        return min(
            allowed, key=lambda box: (padding(box), aspect(box), Fraction(max(box), min(box)), box)
        )

    chosen = best(4)
    return best(9) if padding(chosen) > Fraction(9, 100) else chosen


def test_the_tile() -> None:
    grids = some_grids()
    assert len(set(grids)) >= 120
    for shape in grids:
        assert choose_tile(Grid(*shape)) == tile_by_the_page(shape), shape


def low_box_by_the_page(tile: Box, compression: float) -> Box:
    most = round(128 / compression)
    candidates = list(boxes(tile, most))
    largest = max(math.prod(box) for box in candidates)

    def order(box: Box) -> tuple:
        spacings = [Fraction(side, samples) for side, samples in zip(tile, box, strict=True)]
        return (max(spacings) / min(spacings), box[0], max(box), box)

    return min((box for box in candidates if math.prod(box) == largest), key=order)


@pytest.mark.parametrize("compression", [1, 4, 5.5, 16, 32, 51.2, 128])
def test_the_low_box(compression: float) -> None:
    draw = random.Random(1)
    tiles = {choose_tile(Grid(*shape)) for shape in some_grids()} | {
        (4, 4, 8),
        (2, 2, 3),
        (1, 3, 5),
    }
    tiles |= {draw.choice(list(boxes((12, 12, 12), 128))) for _ in range(40)}
    for tile in sorted(tiles):
        assert low_box(tile, compression) == low_box_by_the_page(tile, compression), tile


def cells_by_the_page(tiles: Box, tile: Box, most: int) -> Box:
    def order(box: Box) -> tuple:
        sides = [count * side for count, side in zip(box, tile, strict=True)]
        return (-math.prod(pieces(tiles, box)), Fraction(max(sides), min(sides)), box)

    fitting = [
        box for box in boxes(tiles, math.prod(tiles)) if math.prod(pieces(tiles, box)) <= most
    ]
    return min(fitting, key=order)


@pytest.mark.parametrize("most", [1, 6, 40, 256])
def test_the_cells_of_summaries(most: int) -> None:
    for shape in some_grids()[:60]:
        layout = tile_layout(Grid(*shape))
        if layout.num_tiles > 2000:
            continue
        found = summary_cells(layout, most)
        box = cells_by_the_page(layout.tiles, layout.tile, most)
        count = pieces(layout.tiles, box)
        places = product(*map(range, layout.tiles))
        owners = [[place // side for place, side in zip(tile, box, strict=True)] for tile in places]
        expected = [(t * count[1] + h) * count[2] + w for t, h, w in owners]
        assert found.cell_of_tile.tolist() == expected, shape
        assert found.num_cells == math.prod(count) <= most


LAYOUTS = [
    tile_layout(Grid(*shape), tile)
    for shape, tile in [((9, 8, 11), (2, 2, 2)), ((5, 9, 7), (1, 2, 3))]
]


@pytest.mark.parametrize("window", [(1, 1, 1), (3, 3, 3), (2, 4, 2), (9, 2, 3), (4, 3, 99)])
def test_the_window_and_the_axes(window: Box) -> None:
    for layout in LAYOUTS:
        all_tiles = list(product(*map(range, layout.tiles)))

        def near(place: int, total: int, width: int) -> range:
            width = min(width, total)
            first = min(max(place - (width - 1) // 2, 0), total - width)
            return range(first, first + width)

        for own, seen, on_axes in zip(
            all_tiles,
            window_tiles(layout, window).tolist(),
            axial_tiles(layout, window).tolist(),
            strict=True,
        ):
            ranges = [near(*axis) for axis in zip(own, layout.tiles, window, strict=True)]
            inside = [
                i
                for i, tile in enumerate(all_tiles)
                if all(p in r for p, r in zip(tile, ranges, strict=True))
            ]
            assert seen == inside
            expected = [
                i
                for i, (t, h, w) in enumerate(all_tiles)
                if (h, w) == own[1:] or (t == own[0] and h in ranges[1] and w in ranges[2])
            ]
            assert [i for i in on_axes if i >= 0] == expected


@pytest.mark.parametrize("radius", [0, 1, 2, 4, 7])
def test_the_radius(radius: int) -> None:
    for layout in LAYOUTS:
        all_tiles = list(product(*map(range, layout.tiles)))
        for (t, h, w), seen in zip(all_tiles, radial_tiles(layout, radius).tolist(), strict=True):
            expected = []
            for i, (t2, h2, w2) in enumerate(all_tiles):
                reach = Fraction(radius, 2 ** int(math.log2(abs(t - t2) + 1)))
                if max(abs(h - h2), abs(w - w2)) <= reach:
                    expected.append(i)
            assert [i for i in seen if i >= 0] == expected


def test_summaries_and_rotary_embedding() -> None:
    """A HIGH head that sees every tile, and so of summaries the mid ones alone, and a DENSE head,
    which sees none."""
    generator = torch.Generator().manual_seed(0)
    grid, config, d = (
        Grid(3, 4, 5),
        FreqFormerConfig(tile=(2, 2, 3), window=(9, 9, 9), summary_tokens=4, compression=16),
        6,
    )

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    query, key, value = draw(3, 1, grid.num_tokens, 2, d)
    pooling, offsets, angles = draw(2, 2, d), draw(2, 3), draw(grid.num_tokens, d // 2)
    cos, sin = angles.cos(), angles.sin()

    def rotated(x: Tensor) -> Tensor:
        out = x.clone()
        for i in range(d // 2):
            out[:, 2 * i] = x[:, 2 * i] * cos[:, i] - x[:, 2 * i + 1] * sin[:, i]
            out[:, 2 * i + 1] = x[:, 2 * i] * sin[:, i] + x[:, 2 * i + 1] * cos[:, i]
        return out

    parameters = AttentionParameters(
        summary_queries=pooling, summary_offsets=offsets, rotary=(cos, sin)
    )
    bands = [Band.HIGH, Band.DENSE]
    found = frequency_attention(
        query, key, value, grid=grid, allocation=bands, config=config, parameters=parameters
    )
    layout = tile_layout(grid, config.tile)
    cells = summary_cells(layout, config.summary_tokens)
    cell_of_token = cells.cell_of_tile.repeat_interleave(layout.counts)[layout.tile_to_raster]
    for head, band in enumerate(bands):
        keys, values, bias = (
            rotated(key[0, :, head]),
            value[0, :, head],
            torch.zeros(grid.num_tokens),
        )
        if band == Band.HIGH:
            mid_key, mid_value = (
                split_bands(x[:, :, head], grid, config)[1][0] for x in (key, value)
            )
            weights = mid_key @ pooling[head, 0] / math.sqrt(d)
            for cell in range(cells.num_cells):
                inside = cell_of_token == cell
                share = weights[inside].softmax(0)
                keys = torch.cat([keys, share[None] @ rotated(mid_key)[inside]])
                values = torch.cat([values, share[None] @ mid_value[inside]])
            bias = torch.cat([bias, offsets[head, 1].expand(cells.num_cells)])
        scores = rotated(query[0, :, head]) @ keys.T / math.sqrt(d) + bias
        torch.testing.assert_close(
            found[0, :, head], scores.softmax(-1) @ values, rtol=1e-10, atol=1e-10
        )


@pytest.mark.parametrize("prior", ["noise_level", "none"])
def test_the_routing_network(prior: Prior) -> None:
    network, heads, t = RoutingNetwork(3, prior=prior, initial=[0, 1, 2]).double(), 3, 0.3
    energies = torch.rand(heads, 6, dtype=torch.float64)
    differences, variance = (
        torch.rand(2, dtype=torch.float64),
        torch.tensor(0.7, dtype=torch.float64),
    )
    measured = torch.cat([differences, variance[None]])[None]
    found = network(
        statistics_of_means(energies[None, :, :3], energies[None, :, 3:], measured),
        torch.tensor([t]),
    )[0]
    waves = [100 * 10_000 ** (-i / 16) * t for i in range(16)]
    time = torch.tensor([*map(math.cos, waves), *map(math.sin, waves)], dtype=torch.float64)
    rough = differences / (variance + 1e-6)
    for head in range(heads):
        given = 0.25 * torch.cat([(energies[head] + 1e-6).log(), rough])
        x = torch.cat([given, time, network.head_embedding[head]])
        first, second, last = (
            layer for layer in network.layers if isinstance(layer, torch.nn.Linear)
        )
        assert (first.in_features, first.out_features, second.out_features) == (8 + 32 + 16, 72, 72)
        hidden = torch.nn.functional.silu(second(torch.nn.functional.silu(first(x))))
        lean = 0.75 * (2 * t - 1) if prior == "noise_level" else 0.0
        logits = (
            last(hidden)
            + torch.tensor([lean, 0.0, -lean])
            + torch.nn.functional.one_hot(torch.tensor(head), 3)
        )
        torch.testing.assert_close(found[head], logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [(9, 30, 52), (21, 45, 80), (2, 3, 4)])
def test_the_tiles_that_statistics_are_taken_of(shape: Box) -> None:
    layout, golden, chosen = tile_layout(Grid(*shape)), (math.sqrt(5) - 1) / 2, []
    runs = min(layout.num_tiles, 32)
    for r in range(runs):
        a, b = r * layout.num_tiles // runs, (r + 1) * layout.num_tiles // runs
        chosen.append(a + int(math.modf(r * golden)[0] * (b - a)))
    assert (
        tile_sample(Grid(*shape), FreqFormerConfig()).tile[:, 0].tolist()
        == layout.offsets[chosen].tolist()
    )


def test_the_figures_that_the_page_names() -> None:
    assert choose_tile(Grid(21, 45, 80)) == (7, 3, 6)
    assert choose_tile(Grid(13, 45, 80)) == (7, 9, 2)
    assert low_box((7, 3, 6), FreqFormerConfig().compression) == (2, 1, 2)
    assert low_box((4, 4, 8), FreqFormerConfig().compression) == (1, 2, 2)
