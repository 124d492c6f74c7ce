"""The attention layer: projections, a router or a table that says what heads do, and
`frequency_attention`.

Shape legend: B batch, N video tokens, C channels, H heads, D head_dim.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, get_args

import torch
from torch import Tensor, nn

from freqformer._validate import check_choice, check_kind, check_number
from freqformer.attention.function import frequency_attention
from freqformer.attention.head_bands import HeadBands
from freqformer.attention.inputs import check_inputs, dense_attention
from freqformer.attention.options import Attention, Routing, check_size, layer_options
from freqformer.config import Band, FreqFormerConfig
from freqformer.grid import Grid
from freqformer.ops.backends import IMPLS, ImplChoice, uses_triton
from freqformer.ops.gates.api import gated_sum
from freqformer.ops.parameters import AttentionParameters
from freqformer.ops.routing.api import score
from freqformer.ops.tokens import TokenOrder
from freqformer.plan import build_plan
from freqformer.routing import (
    Prior,
    RouterTraining,
    RoutingNetwork,
    RoutingTable,
    allocate,
    other_bands,
    straight_through,
    timestep_bucket,
)
from freqformer.routing.table import attend_by_bucket

Tensors = tuple[Tensor, Tensor, Tensor]
"""Query, key and value."""
Attend = Callable[[list[int]], Tensor]
"""A layer's attention with these bands, (B, N, H, D)."""
NORM_EPS = 1e-6


class FreqAttention(HeadBands):
    """Self-attention whose heads each use the operator of one frequency band, or of two that a
    router weighs.

    After a forward pass `last_logits` holds the router's logits (B, H, 3), or None where no router
    ran, and `last_allocation` the bands in use, int64 (B, H).

    The state dict holds the bands of the heads, and only a layer of the same bands loads it. A
    layer can be made on the meta device, given memory by `to_empty` and loaded, also with
    `assign=True`. With routing="learned", the router's parameters get gradients once
    `set_router_training` says how.

    Args:
        dim: channels of input and output; `num_heads` divides it, and head_dim = dim / num_heads is
            even. A GPU runs fused kernels for head_dim 16, 32, 64 and 128.
        num_heads: heads.
        config: bands, patterns and summaries.
        allocation: the band of every head; with `routing="learned"` where the router starts. DENSE
            with "fixed" alone. None puts a third of the heads in each band, with "soft" and "timed"
            all in HIGH.
        routing: `soft` keeps the allocation, and by the layer's statistics and timestep weighs each
            head's band and a LOW branch beside it: best in docs/quality.md. `timed` does so by
            timestep alone, nearly free. `learned` chooses a band for each head instead. `fixed`
            does neither. None is `soft`.
        attention: `frequency`, or `dense`: exact attention in every head, without router and
            learned summaries; until a routing table is set, whose bands then take low summaries
            alone. It takes none of `allocation`, `routing`, `prior` and `low_beside`.
        prior: of a router that chooses, see `RoutingNetwork`; None is `paper` there. No other
            routing takes one.
        low_beside: whether every head adds a LOW branch to its own, each weighted by a gate for
            every token and head, to which a router that weighs adds. At first the own branch alone
            counts, or nearly. None: where one weighs.

    Raises:
        ValueError: for a value that does not fit or could not act, naming the argument.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        config: FreqFormerConfig,
        *,
        allocation: Sequence[int] | None = None,
        routing: Routing | None = None,
        attention: Attention = "frequency",
        prior: Prior | None = None,
        low_beside: bool | None = None,
    ) -> None:
        super().__init__()
        check_size(dim, num_heads, config)
        given = {
            "routing": routing,
            "allocation": allocation,
            "prior": prior,
            "low_beside": low_beside,
        }
        options = layer_options(attention, num_heads, **given)
        self.dim = dim
        self.num_heads = num_heads
        self.head_dim = dim // num_heads
        self.attention = attention
        self.routing = options.routing
        self.to_q, self.to_k, self.to_v, self.to_out = (nn.Linear(dim, dim) for _ in range(4))
        self.query_norm, self.key_norm = (nn.Parameter(torch.ones(self.head_dim)) for _ in range(2))
        self.router: RoutingNetwork | None = None
        self.gates: nn.Linear | None = None
        self._make_learned(config, options.bands)
        if options.routing == "learned":
            self.router = RoutingNetwork(
                num_heads, prior=options.prior or "none", initial=options.bands
            )
        elif options.weighs:
            self.router = RoutingNetwork(
                num_heads, prior="none", statistics=options.routing == "soft"
            )
        self.low_beside = options.low_beside
        if self.low_beside:
            self.gates = nn.Linear(dim, 2 * num_heads)
            for parameter in self.gates.parameters():
                nn.init.zeros_(parameter)
        self._set_bands(options.bands, fixed=options.routing != "learned")
        self.config = config
        self.configs = [config]
        self.router_training: RouterTraining = "off"
        self.flop_budget: float | None = None
        self.impl: ImplChoice = "auto"
        self.forced_dense = False
        self.last_logits: Tensor | None = None
        self.last_allocation: Tensor | None = None

    def _make_learned(self, config: FreqFormerConfig, bands: Sequence[int]) -> None:
        """Summaries and gains, where a head can use them: what gets no gradient holds up training
        on several GPUs."""
        heads = self.num_heads
        self.summary_queries: nn.Parameter | None = None
        self.summary_offsets: nn.Parameter | None = None
        self.gains: nn.Parameter | None = None
        if self.attention == "dense":
            return
        # Drawn in any case, so that all other weights of a seed are the same with and without
        # summaries.
        queries = torch.randn(heads, 2, self.head_dim)
        banded = any(band != Band.DENSE for band in bands)
        if config.summary_tokens and banded:
            self.summary_queries = nn.Parameter(queries)
            # Mid and high summaries start out nearly unseen: their pooling has learned nothing yet.
            self.summary_offsets = nn.Parameter(torch.tensor([0.0, -4.0, -4.0]).repeat(heads, 1))
        if config.band_features == "gains" and (
            self.routing == "learned" or any(band in (Band.MID, Band.HIGH) for band in bands)
        ):
            self.gains = nn.Parameter(torch.ones(heads, 3))

    @property
    def chooses(self) -> bool:
        """Whether a router chooses the bands, rather than weigh them or be absent."""
        return self.router is not None and self.routing == "learned"

    @property
    def exact(self) -> bool:
        """Whether calls compute exact attention in every head, and nothing else."""
        return self.forced_dense or (self.attention == "dense" and self.table_bands is None)

    def set_router_training(self, mode: RouterTraining) -> None:
        """Branches that give the router its gradient in training mode: see `other_bands`; `off`
        runs the chosen only."""
        check_choice("mode", mode, get_args(RouterTraining))
        if mode != "off" and not self.chooses:
            raise ValueError(
                f"mode is {mode!r}, but no router chooses in the layer; make it with "
                "routing='learned'"
            )
        self.router_training = mode

    def set_flop_budget(self, budget: float | None) -> None:
        """Hold the router's choice to a share of dense attention's FLOPs, see `allocate`, while it
        does not learn."""
        if budget is not None and not self.chooses:
            raise ValueError(
                f"budget is {budget!r}, but no router chooses in the layer; make it with "
                "routing='learned'"
            )
        if budget is not None:
            check_number("budget", budget, 0.0, math.inf)
        self.flop_budget = budget

    def set_impl(self, impl: ImplChoice) -> None:
        """The code that calls run unless they say otherwise, as in `frequency_attention`; for
        comparisons.

        Where every head is exact, `auto` is torch's own attention.
        """
        check_choice("impl", impl, IMPLS)
        self.impl = impl

    def set_dense(self, dense: bool) -> None:
        """Compute exact attention in every head, without router, gates and LOW branch, until set
        back; for comparisons."""
        check_choice("dense", dense, (True, False))
        self.forced_dense = dense

    def set_routing_table(self, table: RoutingTable | None, layer: int = 0) -> None:
        """Take bands, tile and list lengths from one layer of a table in place of the router; None
        ends that.

        A dense layer takes the whole meaning of the bands from the table, since it has learned
        none.

        Raises:
            ValueError: for a table of other heads, or whose bands mean something else.
        """
        if table is None:
            self.configs = [self.config]
            self._set_table(None)
            return
        check_kind(
            "table", table, RoutingTable, "load one with RoutingTable.load, or make one with freeze"
        )
        dense = self.attention == "dense"
        bands, configs = table.for_layer(
            layer, self.num_heads, table.config if dense else self.config
        )
        if table.config.band_features == "gains" and self.gains is None:
            has = "a dense layer" if dense else f"a layer with allocation {list(self.bands)}"
            raise ValueError(
                f"table.config.band_features is 'gains', and {has} has learned none; take 'full'"
            )
        self.configs = configs
        self._set_table(bands)

    def band_costs(self, grid: Grid) -> tuple[float, float, float, float]:
        """Useful FLOPs of one head as LOW, MID and HIGH, each with the LOW branch that it has
        beside it, and of one head of dense attention alone, which shares are of."""
        plan = build_plan(
            grid,
            self.config,
            num_heads=self.num_heads,
            head_dim=self.head_dim,
            learned_summaries=self.summary_queries is not None,
        )
        low, mid, high, dense = plan.band_costs()
        beside = low if self.low_beside else 0.0
        return (low + beside, mid + beside, high + beside, dense)

    def forward(
        self,
        hidden_states: Tensor,
        grid: Grid,
        timestep: Tensor,
        rotary: tuple[Tensor, Tensor] | None = None,
        *,
        token_order: TokenOrder = "raster",
        impl: ImplChoice | None = None,
    ) -> Tensor:
        """Attend.

        Args:
            hidden_states: (B, N, C), tokens in `token_order`.
            grid: the token grid.
            timestep: (B,) in [0, 1], 1 is the most noise. Its range is checked on the CPU; a GPU
                would have to be waited for.
            rotary: cos and sin, each (N, D / 2) in `token_order`.
            token_order: of the tokens in and out and of `rotary`: `raster`, as in
                `frequency_attention`, or `tile`.
            impl: as in `frequency_attention`; None takes that of `set_impl`.

        Returns: (B, N, C) in the dtype of the projections.

        Raises:
            ValueError: for shapes that do not fit, naming the argument.
        """
        impl = self.impl if impl is None else impl
        check_choice("impl", impl, IMPLS)
        check_inputs(hidden_states, grid, timestep, self.dim, token_order)
        tensors = tuple(
            to(hidden_states).unflatten(2, (self.num_heads, -1))
            for to in (self.to_q, self.to_k, self.to_v)
        )
        if self.exact:
            return self.to_out(self._exact(tensors, grid, rotary, token_order, impl).flatten(2))
        gates = (
            None
            if self.gates is None
            else self.gates(hidden_states).unflatten(2, (-1, self.num_heads))
        )
        # Bands and their statistics are taken in float32; autocast would take them in half
        # precision.
        with torch.autocast(hidden_states.device.type, enabled=False):
            attend = partial(self._attend, tensors, grid, timestep, rotary, token_order, impl)
            logits, best = self._score(tensors, hidden_states, grid, timestep, token_order, impl)
            self.last_logits = logits
            self.last_allocation = allocation = self._choose(logits, best, grid, timestep)
            out = attend(allocation)
            if logits is not None and self._learns_routing():
                bands = other_bands(allocation, self.router_training)
                with torch.no_grad():
                    others = [attend(other) for other in bands]
                out = straight_through(out, others, bands, logits)
            out = self._with_low(out, gates, self._weights(logits), attend, impl)
        return self.to_out(out.flatten(2))

    def _exact(
        self,
        tensors: Tensors,
        grid: Grid,
        rotary: tuple[Tensor, Tensor] | None,
        token_order: TokenOrder,
        impl: ImplChoice,
    ) -> Tensor:
        """(B, N, H, D) -> the same, exact attention in every head."""
        self.last_logits = None
        shape = (len(tensors[0]), self.num_heads)
        self.last_allocation = self.allocation.new_full(shape, Band.DENSE.value)
        with torch.autocast(tensors[0].device.type, enabled=False):
            if impl == "auto":
                return dense_attention(
                    tensors, (self.query_norm, self.key_norm), rotary, grid, NORM_EPS
                )
            norms = {"query_norm": self.query_norm, "key_norm": self.key_norm, "norm_eps": NORM_EPS}
            parameters = AttentionParameters(rotary=rotary, **norms)
            # Where all is exact no band's meaning is asked for, and a tile of the grid's own choice
            # fits.
            return frequency_attention(
                *tensors,
                grid=grid,
                allocation=[Band.DENSE.value] * self.num_heads,
                config=FreqFormerConfig(tile=self.config.tile),
                parameters=parameters,
                token_order=token_order,
                impl=impl,
            )

    def _score(
        self,
        tensors: Tensors,
        hidden_states: Tensor,
        grid: Grid,
        timestep: Tensor,
        token_order: TokenOrder,
        impl: ImplChoice,
    ) -> tuple[Tensor | None, Tensor | None]:
        """The router's logits (B, H, 3) and the best bands by them, or None where a table or a
        fixed allocation decides."""
        if self.router is None or (self.chooses and self.table_bands is not None):
            return None, None
        features, norms = (*tensors[:2], hidden_states), (self.query_norm, self.key_norm)
        inputs = (features, norms, NORM_EPS, grid, self.config, token_order)
        return score(self.router, timestep, inputs, fused=uses_triton(tensors, impl))

    def _choose(
        self, logits: Tensor | None, best: Tensor | None, grid: Grid, timestep: Tensor
    ) -> Tensor:
        """The band of every head, int64 (B, H)."""
        table = self._table_on(timestep.device)
        if table is not None:
            return table[timestep_bucket(timestep, len(table))]
        if best is None or not self.chooses:
            return self.allocation.expand(len(timestep), -1)
        if logits is None or self.flop_budget is None or self._learns_routing():
            return best
        return allocate(logits, costs=self.band_costs(grid), budget=self.flop_budget)

    def _attend(
        self,
        tensors: Tensors,
        grid: Grid,
        timestep: Tensor,
        rotary: tuple[Tensor, Tensor] | None,
        token_order: TokenOrder,
        impl: ImplChoice,
        allocation: Tensor | list[int],
    ) -> Tensor:
        """(B, N, H, D) -> the same, every head by its band; a list is of bands whose meaning no
        table changes."""
        parameters = self._learned(rotary)
        attend = partial(
            frequency_attention,
            grid=grid,
            parameters=parameters,
            token_order=token_order,
            impl=impl,
        )
        if isinstance(allocation, list):
            return attend(*tensors, allocation=allocation, config=self.configs[0])
        return attend_by_bucket(attend, tensors, allocation, self.configs, timestep)

    def _weights(self, logits: Tensor | None) -> Tensor | None:
        """What soft routing adds to the gates of the own branch and of LOW, (B, 2, H): the logits
        of the two bands."""
        if logits is None or self.chooses:
            return None
        own = logits.gather(2, self.allocation.expand(len(logits), -1)[..., None])[..., 0]
        return torch.stack([own, logits[..., Band.LOW.value]], 1)

    def _with_low(
        self,
        out: Tensor,
        gates: Tensor | None,
        weights: Tensor | None,
        attend: Attend,
        impl: ImplChoice,
    ) -> Tensor:
        """(B, N, H, D) -> the output with LOW beside every head's own band, by gates (B, N, 2, H)
        and weights (B, 2, H)."""
        if gates is None and weights is None:
            return out
        low = attend([Band.LOW.value] * self.num_heads)
        return gated_sum(out, low, gates, weights, fused=uses_triton((out, low, low), impl))

    def _learned(self, rotary: tuple[Tensor, Tensor] | None) -> AttentionParameters:
        gains = self.gains
        if gains is None and self.config.band_features == "gains":
            gains = self.query_norm.new_ones(self.num_heads, 3)  # of no head that has any say
        learned = (self.summary_queries, self.summary_offsets, gains)
        return AttentionParameters(
            *learned, rotary, self.query_norm, self.key_norm, norm_eps=NORM_EPS
        )

    def __getstate__(self) -> dict[str, Any]:
        # A copy starts without the last call's tensors: they carry a graph, which can't be copied.
        return {**self.__dict__, "last_logits": None, "last_allocation": None}

    def _learns_routing(self) -> bool:
        return self.router_training != "off" and self.training and torch.is_grad_enabled()
