"""Ways in which a head can serve several bands, beside those of the library."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from freqformer.attention import FreqAttention, LayerCall, Projected
from freqformer.attention.inputs import QK
from freqformer.config import FreqFormerConfig, Routing
from freqformer.routing import (
    Decision,
    RouterInputs,
    RoutingNetwork,
    SoftRouter,
    branch_weights,
)
from freqformer.routing.statistics import NUM_STATISTICS

NOISE_WEIGHT = 2.0
"""How much the low summaries' offset rises from the middle of the noise levels to the end, at
first."""


@dataclass(frozen=True)
class Mixing:
    """What a head does beside attending to its own band."""

    low_branch: bool = False
    """A LOW branch is added to the head's own."""
    gates: Literal["none", "token", "routed", "both"] = "none"
    """What branches are multiplied by: nothing; a linear function of the token; what a routing
    network makes of the layer's statistics and the timestep; the sum of the token's and the
    network's, which is the library's soft routing."""
    statistics: bool = True
    """Whether that network is given the layer's statistics, beside the timestep and the head."""
    log_snr: bool = False
    """Whether that network is given the logarithm of the signal-to-noise ratio in place of the
    layer's statistics."""
    weighed: bool = False
    """Whether a routing network adds to the offsets of the low, mid and high summaries."""

    def __post_init__(self) -> None:
        if self.low_branch and self.gates == "none":
            raise ValueError(
                "low_branch is True and gates 'none'; a LOW branch is added by a gate: choose which"
            )
        if self.log_snr and self.gates != "both":
            raise ValueError(
                f"log_snr is True and gates {self.gates!r}; it is a clock of the network that adds "
                "to the token's gates: take 'both'"
            )
        if self.soft and not self.low_branch:
            raise ValueError(
                f"low_branch is False and gates {self.gates!r}; a network weighs two branches: "
                "take True"
            )

    @property
    def soft(self) -> bool:
        """Whether a routing network has a say in gates."""
        return self.gates in ("routed", "both")


class SummaryRouter(RoutingNetwork):
    """The layer's own bands; a network and the noise level weigh their summaries.

    Args:
        num_heads: heads of the layer.
    """

    def __init__(self, num_heads: int) -> None:
        super().__init__(num_heads, prior="none")

    def decide(self, given: RouterInputs) -> Decision:
        """See `freqformer.routing.Router`."""
        offsets, _ = given.score(self)
        lean = NOISE_WEIGHT * (2 * given.timestep.to(offsets) - 1)
        return Decision(
            given.allocation.expand(len(offsets), -1),
            summary_offsets=offsets + functional.pad(lean[:, None, None], (0, 2)),
        )


class LogSnrRouter(SoftRouter):
    """Soft routing whose network sees the noise level's logarithm in place of statistics.

    Args:
        num_heads: heads of the layer.
        bands: the own band of every head.
    """

    def __init__(self, num_heads: int, bands: Sequence[int]) -> None:
        super().__init__(num_heads)
        self.bands = tuple(bands)

    def decide(self, given: RouterInputs) -> Decision:
        """See `freqformer.routing.Router`."""
        clock = log_snr_steps(given.timestep)[:, None].expand(-1, self.num_heads, -1)
        logits = self(clock, given.timestep)
        bands = given.allocation.expand(len(logits), -1)
        return Decision(bands, branch_weights(logits, self.bands), logits, present=given.present)


def log_snr_steps(timestep: Tensor) -> Tensor:
    """Soft steps over the logarithm of the signal-to-noise ratio, 2 log((1 - t) / t).

    Eight with middles from -7 to 7: (B,) in [0, 1] ->
    float32 (B, 8), from -4 to 4, as large as the statistics that they replace.
    """
    snr = 2 * torch.special.logit(1 - timestep.float(), eps=1e-4)
    middles = torch.linspace(-7, 7, NUM_STATISTICS, device=timestep.device)
    return 4 * ((snr[:, None] - middles) / 2).tanh()


class MixedAttention(FreqAttention):
    """Heads with gated branches, or with summaries that a router weighs.

    At first the own branch is taken as it is and LOW left out. With own branch MID, tile means as
    low tokens, gates by token and no summaries this is Video Sparse Attention (Zhang et al., arXiv
    2505.13389), which has a gate for each channel.

    Args:
        dim, config: as in `FreqAttention`; who has which band is said by the others.
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
        weighing: Routing = "soft" if mixing.statistics else "timestep"
        routing: Routing = "hard" if routed else weighing if mixing.soft else "fixed"
        record = replace(
            config,
            allocation=tuple(allocation),
            routing=routing,
            low_branch=mixing.low_branch,
            prior="noise_level" if routed else "none",
        )
        super().__init__(dim, len(allocation), record)
        self.mixing = mixing
        if mixing.gates == "token" and not mixing.low_branch:
            self.gates = nn.Linear(dim, self.num_heads)
            for parameter in self.gates.parameters():
                nn.init.zeros_(parameter)
        elif mixing.gates == "routed":
            self.gates = None
        if mixing.weighed:
            self.router = SummaryRouter(self.num_heads)
        if mixing.log_snr:
            self.router = LogSnrRouter(self.num_heads, self.bands)
        self.held_logits: Tensor | None = None
        """(H, 3) in place of what soft routing makes, for tables; None for the network's own."""

    def gates_of(self, logits: Tensor) -> Tensor:
        """What logits (B, H, 3) of soft routing add to the gates of the own branch and of LOW, (B,
        2, H)."""
        return branch_weights(logits, self.bands)

    def decide(self, queries: QK, call: LayerCall) -> Decision:
        """As `FreqAttention`, unless logits are held."""
        decision = super().decide(queries, call)
        if self.held_logits is None:
            return decision
        logits = self.held_logits.expand(len(call.timestep), -1, -1)
        return replace(decision, branch_weights=self.gates_of(logits), logits=logits)

    def attend(self, projected: Projected, decision: Decision, call: LayerCall) -> Tensor:
        """As `FreqAttention`; where there is no LOW branch, gates multiply the own one."""
        out = super().attend(projected, decision, call)
        if projected.gates is None or self.mixing.low_branch:
            return out
        return torch.addcmul(out, out, projected.gates.to(out.dtype).transpose(2, 3))
