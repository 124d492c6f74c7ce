"""Ways in which a head can serve several bands, beside those of the library."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from freqformer.attention import NORM_EPS, FreqAttention, ImplChoice, frequency_attention
from freqformer.config import Band, FreqFormerConfig
from freqformer.grid import Grid
from freqformer.ops.parameters import AttentionParameters
from freqformer.ops.routing import reference
from freqformer.ops.tokens import TokenOrder
from freqformer.routing import RoutingNetwork

MIXED = ("low_beside", "gate", "weighed", "weighed_gate")
"""`low_beside`: in every head the gated sum of a LOW branch and its own band; `gate`: its own band, gated; `weighed`: its
own band, with summaries that a router weighs; `weighed_gate`: that, gated."""
NOISE_WEIGHT = 2.0
"""How much the low summaries' offset rises from the middle of the noise levels to the end, at first."""


class MixedAttention(FreqAttention):
    """Heads of fixed bands that are gated, or whose summaries a router weighs.

    Gates are linear in the token, one for each head and branch; at first the own branch is taken as it is and LOW left out.
    With own branch MID, tile means as low tokens and no summaries `low_beside` is Video Sparse Attention (Zhang et al.,
    arXiv 2505.13389), which has a gate for each channel.

    A router that weighs is the library's routing network, whose logits are added to the offsets of the low, mid and high
    summaries: which bands a head attends to follows from the layer's statistics and the timestep, at no cost in FLOPs.

    Args:
        dim, config: as in `FreqAttention`.
        allocation: the own band of every head.
        operator: one of `MIXED`.
    """

    def __init__(self, dim: int, config: FreqFormerConfig, allocation: Sequence[int], operator: str) -> None:
        super().__init__(dim, len(allocation), config, allocation=allocation, routing="fixed")
        self.branches = [list(allocation)]
        if operator == "low_beside":
            self.branches.append([Band.LOW.value] * self.num_heads)
        self.to_gates: nn.Linear | None = None
        if operator != "weighed":
            self.to_gates = nn.Linear(dim, len(self.branches) * self.num_heads)
            nn.init.zeros_(self.to_gates.weight)
            nn.init.zeros_(self.to_gates.bias)
        self.weigher: RoutingNetwork | None = None
        if operator.startswith("weighed"):
            self.weigher = RoutingNetwork(self.num_heads, prior="none")

    def forward(
        self,
        hidden_states: Tensor,
        grid: Grid,
        timestep: Tensor,
        rotary: tuple[Tensor, Tensor] | None = None,
        *,
        token_order: TokenOrder = "tile",
        impl: ImplChoice | None = None,
    ) -> Tensor:
        """As `FreqAttention.forward`."""
        tensors = [to(hidden_states).unflatten(2, (self.num_heads, -1)) for to in (self.to_q, self.to_k, self.to_v)]
        gates = None
        if self.to_gates is not None:
            gates = self.to_gates(hidden_states).unflatten(2, (len(self.branches), -1, 1)).unbind(2)
        # Statistics and summaries' weights are taken in float32; autocast would take them in half precision.
        with torch.autocast(hidden_states.device.type, enabled=False):
            parameters = AttentionParameters(
                gains=self.gains,
                rotary=rotary,
                query_norm=self.query_norm,
                key_norm=self.key_norm,
                norm_eps=NORM_EPS,
            )
            if self.config.summary_tokens:
                offsets = self._offsets((tensors[0], tensors[1], hidden_states), grid, timestep, token_order)
                parameters = replace(parameters, summary_queries=self.summary_queries, summary_offsets=offsets)
            attend = partial(
                frequency_attention,
                *tensors,
                grid=grid,
                config=self.config,
                parameters=parameters,
                token_order=token_order,
                impl=impl or self.impl,
            )
            # The own band first; its gate is what it is taken more or less than once.
            outputs = [attend(allocation=allocation) for allocation in self.branches]
            out = outputs[0] if gates is None else (1 + gates[0]) * outputs[0]
            if gates is not None and len(outputs) > 1:
                out = out + gates[1] * outputs[1]
        self.last_allocation = self.allocation.expand(len(hidden_states), -1)
        return self.to_out(out.flatten(2))

    def _offsets(
        self, features: tuple[Tensor, Tensor, Tensor], grid: Grid, timestep: Tensor, token_order: TokenOrder
    ) -> Tensor | None:
        """Of the summaries: (H, 3), or (B, H, 3) where a router weighs."""
        if self.weigher is None or self.summary_offsets is None:
            return self.summary_offsets
        norms = (self.query_norm, self.key_norm)
        statistics = reference.statistics(features, norms, NORM_EPS, grid, self.config, token_order)
        offsets = self.summary_offsets + self.weigher(statistics, timestep)
        lean = NOISE_WEIGHT * (2 * timestep.to(offsets) - 1)
        return offsets + functional.pad(lean[:, None, None], (0, 2))
