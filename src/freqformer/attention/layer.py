"""The attention layer: heads of bands, and who says which.

Shape legend: B batch, N video tokens, C channels, H heads, D head_dim.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from typing import Any, get_args

import torch
from torch import Tensor, nn

from freqformer._validate import check_choice, check_number
from freqformer.attention.base import AttentionLayer
from freqformer.attention.dense import DenseAttention
from freqformer.attention.function import frequency_attention
from freqformer.attention.inputs import QK, LayerCall, Projected
from freqformer.config import Band, FreqFormerConfig
from freqformer.grid import Grid
from freqformer.ops.merge import gated_sum
from freqformer.ops.parameters import AttentionParameters, BranchGates
from freqformer.routing import (
    Decision,
    HardRouter,
    RouterTraining,
    RoutingTable,
    make_router,
    other_bands,
    straight_through,
)
from freqformer.routing.routers import Costs


class FreqAttention(AttentionLayer):
    """Self-attention whose heads each use the operator of one frequency band, or of two that a
    router weighs.

    After a forward pass `router_logits` holds the router's logits (B, H, 3), or None where no
    router ran, and `allocation_used` the bands in use, int64 (B, H).

    The state dict holds the bands of the heads, and only a layer of the same bands loads it. A
    layer can be made on the meta device, given memory by `to_empty` and loaded, also with
    `assign=True`. With routing="hard", the router's parameters get gradients once
    `set_router_training` says how.

    Args:
        dim: channels of input and output; `num_heads` divides it, and head_dim = dim / num_heads is
            even. A GPU runs fused kernels for head_dim up to 256, padded to the next power of two.
        num_heads: heads.
        config: all that the layer does, see `FreqFormerConfig`; `make_attention` also takes
            `FreqFormerConfig.dense()`.

    Raises:
        ValueError: for a value that does not fit, naming the argument.
    """

    def __init__(
        self, dim: int, num_heads: int, config: FreqFormerConfig = FreqFormerConfig()
    ) -> None:
        super().__init__(dim, num_heads, config)
        if config.is_dense:
            raise ValueError(
                "config.allocation is 'dense', which is a layer of its own; heads of bands are "
                "allowed: take freqformer.attention.make_attention(dim, num_heads, config)"
            )
        self._make_learned()
        self.router = make_router(config, num_heads)
        if config.low_branch:
            self.gates = nn.Linear(dim, 2 * num_heads)
            for parameter in self.gates.parameters():
                nn.init.zeros_(parameter)

    def _make_learned(self) -> None:
        """Summaries and gains, where a head can use them: what gets no gradient holds up training
        on several GPUs."""
        heads = self.num_heads
        self.summary_queries: nn.Parameter | None = None
        self.summary_offsets: nn.Parameter | None = None
        self.gains: nn.Parameter | None = None
        # Drawn in any case, so that all other weights of a seed are the same with and without
        # summaries.
        queries = torch.randn(heads, 2, self.head_dim)
        banded = any(band != Band.DENSE for band in self.bands)
        if self.config.summary_tokens and self.config.learned_summaries and banded:
            self.summary_queries = nn.Parameter(queries)
            # Mid and high summaries start out nearly unseen: their pooling has learned nothing yet.
            self.summary_offsets = nn.Parameter(torch.tensor([0.0, -4.0, -4.0]).repeat(heads, 1))
        if self.config.band_features == "band_gains" and (
            self.chooses or any(band in (Band.MID, Band.HIGH) for band in self.bands)
        ):
            self.gains = nn.Parameter(torch.ones(heads, 3))

    @property
    def router_training(self) -> RouterTraining:
        """What `set_router_training` was told last."""
        return self.router.mode if isinstance(self.router, HardRouter) else "off"

    def set_router_training(self, mode: RouterTraining) -> None:
        """Branches that give the router its gradient in training mode: see `other_bands`; `off`
        runs the chosen only."""
        if not isinstance(self.router, HardRouter):
            super().set_router_training(mode)
            return
        check_choice("mode", mode, get_args(RouterTraining))
        self.router.mode = mode

    def set_flop_budget(self, budget: float | None) -> None:
        """Hold the router's choice to a share of dense attention's FLOPs, see `allocate`, while it
        does not learn."""
        if not isinstance(self.router, HardRouter):
            super().set_flop_budget(budget)
            return
        if budget is not None:
            check_number("budget", budget, 0.0, math.inf)
        self.router.flop_budget = budget

    def set_window(self, window: tuple[int, int, int]) -> None:
        """Let HIGH heads see a window of other extents, in tiles, from the next call on: for a
        density that falls while a dense model is converted.

        Raises:
            ValueError: for extents out of range, and where a table says what heads see.
        """
        self._set_seen("window", window)

    def set_mid_tiles(self, count: int | None, summary_tokens: int) -> None:
        """Let MID heads keep another number of tiles, and other summaries, from the next call on:
        as `set_window` for HIGH ones.

        Raises:
            ValueError: for numbers out of range, where a table says what heads see, and where
                summaries are learned.
        """
        if self.config.learned_summaries:
            raise ValueError(
                f"summary_tokens is {summary_tokens} and the layer's config has learned_summaries "
                "True, which fixes them; False is allowed: make the layer with it"
            )
        self._set_seen("mid_tiles", count, summary_tokens=summary_tokens)

    def _set_seen(self, name: str, value: Any, **others: Any) -> None:
        if self.table_bands is not None:
            raise ValueError(
                f"{name} is {value} and the layer has a routing table, which says what heads see; "
                "none is allowed: call set_routing_table(None) first"
            )
        self.config = replace(self.config, **{name: value}, **others)
        self.configs = [self.config]

    def check_table(self, table: RoutingTable) -> None:
        """Raise ValueError for a table that asks for gains which the layer has not learned."""
        if table.config.band_features == "band_gains" and self.gains is None:
            raise ValueError(
                "table.config.band_features is 'band_gains', and a layer with allocation "
                f"{list(self.bands)} has learned none; take 'full'"
            )

    def band_costs(self, grid: Grid) -> Costs:
        """Useful FLOPs of one head as LOW, MID and HIGH, each with the LOW branch that it has in
        addition, and of one head of dense attention alone, which shares are of."""
        learned = self.summary_queries is not None
        low, mid, high, dense = self.plan_costs(grid, learned_summaries=learned)
        branch = low if self.config.low_branch else 0.0
        return (low + branch, mid + branch, high + branch, dense)

    def attend(self, projected: Projected, decision: Decision, call: LayerCall) -> Tensor:
        """(B, N, H, D): every head's own band, and LOW in addition where there is a branch."""
        if self.exact:
            return super().attend(projected, decision, call)
        parameters = self.learned(call, decision)
        own = partial(self._by_bands, projected.qkv, call, parameters=parameters)
        branch = None
        if self.config.low_branch:
            branch = BranchGates(projected.gates, decision.branch_weights)
        if decision.others is None:
            return own(decision.bands, low_branch=branch, present=decision.present)
        out = self._with_choice(own(decision.bands), decision, own)
        if branch is None:
            return out
        # A router's gradient is of the own band alone, so LOW is a call of its own.
        low = frequency_attention(
            *projected.qkv,
            grid=call.grid,
            allocation=[Band.LOW.value] * decision.bands.shape[1],
            config=self.configs[0],  # no table changes what LOW means
            parameters=parameters,
            token_order=call.token_order,
            impl=call.impl,
        )
        return gated_sum(out, low, *branch.both)

    def decide(self, queries: QK, call: LayerCall) -> Decision:
        """What the heads do; with other bands too where a router that chooses gets a gradient."""
        decision = super().decide(queries, call)
        chooses = isinstance(self.router, HardRouter) and decision.logits is not None
        if not chooses or not self.router.learns:
            return decision
        return replace(decision, others=other_bands(decision.bands, self.router.mode))

    def _with_choice(self, out: Tensor, decision: Decision, own: partial[Tensor]) -> Tensor:
        """The same values, with the gradient of the router that chose."""
        assert decision.logits is not None
        assert decision.others is not None
        with torch.no_grad():
            others = [own(other) for other in decision.others]
        return straight_through(out, others, decision.others, decision.logits)

    def learned(self, call: LayerCall, decision: Decision) -> AttentionParameters:
        """What the operation is given of what the layer has learned."""
        gains = self.gains
        if gains is None and self.config.band_features == "band_gains":
            gains = self.query_norm.new_ones(self.num_heads, 3)  # of no head that has any say
        queries, offsets, gains = (
            x if x is None or call.heads is None else x.index_select(0, call.heads)
            for x in (self.summary_queries, self.summary_offsets, gains)
        )
        if offsets is not None and decision.summary_offsets is not None:
            offsets = offsets + decision.summary_offsets
        return replace(
            super().learned(call, decision),
            summary_queries=queries,
            summary_offsets=offsets,
            gains=gains,
        )


def make_attention(
    dim: int, num_heads: int, config: FreqFormerConfig = FreqFormerConfig()
) -> FreqAttention | DenseAttention:
    """The layer that the record asks for.

    Args:
        dim, num_heads: see `FreqAttention`.
        config: `FreqFormerConfig.dense()` makes a `DenseAttention`, others a `FreqAttention`.
    """
    if isinstance(config, FreqFormerConfig) and config.is_dense:
        return DenseAttention(dim, num_heads, config)
    return FreqAttention(dim, num_heads, config)
