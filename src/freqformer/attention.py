"""Frequency-banded attention: every head uses the operator of its band.

Shape legend: B batch, N video tokens, C channels, H heads, D head_dim.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from freqformer.config import Band, FreqFormerConfig
from freqformer.grid import Grid
from freqformer.ops import fused
from freqformer.ops.branches import Branches
from freqformer.ops.checks import check_options, check_parameters, check_tensors, layer_bands, row_bands
from freqformer.ops.gates.api import gated_sum
from freqformer.ops.implementation import ImplChoice, resolve
from freqformer.ops.parameters import AttentionParameters
from freqformer.ops.routing.api import score
from freqformer.ops.tokens import TokenOrder, rms_norm, rotate
from freqformer.plan import AttentionPlan, Selection, build_plan
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

Routing = Literal["soft", "timed", "learned", "fixed"]
SOFT: tuple[Routing, ...] = ("soft", "timed")  # a router weighs each head's band and LOW
Attention = Literal["frequency", "dense"]
Tensors = tuple[Tensor, Tensor, Tensor]
"""Query, key and value."""
Attend = Callable[[list[int]], Tensor]  # a layer's attention with these bands, (B, N, H, D)
NORM_EPS = 1e-6


def frequency_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    grid: Grid,
    allocation: Tensor | Sequence[int],
    config: FreqFormerConfig,
    num_text_tokens: int = 0,
    text_mask: Tensor | None = None,
    parameters: AttentionParameters | None = None,
    plan: AttentionPlan | None = None,
    selection: Selection | None = None,
    token_order: TokenOrder = "raster",
    impl: ImplChoice = "auto",
) -> Tensor:
    """Self-attention over video tokens, with one operator per head: low, mid, high or dense.

    Args:
        query, key, value: (batch, video tokens + text tokens, heads, head_dim), float64, float32, float16 or bfloat16;
            queries and keys normalised and rotated, but for what `parameters` asks the operation to do.
        grid: the video's token grid.
        allocation: `Band` of every head, (heads,) or (batch, heads), whole numbers 0 to 3. impl="triton" doesn't read back
            one that is on the GPU: a head whose number is no band gives NaN there.
        config: bands, patterns and summaries.
        num_text_tokens: text tokens behind the video tokens. Text is never compressed; text queries see everything.
        text_mask: bool (batch, num_text_tokens), True where a text token may be seen.
        parameters: what is learned; None takes low summaries only, no offsets and unit gains.
        plan: the plan of this grid and config, built outside a compiled region; None builds or finds it.
        selection: the tiles of MID heads for `mid_pattern="topk"`; None chooses them by tile means.
        token_order: order of the video tokens in and out, `raster` or `tile`.
        impl: `triton` (fused, on a GPU), `eager` (linear memory, any device), `reference` (full masks), or
            `auto`: triton on a GPU where it can run, else eager; the log says which and why.

    Returns: (batch, tokens, heads, head_dim) in the dtype of the query.

    Raises:
        ValueError: for shapes, dtypes, bands or options that do not fit, naming the argument and the remedy.
    """
    check_tensors(query, key, value, grid, num_text_tokens, text_mask)
    check_parameters(parameters, query, grid, config)
    check_options(config, selection, token_order, impl)
    plan = _plan_for(query, grid, config, num_text_tokens, parameters, plan)
    tensors = (query, key, value)
    chosen = resolve(impl, query.device.type, fused.obstacle(tensors, parameters))
    if chosen == "triton":
        return fused.fused_attention(
            tensors,
            allocation,
            plan=plan,
            parameters=parameters,
            text_mask=text_mask,
            selection=selection,
            token_order=token_order,
        )
    return Branches(tensors, text_mask, plan, parameters, token_order, chosen).output(
        row_bands(allocation, query), selection
    )


def _plan_for(
    query: Tensor,
    grid: Grid,
    config: FreqFormerConfig,
    num_text_tokens: int,
    parameters: AttentionParameters | None,
    plan: AttentionPlan | None,
) -> AttentionPlan:
    heads, head_dim = query.shape[2:]
    learned = parameters is not None and parameters.summary_queries is not None
    if plan is None:
        return build_plan(
            grid,
            config,
            num_heads=heads,
            head_dim=head_dim,
            num_text_tokens=num_text_tokens,
            learned_summaries=learned,
        )
    made = (plan.layout.grid, plan.config, plan.num_heads, plan.head_dim, plan.num_text_tokens, plan.learned_summaries)
    asked = (grid, config, heads, head_dim, num_text_tokens, learned)
    if made != asked:
        raise ValueError(f"plan was built for {made}; this call has {asked}: build it with build_plan for this call")
    return plan


class FreqAttention(nn.Module):
    """Self-attention whose heads each use the operator of one frequency band, or of two that a router weighs.

    After a forward pass `last_logits` holds the router's logits (B, H, 3), or None where no router ran, and
    `last_allocation` the bands in use, int64 (B, H).

    Args:
        dim: channels of input and output; `num_heads` divides it, and head_dim = dim / num_heads is even.
        num_heads: heads.
        config: bands, patterns and summaries.
        allocation: the band of every head; with `routing="learned"` where the router starts. DENSE with "fixed" alone. None
            puts a third of the heads in each band, with "soft" and "timed" all in HIGH.
        routing: `soft` keeps the allocation, and by the layer's statistics and timestep weighs each head's band and a LOW
            branch beside it: best in docs/quality.md. `timed` does so by timestep alone, nearly free. `learned` chooses a
            band for each head instead. `fixed` does neither.
        attention: `frequency`, or `dense`: exact attention in every head, without router and learned summaries; until a
            routing table is set, whose bands then take low summaries alone.
        prior: of a router that chooses, see `RoutingNetwork`.
        low_beside: whether every head adds a LOW branch to its own, each weighted by a gate for every token and head, to
            which a router that weighs adds. At first the own branch alone counts, or nearly. None: where one weighs.

    Raises:
        ValueError: for a value that does not fit, naming the argument.
    """

    allocation: Tensor
    table_bands: Tensor | None

    def __init__(
        self,
        dim: int,
        num_heads: int,
        config: FreqFormerConfig,
        *,
        allocation: Sequence[int] | None = None,
        routing: Routing = "soft",
        attention: Attention = "frequency",
        prior: Prior = "paper",
        low_beside: bool | None = None,
    ) -> None:
        super().__init__()
        options = (("routing", routing, Routing), ("attention", attention, Attention), ("prior", prior, Prior))
        for name, value, allowed in options:
            if value not in get_args(allowed):
                raise ValueError(f"{name} is {value!r}; choose one of {', '.join(get_args(allowed))}")
        if num_heads < 1 or dim < 1 or dim % (2 * num_heads):
            raise ValueError(f"dim is {dim} and num_heads {num_heads}; dim = num_heads * an even head_dim is allowed")
        self.dim, self.num_heads, self.head_dim, self.attention = dim, num_heads, dim // num_heads, attention
        self.to_q, self.to_k, self.to_v, self.to_out = (nn.Linear(dim, dim) for _ in range(4))
        self.query_norm, self.key_norm = (nn.Parameter(torch.ones(self.head_dim)) for _ in range(2))
        weighs = routing in SOFT
        if weighs and allocation is None:
            allocation = [Band.HIGH.value] * num_heads
        bands = layer_bands(allocation, num_heads)
        if weighs and (low_beside is False or Band.DENSE in bands):
            raise ValueError(
                f"low_beside is {low_beside} and allocation {bands}; with routing={routing!r}, which weighs each head's "
                "band and LOW, None or True and bands 0 to 2 are allowed: take routing='fixed' for others"
            )
        self.routing = routing
        self.router: RoutingNetwork | None = None
        self.gates: nn.Linear | None = None
        if attention == "dense":
            bands = [Band.DENSE.value] * num_heads
            self.summary_queries = self.summary_offsets = self.gains = None
        else:
            self.summary_queries = nn.Parameter(torch.randn(num_heads, 2, self.head_dim))
            # Mid and high summaries start out nearly unseen: their pooling has learned nothing yet.
            self.summary_offsets = nn.Parameter(torch.tensor([0.0, -4.0, -4.0]).repeat(num_heads, 1))
            self.gains = nn.Parameter(torch.ones(num_heads, 3)) if config.band_features == "gains" else None
            if routing == "learned":
                self.router = RoutingNetwork(num_heads, prior=prior, initial=bands)
            elif weighs:
                self.router = RoutingNetwork(num_heads, prior="none", statistics=routing == "soft")
            if low_beside or weighs:
                self.gates = nn.Linear(dim, 2 * num_heads)
                for parameter in self.gates.parameters():
                    nn.init.zeros_(parameter)
        self.register_buffer("allocation", torch.tensor(bands), persistent=False)
        self.register_buffer("table_bands", None, persistent=False)
        self.config, self.configs = config, [config]
        self.router_training: RouterTraining = "off"
        self.flop_budget: float | None = None
        self.impl: ImplChoice = "auto"
        self.last_logits: Tensor | None = None
        self.last_allocation: Tensor | None = None

    @property
    def chooses(self) -> bool:
        """Whether a router chooses the bands, rather than weigh them or be absent."""
        return self.router is not None and self.routing == "learned"

    def set_router_training(self, mode: RouterTraining) -> None:
        """Branches that give the router its gradient in training mode: see `other_bands`; `off` runs the chosen only."""
        if mode not in get_args(RouterTraining):
            raise ValueError(f"mode is {mode!r}; choose one of {', '.join(get_args(RouterTraining))}")
        if mode != "off" and not self.chooses:
            raise ValueError(f"mode is {mode!r}, but no router chooses in the layer; make it with routing='learned'")
        self.router_training = mode

    def set_flop_budget(self, budget: float | None) -> None:
        """Hold the router's choice to a share of dense attention's FLOPs, see `allocate`, while it does not learn."""
        if budget is not None and not self.chooses:
            raise ValueError(f"budget is {budget!r}, but no router chooses in the layer; make it with routing='learned'")
        self.flop_budget = budget

    def set_impl(self, impl: ImplChoice) -> None:
        """The code that calls run unless they say otherwise, as in `frequency_attention`; for comparisons."""
        if impl not in get_args(ImplChoice):
            raise ValueError(f"impl is {impl!r}; choose one of {', '.join(get_args(ImplChoice))}")
        self.impl = impl

    def set_routing_table(self, table: RoutingTable | None, layer: int = 0) -> None:
        """Take bands, tile and list lengths from one layer of a table in place of the router; None ends that.

        A dense layer takes the whole meaning of the bands from the table, since it has learned none.

        Raises:
            ValueError: for a table of other heads, or whose bands mean something else.
        """
        if table is None:
            self.table_bands, self.configs = None, [self.config]
            return
        dense = self.attention == "dense"
        if dense and table.config.band_features == "gains":
            raise ValueError("table.config.band_features is 'gains', and a dense layer has learned none; take 'full'")
        bands, self.configs = table.for_layer(layer, self.num_heads, table.config if dense else self.config)
        self.table_bands = bands.to(self.allocation.device)

    def band_costs(self, grid: Grid) -> tuple[float, float, float, float]:
        """Useful FLOPs of one head as LOW, MID, HIGH and DENSE, with what it takes beside its band."""
        plan = build_plan(grid, self.config, num_heads=self.num_heads, head_dim=self.head_dim, learned_summaries=True)
        costs = plan.band_costs()
        low, mid, high, dense = costs if self.gates is None else (cost + costs[Band.LOW] for cost in costs)
        return (low, mid, high, dense)

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
        """Attend.

        Args:
            hidden_states: (B, N, C), tokens in `token_order`.
            grid: the token grid.
            timestep: (B,) in [0, 1], 1 is the most noise.
            rotary: cos and sin, each (N, D / 2) in `token_order`.
            token_order: of the tokens in and out, `tile` or `raster`.
            impl: as in `frequency_attention`; None takes that of `set_impl`.

        Returns: (B, N, C) in the dtype of the projections.

        Raises:
            ValueError: for shapes that do not fit, naming the argument.
        """
        self._check(hidden_states, grid, timestep)
        tensors = tuple(to(hidden_states).unflatten(2, (self.num_heads, -1)) for to in (self.to_q, self.to_k, self.to_v))
        gates = None if self.gates is None else self.gates(hidden_states).unflatten(2, (-1, self.num_heads))
        # Bands and their statistics are taken in float32; autocast would take them in half precision.
        with torch.autocast(hidden_states.device.type, enabled=False):
            impl = impl or self.impl
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

    def _score(
        self,
        tensors: Tensors,
        hidden_states: Tensor,
        grid: Grid,
        timestep: Tensor,
        token_order: TokenOrder,
        impl: ImplChoice,
    ) -> tuple[Tensor | None, Tensor | None]:
        """The router's logits (B, H, 3) and the best bands by them, or None where a table or a fixed allocation decides."""
        if self.router is None or (self.chooses and self.table_bands is not None):
            return None, None
        features, norms = (*tensors[:2], hidden_states), (self.query_norm, self.key_norm)
        inputs = (features, norms, NORM_EPS, grid, self.config, token_order)
        return score(self.router, timestep, inputs, fused=fused.runs(tensors, impl))

    def _choose(self, logits: Tensor | None, best: Tensor | None, grid: Grid, timestep: Tensor) -> Tensor:
        """The band of every head, int64 (B, H)."""
        if self.table_bands is not None:
            return self.table_bands[timestep_bucket(timestep, len(self.table_bands))]
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
        """(B, N, H, D) -> the same, every head by its band; a list is of bands whose meaning no table changes."""
        if self.attention == "dense" and self.table_bands is None:
            return _dense_attention(tensors, (self.query_norm, self.key_norm), rotary)
        parameters = self._learned(rotary)
        attend = partial(frequency_attention, grid=grid, parameters=parameters, token_order=token_order, impl=impl)
        if isinstance(allocation, list):
            return attend(*tensors, allocation=allocation, config=self.configs[0])
        return attend_by_bucket(attend, tensors, allocation, self.configs, timestep)

    def _weights(self, logits: Tensor | None) -> Tensor | None:
        """What soft routing adds to the gates of the own branch and of LOW, (B, 2, H): the logits of the two bands."""
        if logits is None or self.chooses:
            return None
        own = logits.gather(2, self.allocation.expand(len(logits), -1)[..., None])[..., 0]
        return torch.stack([own, logits[..., Band.LOW.value]], 1)

    def _with_low(
        self, out: Tensor, gates: Tensor | None, weights: Tensor | None, attend: Attend, impl: ImplChoice
    ) -> Tensor:
        """(B, N, H, D) -> the output with LOW beside every head's own band, by gates (B, N, 2, H) and weights (B, 2, H)."""
        if gates is None and weights is None:
            return out
        low = attend([Band.LOW.value] * self.num_heads)
        return gated_sum(out, low, gates, weights, fused=fused.runs((out, low, low), impl))

    def _learned(self, rotary: tuple[Tensor, Tensor] | None) -> AttentionParameters:
        learned = (self.summary_queries, self.summary_offsets, self.gains)
        return AttentionParameters(*learned, rotary, self.query_norm, self.key_norm, norm_eps=NORM_EPS)

    def __getstate__(self) -> dict[str, Any]:
        # A copy starts without the last call's tensors: they carry a graph, which can't be copied.
        return {**self.__dict__, "last_logits": None, "last_allocation": None}

    def _learns_routing(self) -> bool:
        return self.router_training != "off" and self.training and torch.is_grad_enabled()

    def _check(self, hidden_states: Tensor, grid: Grid, timestep: Tensor) -> None:
        expected = (len(hidden_states), grid.num_tokens, self.dim)
        if tuple(hidden_states.shape) != expected or tuple(timestep.shape) != expected[:1]:
            raise ValueError(
                f"hidden_states has shape {tuple(hidden_states.shape)} and timestep {tuple(timestep.shape)}; (batch, "
                f"{grid.num_tokens}, {self.dim}) and (batch,) are allowed for {grid}: pass the grid of these tokens"
            )


def _dense_attention(tensors: Tensors, norms: tuple[Tensor, Tensor], rotary: tuple[Tensor, Tensor] | None) -> Tensor:
    """Exact attention of all heads, (B, N, H, D) in any one order of tokens."""
    query, key = (rms_norm(x, norm, NORM_EPS).transpose(1, 2) for x, norm in zip(tensors, norms, strict=False))
    if rotary is not None:
        query, key = rotate(query, rotary), rotate(key, rotary)
    return functional.scaled_dot_product_attention(query, key, tensors[2].transpose(1, 2)).transpose(1, 2)
