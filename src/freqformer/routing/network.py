"""What a router knows of a layer, and the network that scores the bands of every head.

Shape legend: B batch, N video tokens, H heads, D head_dim, C channels. Timesteps are in [0, 1], and 1 is the most noise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from freqformer.bands import band_energies, check_features
from freqformer.config import FreqFormerConfig
from freqformer.grid import Grid

Prior = Literal["paper", "none"]

NUM_BANDS = 3
"""Bands that a router chooses from: LOW, MID and HIGH."""
NUM_STATISTICS = 8
"""Log energies of 3 bands for queries and for keys, and the input's roughness in time and in space."""
PRIOR_STRENGTH = 0.75
"""Logits that the paper's prior adds at most. With INITIAL_STRENGTH 1 it moves an untrained LOW or HIGH head only at the
last sixth of the noise levels (2 * 0.75 * |2t - 1| > 1), and a MID head never."""
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
        pairs.append(step[0].numel())
    # A single frame, or a single place, has no neighbours and no roughness.
    time = squares[0] / max(pairs[0], 1)
    space = (squares[1] + squares[2]) / max(pairs[1] + pairs[2], 1)
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
        # The prior and the initial bands lead at first, but every input already has a say: the default initialisation
        # would shrink it at every layer.
        for layer in self.layers:
            if isinstance(layer, nn.Linear):
                nn.init.kaiming_normal_(layer.weight)
                nn.init.zeros_(layer.bias)
        nn.init.normal_(last.weight, std=0.1 / math.sqrt(hidden))

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
