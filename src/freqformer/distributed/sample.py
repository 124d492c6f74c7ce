"""The tokens that a router's statistics are taken of, gathered from all ranks.

Every rank then computes the same statistics from the same numbers, whatever the number of ranks.
Shape legend: B batch, n tokens of a rank, S sampled tiles, L tokens of the largest.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from freqformer.config import FreqFormerConfig
from freqformer.distributed.context import ContextParallel
from freqformer.distributed.tokens import gathered, token_shares
from freqformer.grid import Grid, tile_layout
from freqformer.routing.statistics import tile_sample


class SamplePlaces(NamedTuple):
    """Where one rank finds its tokens of a sample, and where all of them go."""

    own: Tensor
    """Of this rank's tokens those that are sampled, int64."""
    shares: tuple[int, ...]
    """How many there are on every rank."""
    order: Tensor
    """Of all that was gathered, the token of every slot, int64 (S * L,); any where it is empty."""
    empty: Tensor
    """Slots behind a tile's last token, bool (S * L,)."""


@torch.no_grad()
def gather_sample(
    x: Tensor, grid: Grid, config: FreqFormerConfig, context: ContextParallel
) -> Tensor:
    """The sampled tokens of the whole video, zero in empty slots: (B, n, ...) -> (B, S * L, ...) in
    the order `sample` of statistics.

    Args:
        x: this rank's tokens in tile order.
        grid, config: of the whole video.
        context: the ranks that share it.
    """
    places = _places(grid, config, context.size, context.rank, x.device)
    whole = gathered(x.index_select(1, places.own), places.shares, context)
    slots = whole.index_select(1, places.order)
    return slots.masked_fill(places.empty.view(-1, *(1 for _ in x.shape[2:])), 0)


@lru_cache(maxsize=64)
@torch.inference_mode(False)  # what it caches must also serve training
def _places(
    grid: Grid, config: FreqFormerConfig, ranks: int, rank: int, device: torch.device
) -> SamplePlaces:
    sampled = tile_sample(grid, config).places("tile").flatten()
    empty = sampled < 0
    wanted = sampled[~empty].unique()  # sorted, and so by rank
    shares = token_shares(tile_layout(grid, config.tile), ranks)
    ends = torch.tensor(shares).cumsum(0)
    owner = torch.bucketize(wanted, ends, right=True)
    start = int(ends[rank]) - shares[rank]
    return SamplePlaces(
        own=(wanted[owner == rank] - start).to(device),
        shares=tuple(torch.bincount(owner, minlength=ranks).tolist()),
        order=torch.searchsorted(wanted, sampled.clamp_min(int(wanted[0]))).to(device),
        empty=empty.to(device),
    )
