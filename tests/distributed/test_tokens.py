"""Shares of a video's tokens end where tiles end."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch

from freqformer import FreqFormerConfig, Grid
from freqformer.attention import FreqAttention
from freqformer.distributed import ContextParallel, gather_tokens, shard_tokens, token_shares
from freqformer.grid import tile_layout


def ranks_of(size: int, rank: int = 0) -> ContextParallel:
    """Ranks that are asked nothing."""
    return ContextParallel(cast(Any, None), size, rank)


@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("grid", [Grid(5, 4, 7), Grid(13, 45, 80), Grid(1, 2, 3), Grid(7, 5, 11)])
def test_shares_are_whole_tiles_and_nearly_even(grid: Grid, ranks: int) -> None:
    layout = tile_layout(grid)
    shares = token_shares(layout, ranks)
    assert sum(shares) == grid.num_tokens
    borders = set(layout.offsets.tolist())
    assert set(torch.tensor(shares).cumsum(0).tolist()) <= borders
    even = grid.num_tokens / ranks
    assert all(abs(share - even) <= layout.slots for share in shares)


def test_ranks_beyond_the_tiles_have_no_tokens() -> None:
    shares = token_shares(tile_layout(Grid(1, 2, 3)), 4)
    assert sorted(shares) == [0, 0, 0, 6]


def test_shares_in_order_are_the_video() -> None:
    layout = tile_layout(Grid(5, 4, 7))
    tokens = torch.randn(2, 140, 3)
    parts = [shard_tokens(tokens, layout, ranks_of(3, rank)) for rank in range(3)]
    assert torch.equal(torch.cat(parts, 1), tokens)


def test_other_numbers_of_tokens_are_refused() -> None:
    layout = tile_layout(Grid(5, 4, 7))
    with pytest.raises(ValueError, match=r"\(2, 139, 3\).*140.*whole video"):
        shard_tokens(torch.zeros(2, 139, 3), layout, ranks_of(2))
    with pytest.raises(ValueError, match="this rank's share"):
        gather_tokens(torch.zeros(2, 140, 3), layout, ranks_of(2))


def test_a_layer_says_what_it_takes() -> None:
    layer = FreqAttention(24, 3, FreqFormerConfig(tile=(2, 2, 3)))
    layer.set_context(ranks_of(2))
    grid, timestep = Grid(5, 4, 7), torch.tensor([0.5])
    with pytest.raises(ValueError, match=r"token_order is 'raster'.*reorder"):
        layer(torch.zeros(1, 140, 24), grid, timestep)
    with pytest.raises(ValueError, match="share of the tokens in tile order, from shard_tokens"):
        layer(torch.zeros(1, 140, 24), grid, timestep, token_order="tile")
    with pytest.raises(ValueError, match="cp is 4 and the layer has 3 heads"):
        layer.set_context(ranks_of(4))
