"""The network that scores the bands of every head.

Shape legend: B batch, H heads. Timesteps are in [0, 1], and 1 is the most noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from freqformer._validate import check_choice, check_whole
from freqformer.config import Prior
from freqformer.routing.statistics import NUM_STATISTICS

NUM_BANDS = 3
"""Bands that a router chooses from: LOW, MID and HIGH."""
PRIOR_STRENGTH = 0.75
"""Logits that the prior by noise level adds at most. With INITIAL_STRENGTH 1 it moves an untrained
LOW or HIGH head only at the last sixth of the noise levels (2 * 0.75 * |2t - 1| > 1), and a MID
head never."""
STATISTIC_SCALE = 0.25
FASTEST = 100.0
"""Angular frequency of the timestep's fastest sinusoid."""
INITIAL_STRENGTH = 1.0
"""Logit that a head's initial band starts with."""


def sinusoidal_embedding(timestep: Tensor, width: int, *, fastest: float = 1000.0) -> Tensor:
    """Cosines and sines of a timestep: (B,) in [0, 1] -> (B, width), float32.

    Angular frequencies fall geometrically from `fastest` by a factor of 10,000 (Vaswani et al.,
    2017).
    """
    steps = torch.arange(width // 2, device=timestep.device, dtype=torch.float32)
    angles = (
        timestep.float()[:, None] * fastest * torch.exp(-math.log(10_000) / (width // 2) * steps)
    )
    return torch.cat([angles.cos(), angles.sin()], -1)


class WideLinear(nn.Linear):
    """A linear layer that computes in its input's dtype, whatever dtype its weights are kept in."""

    def forward(self, x: Tensor | None = None) -> Any:  # type: ignore[override]
        """(..., inputs) -> (..., outputs); without an input weight and bias, for other code that
        takes them."""
        if x is None:
            return self.weight, self.bias
        bias = None if self.bias is None else self.bias.to(x)
        return functional.linear(x, self.weight.to(x), bias)


class RoutingNetwork(nn.Module):
    """A small network, shared over heads, that scores the bands of every head.

    Args:
        num_heads: heads of the layer.
        hidden: width of the two hidden layers; 72 gives about 10,000 parameters.
        prior: `noise_level` adds fixed logits `0.75 * (2t - 1)` to LOW and the negative to HIGH, so
            LOW is favoured at high noise and HIGH at low noise (arXiv 2604.22808); `none` adds
            nothing.
        initial: the band that every head starts with, LOW, MID or HIGH; it gets a learned logit of
            1 at first. None starts all heads alike.
        statistics: whether it is given the layer's statistics. False leaves it the timestep and the
            head.

    Raises:
        ValueError: for an unknown prior, or an initial band out of range.
    """

    def __init__(
        self,
        num_heads: int,
        hidden: int = 72,
        prior: Prior = "none",
        initial: Sequence[int] | None = None,
        *,
        statistics: bool = True,
    ) -> None:
        super().__init__()
        check_choice("prior", prior, get_args(Prior))
        check_whole("num_heads", num_heads, 1)
        self.num_heads, self.prior, self.time_width = num_heads, prior, 32
        self.num_statistics = NUM_STATISTICS if statistics else 0
        self.head_embedding = nn.Parameter(torch.randn(num_heads, 16))
        self.head_bias = nn.Parameter(_initial_bias(num_heads, initial))
        inputs = self.num_statistics + self.time_width + self.head_embedding.shape[1]
        last = WideLinear(hidden, NUM_BANDS)
        self.layers = nn.Sequential(
            WideLinear(inputs, hidden), nn.SiLU(), WideLinear(hidden, hidden), nn.SiLU(), last
        )
        # The prior and the initial bands lead at first, but every input already has a say: the
        # default initialisation would shrink it at every layer.
        for layer in self.layers:
            if isinstance(layer, nn.Linear):
                nn.init.kaiming_normal_(layer.weight)
                nn.init.zeros_(layer.bias)
        nn.init.normal_(last.weight, std=0.1 / math.sqrt(hidden))

    def forward(
        self,
        statistics: Tensor | None,
        timestep: Tensor,
        *,
        launch: Callable[[list[Tensor]], Any] | None = None,
    ) -> Any:
        """Score the bands.

        Args:
            statistics: (B, H, 8) from `routing_statistics`; detached here. None where the network
                is made without.
            timestep: (B,) in [0, 1], 1 is the most noise; detached here.
            launch: what computes the scores in place of this code, from the embedding and bias of
                heads and then weight and bias of each layer; statistics are its own then. It is
                called where all hooks on this module and its layers have run, which may be what
                brings the weights.

        Returns: what `launch` returns, or logits (B, H, 3) of LOW, MID and HIGH, float32 at least.

        Raises:
            ValueError: for statistics or a timestep of another shape.
        """
        linear = [layer for layer in self.layers if isinstance(layer, WideLinear)]
        if launch is not None:
            return launch(
                [self.head_embedding, self.head_bias, *(x for layer in linear for x in layer())]
            )
        self._check(statistics, timestep)
        # A choice steps where rounding differs, so the router never runs in less than float32,
        # whatever its weights are in.
        wide = torch.float64 if self.head_bias.dtype == torch.float64 else torch.float32
        with torch.autocast(timestep.device.type, enabled=False):
            time = sinusoidal_embedding(timestep.detach(), self.time_width, fastest=FASTEST).to(
                wide
            )
            head = self.head_embedding.to(wide).expand(len(time), -1, -1)
            parts = [time[:, None].expand(-1, self.num_heads, -1), head]
            if statistics is not None:
                # Fixed scaling: a normalisation would remove the scale of the energies.
                parts.insert(0, statistics.detach().to(wide) * STATISTIC_SCALE)
            logits = self.layers(torch.cat(parts, -1)) + self.head_bias.to(wide)
        return logits + self._prior(timestep.detach().to(wide))[:, None]

    @property
    def prior_strength(self) -> float:
        """Logits that the prior adds at most."""
        return PRIOR_STRENGTH if self.prior == "noise_level" else 0.0

    def _check(self, statistics: Tensor | None, timestep: Tensor) -> None:
        allowed = (
            timestep.shape[0] if timestep.ndim == 1 else -1,
            self.num_heads,
            self.num_statistics,
        )
        given = None if statistics is None else tuple(statistics.shape)
        if timestep.ndim != 1 or given != (allowed if self.num_statistics else None):
            wanted = (
                f"(batch, {self.num_heads}, {self.num_statistics})"
                if self.num_statistics
                else "None"
            )
            raise ValueError(
                f"statistics has shape {given} and timestep {tuple(timestep.shape)}; {wanted} and "
                "(batch,) are allowed: "
                + (
                    "use routing_statistics on this layer"
                    if self.num_statistics
                    else "it was made with statistics=False"
                )
            )

    def _prior(self, timestep: Tensor) -> Tensor:
        """(B,) -> (B, 3) logits."""
        lean = (2 * timestep - 1) * self.prior_strength
        return torch.stack([lean, torch.zeros_like(lean), -lean], -1)


def _initial_bias(num_heads: int, initial: Sequence[int] | None) -> Tensor:
    bias = torch.zeros(num_heads, NUM_BANDS)
    if initial is not None:
        bands = [int(band) for band in initial]
        if len(bands) != num_heads or not all(0 <= band < NUM_BANDS for band in bands):
            raise ValueError(
                f"initial is {bands}; {num_heads} bands from 0 to 2 are allowed (LOW, MID, HIGH), "
                "one per head: "
                'a layer with DENSE heads takes routing="fixed"'
            )
        bias[torch.arange(num_heads), torch.tensor(bands)] = INITIAL_STRENGTH
    return bias
