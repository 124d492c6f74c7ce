"""From the router's scores to the band of every head, within a FLOP budget if there is one.

Shape legend: B batch, H heads.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from freqformer.config import Band
from freqformer.routing.network import NUM_BANDS


def allocate(
    logits: Tensor, *, costs: Sequence[float] | None = None, budget: float | None = None
) -> Tensor:
    """The band of every head: the best by its logits, or the best allocation that a FLOP budget
    allows.

    Args:
        logits: (B, H, 3).
        costs: cost of one head as LOW, MID and HIGH, each with what it takes in addition to its
            band, and of dense attention alone: from `FreqAttention.band_costs`, or of heads without
            a LOW branch from `AttentionPlan.band_costs`. Needed with a budget.
        budget: share of dense attention's cost that all heads of a sample may take together, above
            0; None for no limit. The allocation with the largest sum of logits within it is found
            exactly.

    Returns: int64 (B, H) of bands. Nothing waits for the GPU.

    Raises:
        ValueError: for a budget without costs, or one below the cheapest allocation.
    """
    if budget is None:
        return logits.argmax(-1)
    low, mid, high, dense = checked_costs(costs)
    heads = logits.shape[-2]
    smallest = min(low, mid, high) / dense
    # Relative slack: the smallest feasible budget itself must not fail by rounding.
    if not budget * (1 + 1e-9) >= smallest:
        raise ValueError(
            f"budget is {budget!r} of dense attention; from {math.ceil(smallest * 1e6) / 1e6} up "
            "is feasible here: raise "
            "it, or lower the cost of the cheapest band (compression, window, summary_tokens)"
        )
    # Made on the device: a copy from the host would wait for it.
    count = torch.arange(heads + 1, dtype=torch.float64, device=logits.device)
    n_mid, n_high = count[:, None], count[None, :]
    total = (heads - n_mid - n_high) * low + n_mid * mid + n_high * high
    allowed = (n_mid + n_high <= heads) & (total <= budget * (1 + 1e-9) * heads * dense)
    return _best_by_counts(logits.detach(), allowed)


def checked_costs(costs: Sequence[float] | None) -> tuple[float, float, float, float]:
    """Costs of one head as LOW, MID, HIGH and DENSE; ValueError unless they are four positive
    numbers."""
    if (
        costs is None
        or len(costs) != NUM_BANDS + 1
        or not all(0 < cost < math.inf for cost in costs)
    ):
        raise ValueError(
            f"costs is {costs!r}; four positive numbers are allowed: pass "
            "AttentionPlan.band_costs()"
        )
    return (costs[0], costs[1], costs[2], costs[3])


def _best_by_counts(logits: Tensor, allowed: Tensor) -> Tensor:
    """The allocation of largest score whose counts are allowed.

    Heads of a layer cost the same per band, so a cost is a function of (heads in MID, heads in
    HIGH) and a dynamic program over these counts is exact.

    Args:
        logits: (B, H, 3).
        allowed: bool (H + 1, H + 1) over (heads in MID, heads in HIGH).
    """
    batch, heads, _ = logits.shape
    score = logits.new_full((batch, heads + 1, heads + 1), -math.inf, dtype=torch.float64)
    score[:, 0, 0] = 0
    choices = []
    for head in range(heads):
        gain = logits[:, head].double()
        mid = functional.pad(score, (0, 0, 1, 0))[:, :-1].clone()
        high = functional.pad(score, (1, 0))[:, :, :-1].clone()
        mid[:, 0], high[:, :, 0] = -math.inf, -math.inf
        score, choice = (torch.stack([score, mid, high], -1) + gain[:, None, None]).max(-1)
        choices.append(choice)
    cell = score.masked_fill(~allowed, -math.inf).flatten(1).argmax(-1)
    n_mid, n_high = cell // (heads + 1), cell % (heads + 1)
    rows = torch.arange(batch, device=logits.device)
    bands = []
    for choice in reversed(choices):
        band = choice[rows, n_mid, n_high]
        n_mid, n_high = n_mid - (band == Band.MID).long(), n_high - (band == Band.HIGH).long()
        bands.append(band)
    return torch.stack(bands[::-1], -1)
