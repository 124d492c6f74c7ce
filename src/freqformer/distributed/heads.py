"""Which rank computes which heads, so that ranks finish together."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from freqformer._validate import check_whole
from freqformer.config import FreqFormerConfig
from freqformer.grid import Grid
from freqformer.plan import build_plan
from freqformer.tracing import constant_result


def deal_heads(costs: Tensor, ranks: int) -> tuple[Tensor, ...]:
    """Heads by rank, the costliest first, back and forth over the ranks: 0, 1, 2, 2, 1, 0, 0, ...

    Which rank gets how many follows from the numbers alone, so that nothing waits for a GPU that
    knows the costs.

    Args:
        costs: of every head, (H,) on any device. Among equal ones the first head comes first.
        ranks: from 1 to H.

    Returns: for every rank its heads, int64, on the device of the costs.

    Raises:
        ValueError: for more ranks than heads.
    """
    check_degree(len(costs), ranks)
    dearest = costs.argsort(descending=True, stable=True)
    return tuple(dearest[places] for places in _places(len(costs), ranks, costs.device))


def check_degree(num_heads: int, ranks: int) -> None:
    """Raise ValueError for a degree of context parallelism that leaves a rank without a head."""
    check_whole("cp", ranks, 1)
    if ranks > num_heads:
        raise ValueError(
            f"cp is {ranks} and the layer has {num_heads} heads; degrees from 1 to {num_heads} are "
            "allowed, since every rank computes whole heads: lower cp and raise dp_shard instead"
        )


@constant_result
def _places(heads: int, ranks: int, device: torch.device) -> tuple[Tensor, ...]:
    """Of every rank, which of the heads in order of cost it gets."""
    return _cached_places(heads, ranks, device)


@lru_cache(maxsize=64)
@torch.inference_mode(False)  # what it caches must also serve training
def _cached_places(heads: int, ranks: int, device: torch.device) -> tuple[Tensor, ...]:
    place = torch.arange(heads)
    column = place % ranks
    rank = torch.where(place // ranks % 2 == 0, column, ranks - 1 - column)
    return tuple((rank == one).nonzero().squeeze(1).to(device) for one in range(ranks))


@constant_result
def plan_costs(
    grid: Grid, config: FreqFormerConfig, **named: Any
) -> tuple[float, float, float, float]:
    """`AttentionPlan.band_costs` of the plan that `build_plan` makes of the same arguments, which a
    compiled graph takes as a constant."""
    return build_plan(grid, config, **named).band_costs()


def head_costs(by_band: tuple[float, ...], bands: Tensor) -> Tensor:
    """What every head costs over all samples, float64 (H,), from the costs of a head in each band
    and bands (B, H), where these are."""
    (costs,) = _on_device(by_band, bands.device)
    return costs[bands.long()].sum(0)


@constant_result
def _on_device(costs: tuple[float, ...], device: torch.device) -> tuple[Tensor]:
    return (_cached_on_device(costs, device),)


@lru_cache(maxsize=64)
@torch.inference_mode(False)  # what it caches must also serve training
def _cached_on_device(costs: tuple[float, ...], device: torch.device) -> Tensor:
    return torch.tensor(costs, dtype=torch.float64, device=device)
