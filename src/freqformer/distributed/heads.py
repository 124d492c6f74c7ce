"""Which rank computes which heads, so that ranks finish together."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from freqformer._validate import check_whole
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
