"""The tokens that a router's statistics are taken of, gathered from all ranks.

Every rank then computes the same statistics from the same numbers, whatever the number of ranks.
Shape legend: B batch, n tokens of a rank, S sampled tiles, L tokens of the largest.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from freqformer.config import FreqFormerConfig
from freqformer.distributed.context import ContextParallel
from freqformer.distributed.tokens import start_gather, token_shares
from freqformer.grid import Grid, tile_layout
from freqformer.routing.statistics import tile_sample
from freqformer.tracing import constant_result


@torch.no_grad()
def gather_sample(
    tensors: tuple[Tensor, ...], grid: Grid, config: FreqFormerConfig, context: ContextParallel
) -> tuple[Tensor, ...]:
    """The sampled tokens of the whole video, zero in empty slots: (B, n, ...) -> (B, S * L, ...)
    each, in the order `sample` of statistics.

    Args:
        tensors: of this rank's tokens in tile order.
        grid, config: of the whole video.
        context: the ranks that share it.
    """
    own, order, empty = _places(grid, config, context.size, context.rank, tensors[0].device)
    shares = _sampled_shares(grid, config, context.size)
    started = [start_gather(x.index_select(1, own), shares, context) for x in tensors]
    found = []
    for gathering in started:
        slots = gathering.arrive().index_select(1, order)
        found.append(slots.masked_fill(empty.view(-1, *(1 for _ in slots.shape[2:])), 0))
    return tuple(found)


@constant_result
def _places(
    grid: Grid, config: FreqFormerConfig, ranks: int, rank: int, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """Where one rank finds its tokens of a sample, and where all of them go: of its tokens those
    that are sampled, int64; of all that was gathered the token of every slot, int64 (S * L,), any
    where it is empty; and slots behind a tile's last token, bool (S * L,)."""
    return _cached_places(grid, config, ranks, rank, device)


@lru_cache(maxsize=64)
@torch.inference_mode(False)  # what it caches must also serve training
def _cached_places(
    grid: Grid, config: FreqFormerConfig, ranks: int, rank: int, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    sampled = tile_sample(grid, config).places("tile").flatten()
    wanted = _wanted(grid, config)
    shares = token_shares(tile_layout(grid, config.tile), ranks)
    starts = torch.tensor([0, *shares]).cumsum(0)
    here = (wanted >= starts[rank]) & (wanted < starts[rank + 1])
    return (
        (wanted[here] - starts[rank]).to(device),
        torch.searchsorted(wanted, sampled.clamp_min(int(wanted[0]))).to(device),
        (sampled < 0).to(device),
    )


@constant_result
def _sampled_shares(grid: Grid, config: FreqFormerConfig, ranks: int) -> tuple[int, ...]:
    """How many sampled tokens there are on every rank."""
    shares = token_shares(tile_layout(grid, config.tile), ranks)
    owner = torch.bucketize(_wanted(grid, config), torch.tensor(shares).cumsum(0), right=True)
    return tuple(torch.bincount(owner, minlength=ranks).tolist())


def _wanted(grid: Grid, config: FreqFormerConfig) -> Tensor:
    """All tokens that are sampled, each once and in order, and so by rank."""
    sampled = tile_sample(grid, config).places("tile").flatten()
    return sampled[sampled >= 0].unique()
