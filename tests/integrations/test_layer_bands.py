"""What the preset says is what layers compute."""

from __future__ import annotations

import torch

from freqformer.attention import frequency_attention
from freqformer.config import FreqFormerConfig
from freqformer.grid import Grid
from freqformer.integrations.diffusers.layer_bands import PresetBands
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
