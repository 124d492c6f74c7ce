"""How a router learns: the bands it did not choose, the gradient through its choice, and its own
loss.

Shape legend: B batch, N video tokens, H heads, D head_dim, K other bands.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from freqformer.routing.allocation import checked_costs
from freqformer.routing.network import NUM_BANDS

RouterTraining = Literal["off", "all", "sampled"]


def other_bands(
    allocation: Tensor, mode: RouterTraining, generator: torch.Generator | None = None
) -> Tensor:
    """The bands to compute beside the chosen one while a router trains.

    Args:
        allocation: int (B, H), LOW, MID or HIGH.
        mode: `all` gives both other bands of every head, `sampled` one of them, drawn with
            probability 1/2.
        generator: for the draw; the default one is restored by gradient checkpointing.

    Returns:
        int64 (K, B, H), K = 2 or 1; each of the K is an allocation to call `frequency_attention`
        with.

    Raises:
        ValueError: for another mode.
    """
    if mode not in ("all", "sampled"):
        raise ValueError(
            f"mode is {mode!r}; 'all' and 'sampled' are allowed: with 'off' no other band is "
            "computed"
        )
    steps = torch.arange(1, NUM_BANDS, device=allocation.device)[:, None, None].expand(
        -1, *allocation.shape
    )
    if mode == "sampled":
        device = generator.device if generator is not None else allocation.device
        steps = torch.randint(
            1, NUM_BANDS, (1, *allocation.shape), generator=generator, device=device
        ).to(allocation.device)
    return (allocation.long() + steps) % NUM_BANDS


def straight_through(
    chosen: Tensor, others: Sequence[Tensor], bands: Tensor, logits: Tensor
) -> Tensor:
    """The chosen branch's output, with the router's gradient as if all branches had been mixed.

    The value is `chosen` exactly. The logits' gradient is that of the mixture of the branches by
    softmax(logits), the branches held fixed; with one sampled band it is so on average, since each
    counts 1/probability = 2 times.

    Args:
        chosen: (B, N, H, D), computed with the allocation in use; gradients flow through it.
        others: K tensors (B, N, H, D), computed with `bands[k]`; detached, so compute them under
            no_grad.
        bands: int (K, B, H) from `other_bands`.
        logits: (B, H, 3).

    Raises:
        ValueError: where others and bands do not match.
    """
    if len(others) != len(bands) or not 1 <= len(bands) < NUM_BANDS:
        raise ValueError(
            f"others has {len(others)} outputs for {len(bands)} bands; one or two for as many are "
            "allowed"
        )
    weight = (NUM_BANDS - 1) / len(bands)
    chance = logits.softmax(-1)
    out = chosen
    for other, band in zip(others, bands, strict=True):
        p = chance.gather(-1, band.long()[..., None])[:, None]
        slope = (weight * (p - p.detach())).to(chosen.dtype)
        out = out + slope * (other - chosen).detach()
    return out


def routing_loss(
    logits: Sequence[Tensor | None],
    costs: Sequence[float],
    *,
    budget: float,
    budget_weight: float = 1.0,
    entropy_weight: float = 0.01,
) -> Tensor:
    """The loss that keeps routers near a FLOP budget and their choice open.

    `budget_weight * max(0, cost / budget - 1)^2 - entropy_weight * entropy`: cost is the expected
    cost of softmax(logits) relative to dense, entropy its mean entropy over log 3, from 0 to 1. A
    positive entropy weight rewards entropy: it keeps the choice open early in training; lower it to
    0 later, or make it negative to sharpen.

    Args:
        logits: (B, H, 3) of every layer; None for a layer whose router did not run.
        costs: of one head as LOW, MID, HIGH and DENSE, from `AttentionPlan.band_costs`.
        budget: share of dense attention's cost, above 0.

    Raises:
        ValueError: for no logits at all, or a budget that is not positive.
    """
    present = [layer for layer in logits if layer is not None]
    if not present or not budget > 0:
        raise ValueError(
            f"logits holds {len(present)} layers and budget is {budget!r}; at least one layer with "
            "a learned router and a "
            'budget above 0 are allowed: use routing="hard"'
        )
    *cheap, dense = checked_costs(costs)
    log_p = torch.stack([layer.float().log_softmax(-1) for layer in present])
    chance = log_p.exp()
    # Costs stay numbers of the host: a copy to the device would wait for it, and no CUDA graph
    # holds one.
    cost = torch.stack(
        [p.mean() * (band / dense) for p, band in zip(chance.unbind(-1), cheap, strict=True)]
    ).sum()
    entropy = -(chance * log_p).sum(-1).mean() / math.log(NUM_BANDS)
    return budget_weight * (cost / budget - 1).relu().square() - entropy_weight * entropy
