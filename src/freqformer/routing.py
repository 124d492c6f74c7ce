"""Which band each head belongs to: statistics, the routing network, allocation, training gradients, frozen tables.

Shape legend: B batch, N video tokens, H heads, D head_dim, C channels, S statistics, K other bands, T timestep buckets,
L layers. Timesteps are in [0, 1], and 1 is the most noise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from freqformer.bands import band_energies, check_features
from freqformer.config import Band, FreqFormerConfig
from freqformer.grid import Grid

Prior = Literal["paper", "none"]
RouterTraining = Literal["off", "all", "sampled"]

NUM_BANDS = 3
"""Bands that a router chooses from: LOW, MID and HIGH."""
NUM_STATISTICS = 8
"""Log energies of 3 bands for queries and for keys, and the input's roughness in time and in space."""
PRIOR_STRENGTH = 0.75
"""Logits that the paper's prior adds at most; below 1, so a head's initial band can still win at the extremes."""
INITIAL_STRENGTH = 1.0
"""Logit that a head's initial band starts with."""


def sinusoidal_embedding(timestep: Tensor, width: int, *, fastest: float = 1000.0) -> Tensor:
    """Cosines and sines of a timestep: (B,) in [0, 1] -> (B, width), float32.

    Angular frequencies fall geometrically from `fastest` by a factor of 10,000 (Vaswani et al., 2017).
    """
    steps = torch.arange(width // 2, device=timestep.device, dtype=torch.float32)
    angles = timestep.float()[:, None] * fastest * torch.exp(-math.log(10_000) / (width // 2) * steps)
    return torch.cat([angles.cos(), angles.sin()], -1)


@torch.no_grad()
def routing_statistics(query: Tensor, key: Tensor, hidden_states: Tensor, grid: Grid, config: FreqFormerConfig) -> Tensor:
    """What a router knows of a layer's input; no gradient flows through it.

    Args:
        query, key: (B, N, H, D) in raster order, before the rotary embedding.
        hidden_states: (B, N, C) in raster order, the layer's input.
        grid, config: the token grid and the bands' definition.

    Returns: (B, H, 8) float32: log mean energy of the low, mid and high band of queries, then of keys, then the
        roughness of the input in time and in space, the same for every head. Roughness is the mean squared difference
        of neighbours over the variance: 0 where all is constant, 2 for white noise.

    Raises:
        ValueError: for tokens that are not the grid's.
    """
    check_features(hidden_states, grid, rank=3, name="hidden_states")
    energies = [_log_energies(features, grid, config) for features in (query, key)]
    rough = _roughness(hidden_states.float(), grid)[:, None].expand(-1, query.shape[2], -1)
    return torch.cat([*energies, rough], -1).float()


def _log_energies(features: Tensor, grid: Grid, config: FreqFormerConfig) -> Tensor:
    """(B, N, H, D) -> (B, H, 3): log of the energy per token and channel."""
    mean = band_energies(features.transpose(1, 2), grid, config) / (grid.num_tokens * features.shape[-1])
    return (mean + 1e-6).log()


def _roughness(x: Tensor, grid: Grid) -> Tensor:
    """(B, N, C) -> (B, 2): along time, and along height and width together."""
    variance = (x - x.mean(1, keepdim=True)).square().mean((1, 2)) + 1e-6
    video = x.unflatten(1, grid.shape)
    squares, pairs = [], []
    for axis in (1, 2, 3):
        step = video.diff(dim=axis).square()
        squares.append(step.sum((1, 2, 3, 4)))
        pairs.append(max(step[0].numel(), 1))
    time = squares[0] / pairs[0]
    space = (squares[1] + squares[2]) / (pairs[1] + pairs[2])
    return torch.stack([time / variance, space / variance], -1)


class RoutingNetwork(nn.Module):
    """A small network, shared over heads, that scores the bands of every head.

    Args:
        num_heads: heads of the layer.
        hidden: width of the two hidden layers; 72 gives about 10,000 parameters.
        prior: `paper` adds fixed logits `0.75 * (2t - 1)` to LOW and the negative to HIGH, so LOW is favoured at high
            noise and HIGH at low noise (arXiv 2604.22808); `none` adds nothing.
        initial: the band that every head starts with, LOW, MID or HIGH; it gets a learned logit of 1 at first. None
            starts all heads alike.

    Raises:
        ValueError: for an unknown prior, or an initial band out of range.
    """

    def __init__(
        self, num_heads: int, hidden: int = 72, prior: Prior = "paper", initial: Sequence[int] | None = None
    ) -> None:
        super().__init__()
        if prior not in get_args(Prior):
            raise ValueError(f"prior is {prior!r}; choose one of {', '.join(get_args(Prior))}")
        self.num_heads, self.prior, self.time_width = num_heads, prior, 32
        self.head_embedding = nn.Parameter(torch.randn(num_heads, 16))
        self.head_bias = nn.Parameter(_initial_bias(num_heads, initial))
        inputs = NUM_STATISTICS + self.time_width + self.head_embedding.shape[1]
        last = nn.Linear(hidden, NUM_BANDS)
        self.layers = nn.Sequential(nn.Linear(inputs, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU(), last)
        # The prior and the initial bands lead at first, but every input already has a say.
        nn.init.normal_(last.weight, std=0.1 / math.sqrt(hidden))
        nn.init.zeros_(last.bias)

    def forward(self, statistics: Tensor, timestep: Tensor) -> Tensor:
        """Score the bands.

        Args:
            statistics: (B, H, 8) from `routing_statistics`; detached here.
            timestep: (B,) in [0, 1], 1 is the most noise; detached here.

        Returns: logits (B, H, 3) of LOW, MID and HIGH, float32 at least.

        Raises:
            ValueError: for statistics or a timestep of another shape.
        """
        expected = (timestep.shape[0] if timestep.ndim == 1 else -1, self.num_heads, NUM_STATISTICS)
        if tuple(statistics.shape) != expected:
            raise ValueError(
                f"statistics has shape {tuple(statistics.shape)} and timestep {tuple(timestep.shape)}; (batch, "
                f"{self.num_heads}, {NUM_STATISTICS}) and (batch,) are allowed: use routing_statistics on this layer"
            )
        weight = self.layers[0].weight
        assert isinstance(weight, Tensor)
        # A choice steps where rounding differs, so the router never runs in the lower precision of autocast.
        with torch.autocast(statistics.device.type, enabled=False):
            # Fixed scaling: a normalisation would remove the scale of the energies.
            known = statistics.detach().to(weight) / 4
            time = sinusoidal_embedding(timestep.detach(), self.time_width, fastest=100.0).to(weight)
            batch, heads = known.shape[:2]
            parts = [known, time[:, None].expand(-1, heads, -1), self.head_embedding.expand(batch, -1, -1)]
            logits = self.layers(torch.cat(parts, -1)) + self.head_bias
            logits = logits if logits.dtype == torch.float64 else logits.float()
        return logits + self._prior(timestep.detach().to(logits))[:, None]

    def _prior(self, timestep: Tensor) -> Tensor:
        """(B,) -> (B, 3) logits."""
        lean = (2 * timestep - 1) * (PRIOR_STRENGTH if self.prior == "paper" else 0.0)
        return torch.stack([lean, torch.zeros_like(lean), -lean], -1)


def _initial_bias(num_heads: int, initial: Sequence[int] | None) -> Tensor:
    bias = torch.zeros(num_heads, NUM_BANDS)
    if initial is not None:
        bands = [int(band) for band in initial]
        if len(bands) != num_heads or not all(0 <= band < NUM_BANDS for band in bands):
            raise ValueError(
                f"initial is {bands}; {num_heads} bands from 0 to 2 are allowed (LOW, MID, HIGH), one per head: "
                'a layer with DENSE heads takes routing="fixed"'
            )
        bias[torch.arange(num_heads), torch.tensor(bands)] = INITIAL_STRENGTH
    return bias


def allocate(logits: Tensor, *, costs: Sequence[float] | None = None, budget: float | None = None) -> Tensor:
    """The band of every head: the best by its logits, or the best allocation that a FLOP budget allows.

    Args:
        logits: (B, H, 3).
        costs: cost of one head as LOW, MID, HIGH and DENSE, from `AttentionPlan.band_costs`; needed with a budget.
        budget: share of dense attention's cost that all heads of a sample may take together; None for no limit. The
            allocation with the largest sum of logits within it is found exactly.

    Returns: int64 (B, H) of bands. Nothing waits for the GPU.

    Raises:
        ValueError: for a budget without costs, or one below the cheapest allocation.
    """
    if budget is None:
        return logits.argmax(-1)
    low, mid, high, dense = _checked_costs(costs)
    heads = logits.shape[-2]
    smallest = min(low, mid, high) / dense
    # Relative slack: the smallest feasible budget itself must not fail by rounding.
    if not budget * (1 + 1e-9) >= smallest:
        raise ValueError(
            f"budget is {budget!r} of dense attention; from {math.ceil(smallest * 1e6) / 1e6} up is feasible here: raise "
            "it, or lower the cost of the cheapest band (compression, window, summary_tokens)"
        )
    count = torch.arange(heads + 1, dtype=torch.float64)
    n_mid, n_high = count[:, None], count[None, :]
    total = (heads - n_mid - n_high) * low + n_mid * mid + n_high * high
    allowed = (n_mid + n_high <= heads) & (total <= budget * (1 + 1e-9) * heads * dense)
    return _best_by_counts(logits.detach(), allowed.to(logits.device))


def _checked_costs(costs: Sequence[float] | None) -> tuple[float, float, float, float]:
    if costs is None or len(costs) != NUM_BANDS + 1 or not all(0 < cost < math.inf for cost in costs):
        raise ValueError(f"costs is {costs!r}; four positive numbers are allowed: pass AttentionPlan.band_costs()")
    return (costs[0], costs[1], costs[2], costs[3])


def _best_by_counts(logits: Tensor, allowed: Tensor) -> Tensor:
    """The allocation of largest score whose counts are allowed.

    Heads of a layer cost the same per band, so a cost is a function of (heads in MID, heads in HIGH) and a dynamic
    program over these counts is exact.

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


def other_bands(allocation: Tensor, mode: RouterTraining, generator: torch.Generator | None = None) -> Tensor:
    """The bands to compute beside the chosen one while a router trains.

    Args:
        allocation: int (B, H), LOW, MID or HIGH.
        mode: `all` gives both other bands of every head, `sampled` one of them, drawn with probability 1/2.
        generator: for the draw; the default one is restored by gradient checkpointing.

    Returns: int64 (K, B, H), K = 2 or 1; each of the K is an allocation to call `frequency_attention` with.

    Raises:
        ValueError: for another mode.
    """
    if mode not in ("all", "sampled"):
        raise ValueError(f"mode is {mode!r}; 'all' and 'sampled' are allowed: with 'off' no other band is computed")
    steps = torch.arange(1, NUM_BANDS, device=allocation.device)[:, None, None].expand(-1, *allocation.shape)
    if mode == "sampled":
        device = generator.device if generator is not None else allocation.device
        steps = torch.randint(1, NUM_BANDS, (1, *allocation.shape), generator=generator, device=device).to(
            allocation.device
        )
    return (allocation.long() + steps) % NUM_BANDS


def straight_through(chosen: Tensor, others: Sequence[Tensor], bands: Tensor, logits: Tensor) -> Tensor:
    """The chosen branch's output, with the router's gradient as if all branches had been mixed.

    The value is `chosen` exactly. The logits' gradient is that of the mixture of the branches by softmax(logits), the
    branches held fixed; with one sampled band it is so on average, since each counts 1/probability = 2 times.

    Args:
        chosen: (B, N, H, D), computed with the allocation in use; gradients flow through it.
        others: K tensors (B, N, H, D), computed with `bands[k]`; detached, so compute them under no_grad.
        bands: int (K, B, H) from `other_bands`.
        logits: (B, H, 3).

    Raises:
        ValueError: where others and bands do not match.
    """
    if len(others) != len(bands) or not 1 <= len(bands) < NUM_BANDS:
        raise ValueError(f"others has {len(others)} outputs for {len(bands)} bands; one or two for as many are allowed")
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

    `budget_weight * max(0, cost / budget - 1)^2 - entropy_weight * entropy`: cost is the expected cost of softmax(logits)
    relative to dense, entropy its mean entropy over log 3, from 0 to 1. A positive entropy weight rewards entropy: it
    keeps the choice open early in training; lower it to 0 later, or make it negative to sharpen.

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
            f"logits holds {len(present)} layers and budget is {budget!r}; at least one layer with a learned router and a "
            'budget above 0 are allowed: use routing="learned"'
        )
    *cheap, dense = _checked_costs(costs)
    relative = torch.tensor(cheap, dtype=torch.float32, device=present[0].device) / dense
    log_p = torch.stack([layer.float().log_softmax(-1) for layer in present])
    cost = (log_p.exp() * relative).sum(-1).mean()
    entropy = -(log_p.exp() * log_p).sum(-1).mean() / math.log(NUM_BANDS)
    return budget_weight * (cost / budget - 1).relu().square() - entropy_weight * entropy
