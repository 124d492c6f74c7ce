"""Bands: the split is exact in float64 on every grid; compression and the two ways back do what
they say."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from freqformer.bands import (
    band_energies,
    band_masks,
    band_pass,
    compress,
    dct,
    interpolate,
    low_box,
    low_grid,
    low_weights,
    split_bands,
    synthesize,
)
from freqformer.config import FreqFormerConfig
from freqformer.grid import Grid, tile_layout

TILES = (None, (4, 4, 8), (1, 8, 16), (5, 5, 5), (3, 2, 7), (1, 1, 128))
grids = st.one_of(
    st.builds(Grid, *[st.sampled_from((1, 2, 3, 5, 7, 11, 13))] * 3),  # primes
    st.builds(Grid, st.just(1), st.integers(1, 30), st.integers(1, 30)),  # single frames
    st.builds(Grid, *[st.integers(1, 12)] * 3),
)
configs = st.builds(
    FreqFormerConfig,
    tile=st.sampled_from(TILES),
    compression=st.floats(1, 128),
    mid_cutoff=st.floats(0.05, 1),
)
RAGGED = Grid(7, 11, 13)


def _features(grid: Grid, channels: int = 2, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(1, grid.num_tokens, channels, dtype=torch.float64, generator=generator)


@settings(max_examples=250)
@given(grids, configs)
def test_split_is_an_orthogonal_sum(grid: Grid, config: FreqFormerConfig) -> None:
    x = _features(grid)
    bands = split_bands(x, grid, config)
    assert (sum(bands) - x).abs().max() <= 1e-12
    total = x.square().sum()
    energies = torch.stack([band.square().sum() for band in bands])
    assert (energies.sum() - total).abs() <= 1e-12 * total
    for i, j in ((0, 1), (0, 2), (1, 2)):
        assert (bands[i] * bands[j]).sum().abs() <= 1e-12 * total
    assert (band_energies(x, grid, config)[0] - energies).abs().max() <= 1e-12 * total
    for index, band in enumerate(bands):
        again = split_bands(band, grid, config)
        assert (again[index] - band).abs().max() <= 1e-12  # projectors


@settings(max_examples=100)
@given(grids, configs)
def test_compression_inverts_on_the_low_band(grid: Grid, config: FreqFormerConfig) -> None:
    layout, x = tile_layout(grid, config.tile), _features(grid)
    low = compress(x, layout, config)
    assert low.shape[1] == math.prod(low_grid(layout, config))
    back = synthesize(low, layout, config)
    assert (
        back - split_bands(x, grid, config)[0]
    ).abs().max() <= 1e-12  # S A projects on the low band
    assert (compress(back, layout, config) - low).abs().max() <= 1e-11  # A S = 1
    ones = torch.ones_like(x)
    for way in (
        compress(ones, layout, config),
        synthesize(torch.ones_like(low), layout, config),
        interpolate(torch.ones_like(low), layout, config),
    ):
        assert (way - 1).abs().max() <= 1e-12
    weights = low_weights(layout, config)
    assert weights.shape == (low.shape[1],)
    assert weights.sum() == pytest.approx(grid.num_tokens)


def test_bands_by_the_definition() -> None:
    """Every coefficient of every tile, from the cosine sums of Rao and Yip (1990) and the radius of
    the design."""
    config = FreqFormerConfig(tile=(2, 3, 5), compression=30, mid_cutoff=0.4)
    grid = Grid(3, 4, 7)
    x, masks = (
        _features(grid, channels=1).reshape(grid.shape),
        band_masks((grid, (2, 3, 5)), config),
    )
    box = low_box((2, 3, 5), 30)
    coefficients = dct(x.reshape(1, -1, 1), tile_layout(grid, config.tile), config).reshape(
        grid.shape
    )
    bands = masks.reshape(3, *grid.shape)
    for t0, h0, w0 in ((t, h, w) for t in (0, 2) for h in (0, 3) for w in (0, 5)):
        tile = x[t0 : t0 + 2, h0 : h0 + 3, w0 : w0 + 5]
        for place in (
            torch.cartesian_prod(*(torch.arange(n) for n in tile.shape)).reshape(-1, 3).tolist()
        ):
            total = tile
            for axis, (k, n) in enumerate(zip(place, tile.shape, strict=True)):
                wave = torch.cos(math.pi / n * (torch.arange(n, dtype=torch.float64) + 0.5) * k)
                shape = [1, 1, 1]
                shape[axis] = n
                total = total * wave.reshape(shape) * math.sqrt((1 if k == 0 else 2) / n)
            where = (t0 + place[0], h0 + place[1], w0 + place[2])
            assert coefficients[where] == pytest.approx(float(total.sum()), abs=1e-12)
            long = [k / n for k, n in zip(place, tile.shape, strict=True) if n > 1]
            radius = math.sqrt(sum(r * r for r in long) / max(len(long), 1))
            low = all(k < m for k, m in zip(place, box, strict=True))
            assert bands[(slice(None), *where)].tolist() == [
                low,
                not low and radius < 0.4,
                not low and radius >= 0.4,
            ]


@pytest.mark.parametrize(
    ("tile", "compression", "box"),
    [
        ((4, 4, 8), 32, (1, 2, 2)),
        ((4, 4, 8), 128, (1, 1, 1)),
        ((4, 4, 8), 1, (4, 4, 8)),
        ((1, 8, 16), 8, (1, 4, 4)),
    ],
)
def test_low_box(tile: tuple[int, int, int], compression: float, box: tuple[int, int, int]) -> None:
    assert low_box(tile, compression) == box


def test_pinned_tile_keeps_its_low_band_on_a_smaller_grid() -> None:
    config = FreqFormerConfig(tile=(2, 8, 8), compression=16)
    image, video = Grid(1, 8, 8), Grid(2, 8, 8)
    x = _features(image)
    still = torch.cat([x, x], 1)  # two equal frames
    alone, both = split_bands(x, image, config)[0], split_bands(still, video, config)[0]
    assert (torch.cat([alone, alone], 1) - both).abs().max() <= 1e-12
    low = [
        compress(y, tile_layout(grid, config.tile), config)
        for y, grid in ((x, image), (still, video))
    ]
    assert low[0].shape == low[1].shape
    assert (low[0] - low[1]).abs().max() <= 1e-12


def test_a_band_with_no_coefficient_is_zero() -> None:
    x = _features(Grid(1, 1, 1))
    low, mid, high = split_bands(x, Grid(1, 1, 1), FreqFormerConfig())
    assert torch.equal(low, x)
    assert not mid.any()
    assert not high.any()
    low, mid, high = split_bands(_features(RAGGED), RAGGED, FreqFormerConfig(compression=1))
    assert mid.abs().max() <= 1e-12
    assert high.abs().max() <= 1e-12


def test_band_pass_weighs_the_bands() -> None:
    config = FreqFormerConfig(tile=(4, 4, 8))
    x, layout = _features(RAGGED), tile_layout(RAGGED, (4, 4, 8))
    gains = torch.tensor([0.5, -2.0, 3.0], dtype=torch.float64)
    wanted = sum(
        gain * band for gain, band in zip(gains, split_bands(x, RAGGED, config), strict=True)
    )
    assert (band_pass(x, gains, layout, config) - wanted).abs().max() <= 1e-12
    rows = torch.stack([gains, gains.flip(0)])
    both = band_pass(x.expand(2, -1, -1), rows, layout, config)
    assert (both[0] - wanted[0]).abs().max() <= 1e-12
    assert (both[1] - band_pass(x, gains.flip(0), layout, config)[0]).abs().max() <= 1e-12


def test_interpolation_is_linear_between_centres() -> None:
    # One axis of 16 tokens in tiles of 4 with one low token each: centres at 1.5, 5.5, 9.5 and
    # 13.5.
    config = FreqFormerConfig(tile=(4, 1, 1), compression=128)
    layout = tile_layout(Grid(16, 1, 1), config.tile)
    low = torch.tensor([0.0, 4.0, 0.0, 8.0], dtype=torch.float64).reshape(1, 4, 1)
    wanted = [0, 0, 0.5, 1.5, 2.5, 3.5, 3.5, 2.5, 1.5, 0.5, 1, 3, 5, 7, 8, 8]
    assert interpolate(low, layout, config).flatten().tolist() == pytest.approx(wanted)


def test_interpolation_does_not_step_at_tile_borders_as_synthesis_does() -> None:
    config = FreqFormerConfig(tile=(1, 1, 8), compression=64)
    layout = tile_layout(Grid(1, 1, 64), config.tile)
    wave = torch.sin(torch.arange(64, dtype=torch.float64) * 2 * math.pi / 16).reshape(1, 64, 1)
    low = compress(wave, layout, config)
    jumps = [
        way(low, layout, config).flatten().diff()[7::8].abs().max()
        for way in (synthesize, interpolate)
    ]
    steps = [
        way(low, layout, config).flatten().diff().abs().max() for way in (synthesize, interpolate)
    ]
    assert jumps[0] == steps[0]  # the largest step of the block synthesis is at a border
    assert jumps[1] < 0.5 * jumps[0]


@pytest.mark.parametrize("way", [compress, synthesize, interpolate])
def test_gradients_of_the_linear_maps(way: Callable[..., Tensor]) -> None:
    config = FreqFormerConfig(tile=(2, 2, 4))
    grid = Grid(3, 2, 5)
    layout = tile_layout(grid, config.tile)
    tokens = grid.num_tokens if way is compress else math.prod(low_grid(layout, config))
    x = torch.randn(1, tokens, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: way(x, layout, config), x)


def test_gradients_of_the_split_and_of_gains() -> None:
    config, grid = FreqFormerConfig(tile=(2, 2, 4)), Grid(3, 2, 5)
    x = torch.randn(1, 30, 2, dtype=torch.float64, requires_grad=True)
    gains = torch.randn(1, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: split_bands(x, grid, config), x)
    layout = tile_layout(grid, config.tile)
    assert torch.autograd.gradcheck(
        lambda x, gains: band_pass(x, gains, layout, config), (x, gains)
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_lower_precision_is_rounded_once(dtype: torch.dtype) -> None:
    x = _features(RAGGED).to(dtype)
    for band, exact in zip(
        split_bands(x, RAGGED, FreqFormerConfig()),
        split_bands(x.double(), RAGGED, FreqFormerConfig()),
        strict=True,
    ):
        assert band.dtype == dtype
        # Computed in float32, then rounded to the dtype.
        assert (
            (band.double() - exact).abs() <= 0.5 * torch.finfo(dtype).eps * exact.abs() + 2e-6
        ).all()


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.zeros(1, 1001, 2, dtype=torch.int64), "x has dtype"),
        (torch.zeros(1001, 2), "x has shape"),
        (torch.zeros(1, 1000, 2), "1000 tokens"),
        (torch.zeros(1, 1001, 2, dtype=torch.complex64), "x has dtype"),
    ],
)
def test_bad_features_are_refused(x: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        split_bands(x, RAGGED, FreqFormerConfig())
