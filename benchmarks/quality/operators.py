"""Ways in which a head can serve several bands, beside those of the library."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from freqformer.attention import NORM_EPS, Attend, FreqAttention, Tensors
from freqformer.config import FreqFormerConfig
from freqformer.grid import Grid
from freqformer.ops.backends import ImplChoice
from freqformer.ops.parameters import AttentionParameters
from freqformer.ops.routing import reference
from freqformer.ops.tokens import TokenOrder
from freqformer.routing import RoutingNetwork

NOISE_WEIGHT = 2.0
"""How much the low summaries' offset rises from the middle of the noise levels to the end, at
first."""


@dataclass(frozen=True)
class Mixing:
    """What a head does beside attending to its own band."""

    low_beside: bool = False
    """A LOW branch is added to the head's own."""
    gates: Literal["none", "token", "routed", "both"] = "none"
    """What branches are multiplied by: nothing; a linear function of the token; what a routing
    network makes of the layer's statistics and the timestep; the sum of the token's and the
    network's, which is the library's soft routing."""
    statistics: bool = True
    """Whether that network is given the layer's statistics, beside the timestep and the head."""
    weighed: bool = False
    """Whether a routing network adds to the offsets of the low, mid and high summaries."""

    def __post_init__(self) -> None:
        if self.low_beside and self.gates == "none":
            raise ValueError(
                "low_beside is True and gates 'none'; a LOW branch is added by a gate: choose which"
            )
        if self.soft and not self.low_beside:
            raise ValueError(
                f"low_beside is False and gates {self.gates!r}; a network weighs two branches: "
                "take True"
            )

    @property
    def soft(self) -> bool:
        """Whether a routing network has a say in gates."""
        return self.gates in ("routed", "both")


class MixedAttention(FreqAttention):
    """Heads with gated branches, or with summaries that a router weighs.

    At first the own branch is taken as it is and LOW left out. With own branch MID, tile means as
    low tokens, gates by token and no summaries this is Video Sparse Attention (Zhang et al., arXiv
    2505.13389), which has a gate for each channel.

    Args:
        dim, config: as in `FreqAttention`.
        allocation: the own band of every head, or with which a router starts.
        mixing: what is done beside it.
        routed: whether a router chooses the own bands.
    """

    def __init__(
        self,
        dim: int,
        config: FreqFormerConfig,
        allocation: Sequence[int],
        mixing: Mixing,
        *,
        routed: bool = False,
    ) -> None:
        weighing = "soft" if mixing.statistics else "timed"
        routing = "learned" if routed else weighing if mixing.soft else "fixed"
        options = {"routing": routing, "low_beside": mixing.low_beside}
        super().__init__(dim, len(allocation), config, allocation=allocation, **options)  # type: ignore[arg-type]
        self.mixing, self.weigher = mixing, None
        if mixing.gates == "token" and not mixing.low_beside:
            self.gates = nn.Linear(dim, self.num_heads)
            for parameter in self.gates.parameters():
                nn.init.zeros_(parameter)
        elif mixing.gates == "routed":
            self.gates = None
        if mixing.weighed:
            self.weigher = RoutingNetwork(self.num_heads, prior="none")
        self.held_logits: Tensor | None = None
        """(H, 3) in place of what soft routing makes, for tables; None for the network's own."""
        self._offsets: Tensor | None = None

    def gates_of(self, logits: Tensor) -> Tensor:
        """What logits (B, H, 3) of soft routing add to the gates of the own branch and of LOW, (B,
        2, H)."""
        weights = self._weights(logits)
        assert weights is not None
        return weights

    def _score(
        self,
        tensors: Tensors,
        hidden_states: Tensor,
        grid: Grid,
        timestep: Tensor,
        token_order: TokenOrder,
        impl: ImplChoice,
    ) -> tuple[Tensor | None, Tensor | None]:
        if self.held_logits is not None:
            return self.held_logits.expand(len(timestep), -1, -1), None
        if self.weigher is not None and self.summary_offsets is not None:
            features, norms = (*tensors[:2], hidden_states), (self.query_norm, self.key_norm)
            statistics = reference.statistics(
                features, norms, NORM_EPS, grid, self.config, token_order
            )
            offsets = self.summary_offsets + self.weigher(statistics, timestep)
            lean = NOISE_WEIGHT * (2 * timestep.to(offsets) - 1)
            self._offsets = offsets + functional.pad(lean[:, None, None], (0, 2))
        return super()._score(tensors, hidden_states, grid, timestep, token_order, impl)

    def _learned(self, rotary: tuple[Tensor, Tensor] | None) -> AttentionParameters:
        parameters = super()._learned(rotary)
        return (
            parameters
            if self._offsets is None
            else replace(parameters, summary_offsets=self._offsets)
        )

    def _with_low(
        self,
        out: Tensor,
        gates: Tensor | None,
        weights: Tensor | None,
        attend: Attend,
        impl: ImplChoice,
    ) -> Tensor:
        if gates is None or self.mixing.low_beside:
            return super()._with_low(out, gates, weights, attend, impl)
        return torch.addcmul(out, out, gates.to(out.dtype).transpose(2, 3))
