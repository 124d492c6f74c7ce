"""What the preset says is what layers compute."""

from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch

from freqformer.attention import frequency_attention
from freqformer.config import FreqFormerConfig
from freqformer.grid import Grid
from freqformer.integrations.diffusers.layer_bands import PresetBands, StepLevels
from freqformer.integrations.diffusers.steps import SamplerSteps
from freqformer.training_free.preset import mid_density


def test_layers_compute_what_it_says() -> None:
    """Best tiles by tile means exactly, and the mean of the rest weighed by their number."""
    grid, heads, density = Grid(4, 8, 8), 2, 0.4
    bands = PresetBands(density, 0, 1, heads)
    config = bands.config(grid, 0)
    assert config is not None
    draw = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(1, grid.num_tokens, heads, 8, generator=draw, dtype=torch.float64)
        for _ in range(3)
    )
    known = bands.bands(torch.tensor([0.5]), torch.device("cpu"))
    found = frequency_attention(
        query, key, value, grid=grid, allocation=known, config=config, impl="eager"
    )
    wanted = _by_hand(query[0], key[0], value[0], grid, config)
    torch.testing.assert_close(found[0], wanted)
    assert bands.density(grid, 0) == mid_density(grid, config, 0)


LEVELS = tuple(1 - step / 20 for step in range(20))
"""Of a run's steps."""


def run_levels() -> tuple[float, ...]:
    return (*LEVELS, 0.0)


@pytest.mark.parametrize("density", [0.5, 0.2, 0.05])
def test_a_falling_density_is_delivered_over_the_steps(density: float) -> None:
    grid, layers = Grid(21, 30, 52), 30
    bands = [PresetBands(density, place, layers, 2, run_levels) for place in range(layers)]
    by_step = [sum(one.density(grid, 226, [level]) for one in bands) / layers for level in LEVELS]
    assert sum(by_step) / len(by_step) == pytest.approx(density, rel=0.02)
    assert by_step[0] > 1.5 * density
    assert all(first >= second - 0.02 * density for first, second in pairwise(by_step))
    # The steps of a run have three numbers of tiles, or six where layers differ by a tile.
    mean = sum(one.density(grid, 226) for one in bands) / layers
    assert mean == pytest.approx(sum(by_step) / len(by_step))
    given = {
        config.mid_tiles
        for one in bands
        for config in one.configs(grid, torch.tensor(LEVELS), 226)
        if config is not None
    }
    assert len(given) <= 6


def test_noise_decides_in_each_sample() -> None:
    grid = Grid(21, 30, 52)
    bands = PresetBands(0.2, 0, 30, 2, run_levels)
    noisy, clean, again = bands.configs(grid, torch.tensor([0.99, 0.1, 0.101]), 0)
    assert clean == again
    assert clean is not None
    assert noisy is not None
    assert (noisy.mid_tiles or 0) > 2 * (clean.mid_tiles or 0)
    assert PresetBands(1.0, 0, 30, 2, run_levels).config(grid, 0, 0.5) is None


def test_levels_are_those_of_the_banded_steps() -> None:
    scheduler = SimpleNamespace(timesteps=torch.tensor([1000.0, 800, 600, 400, 200]))
    levels = StepLevels(SamplerSteps(0.2, 0.8, scheduler=scheduler), lambda t: t / 1000)
    assert levels() == pytest.approx((0.8, 0.6, 0.4, 0.2))
    scheduler.timesteps = torch.tensor([0.0, 0.5])
    cleaner = StepLevels(SamplerSteps(0.0, 1.0, scheduler=scheduler), lambda t: 1 - t)
    assert cleaner() == (1.0, 0.5, 0.0)


def _by_hand(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    grid: Grid,
    config: FreqFormerConfig,
) -> torch.Tensor:
    tile = config.tile
    assert tile == (4, 4, 4)
    place = torch.arange(grid.num_tokens).view(*grid.shape)
    tiles = [
        place[:, row : row + 4, column : column + 4].flatten()
        for row in range(0, grid.height, 4)
        for column in range(0, grid.width, 4)
    ]
    out = torch.empty_like(query)
    for head in range(query.shape[1]):
        q, k, v = query[:, head], key[:, head], value[:, head]
        means = torch.stack([k[rows].mean(0) for rows in tiles])
        sums = torch.stack([v[rows].mean(0) for rows in tiles])
        for own, rows in enumerate(tiles):
            score = means @ q[rows].mean(0)
            score[own] = torch.inf
            kept = score.topk(config.mid_tiles or 0).indices.tolist()
            rest = [other for other in range(len(tiles)) if other not in kept]
            seen = torch.cat([tiles[other] for other in kept])
            bias = torch.tensor([len(tiles[other]) for other in rest]).double().log()
            keys, values = torch.cat([k[seen], means[rest]]), torch.cat([v[seen], sums[rest]])
            scores = q[rows] @ keys.T / q.shape[-1] ** 0.5
            scores[:, len(seen) :] += bias
            out[rows, head] = scores.softmax(-1) @ values
    return out
