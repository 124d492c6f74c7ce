"""What every attention layer has: projections, bands, a table, and the four steps of a call.

Shape legend: B batch, N video tokens, C channels, H heads, D head_dim.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from freqformer._validate import check_choice, check_kind
from freqformer.attention.function import frequency_attention
from freqformer.attention.head_bands import HeadBands
from freqformer.attention.inputs import (
    NORM_EPS,
    QK,
    QKV,
    LayerCall,
    Projected,
    check_inputs,
    check_size,
    dense_attention,
    own_precision,
)
from freqformer.attention.parallel import (
    check_tile_order,
    forward_across,
    num_own_tokens,
    shared_logits,
)
from freqformer.attention.projections import project_all
from freqformer.config import Band, FreqFormerConfig
from freqformer.distributed.collective import GRAPHS_HOLD_EXCHANGES
from freqformer.distributed.context import ContextParallel
from freqformer.distributed.heads import check_degree, plan_costs
from freqformer.grid import Grid
from freqformer.ops.backends import IMPLS, ImplChoice, uses_triton
from freqformer.ops.parameters import AttentionParameters, BranchGates, KnownBands
from freqformer.ops.routing.api import OwnBands, look_up, score, weigh
from freqformer.ops.routing.reference import Inputs
from freqformer.ops.tokens import TokenOrder
from freqformer.routing import (
    Decision,
    Router,
    RouterInputs,
    RouterTraining,
    RoutingTable,
    TableRouter,
)
from freqformer.routing.routers import Costs
from freqformer.routing.table import attend_by_bucket
from freqformer.tracing import untraced


class AttentionLayer(HeadBands):
    """Base of `FreqAttention` and `DenseAttention`.

    A call projects, decides, attends and projects back. After it `router_logits` holds the router's
    logits (B, H, 3), or None where no router ran, and `allocation_used` the bands, int64 (B, H).

    Args:
        dim: channels of input and output; `num_heads` divides it, and head_dim = dim / num_heads is
            even.
        num_heads: heads.
        config: what the layer does.
    """

    router: Any
    """A `Router`."""

    def __init__(self, dim: int, num_heads: int, config: FreqFormerConfig) -> None:
        super().__init__()
        check_size(dim, num_heads, config)
        self.dim = dim
        self.num_heads = num_heads
        self.head_dim = dim // num_heads
        self.config = config
        self.to_q, self.to_k, self.to_v, self.to_out = (nn.Linear(dim, dim) for _ in range(4))
        self.gates: nn.Linear | None = None
        self.query_norm, self.key_norm = (nn.Parameter(torch.ones(self.head_dim)) for _ in range(2))
        self._set_bands(config.bands(num_heads), fixed=config.routing != "hard")
        self.configs = [config]
        self.impl: ImplChoice = "auto"
        self.forced_dense = False
        self.context: ContextParallel | None = None
        self._forward_across = forward_across
        self.router_logits: Tensor | None = None
        self.allocation_used: Tensor | None = None

    @property
    def chooses(self) -> bool:
        """Whether a router chooses the bands, rather than weigh them or be absent."""
        return self.config.routing == "hard"

    @property
    def exact(self) -> bool:
        """Whether calls compute exact attention in every head, and nothing else."""
        return self.forced_dense

    @property
    def router_training(self) -> RouterTraining:
        """What `set_router_training` was told last."""
        return "off"

    def set_router_training(self, mode: RouterTraining) -> None:
        """Branches that give a router that chooses its gradient in training mode: see
        `other_bands`; `off` runs the chosen only."""
        check_choice("mode", mode, ("off", "all", "sampled"))
        if mode != "off":
            raise ValueError(
                f"mode is {mode!r}, but no router chooses in the layer; make it with routing='hard'"
            )

    def set_flop_budget(self, budget: float | None) -> None:
        """Hold the choice of a router to a share of dense attention's FLOPs, see `allocate`, while
        it does not learn."""
        if budget is not None:
            raise ValueError(
                f"budget is {budget!r}, but no router chooses in the layer; make it with "
                "routing='hard'"
            )

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

    def check_context(self, context: ContextParallel) -> None:
        """Raise ValueError for more ranks than heads."""
        check_degree(self.num_heads, context.size)

    def set_context(self, context: ContextParallel | None) -> None:
        """Share every video with other ranks from now on, see `freqformer.distributed.parallelize`:
        calls then take and give this rank's tokens in tile order, and `rotary` of all tokens. None
        ends that."""
        if context is not None:
            self.check_context(context)
        self.context = context
        if context is not None and not GRAPHS_HOLD_EXCHANGES:
            self._forward_across = untraced(forward_across)
        else:
            self._forward_across = forward_across

    def set_routing_table(self, table: RoutingTable | None, layer: int = 0) -> None:
        """Take bands, tile and list lengths from one layer of a table in place of a router that
        chooses; None ends that. A router that weighs goes on.

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
        bands, configs = table.for_layer(layer, self.num_heads, self.meaning(table))
        self.check_table(table)
        self.configs = configs
        self._set_table(bands)

    def meaning(self, table: RoutingTable) -> FreqFormerConfig:
        """What bands mean under this table."""
        return self.config

    def check_table(self, table: RoutingTable) -> None:
        """Raise ValueError for a table that asks for what the layer has not learned."""

    def band_costs(self, grid: Grid) -> Costs:
        """Useful FLOPs of one head as LOW, MID and HIGH, each with the LOW branch that it has in
        addition, and of one head of dense attention alone, which shares are of."""
        return self.plan_costs(grid, learned_summaries=False)

    def plan_costs(self, grid: Grid, *, learned_summaries: bool) -> Costs:
        """As `AttentionPlan.band_costs`, of this layer on a grid."""
        return plan_costs(
            grid,
            self.config,
            num_heads=self.num_heads,
            head_dim=self.head_dim,
            learned_summaries=learned_summaries,
        )

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
            hidden_states: (B, N, C), tokens in `token_order`; of a video that ranks share, this
                rank's alone.
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
        own_tokens = None
        if self.context is not None:
            check_tile_order(token_order)
            own_tokens = partial(num_own_tokens, grid, self.configs[0].tile, self.context)
        check_inputs(hidden_states, grid, timestep, self.dim, token_order, own_tokens)
        call = LayerCall(hidden_states, grid, timestep, rotary, token_order, impl)
        if self.context is None:
            projected = self.project(hidden_states)
            with own_precision(hidden_states):
                query, key, _ = projected.qkv
                decision = self.decide(QK(query, key), call)
                out = self.attend(projected, decision, call)
            out = self.to_out(out.flatten(2))
        else:
            decision, out = self._forward_across(self, call, self.context)
        self.router_logits = shared_logits(decision, self.context)
        self.allocation_used = decision.bands
        return out

    def project(self, hidden_states: Tensor) -> Projected:
        """Queries, keys and values (B, N, H, D) of tokens (B, N, C), and gates of the branches.

        Where ranks share a video they are made one after the other instead, by the methods below,
        so that some travel meanwhile.
        """
        query, key, value, *gates = project_all(hidden_states, self.projections())
        qkv = QKV(self._by_head(query), self._by_head(key), self._by_head(value))
        return Projected(qkv, *(self._by_branch(x) for x in gates))

    def projections(self) -> list[nn.Linear]:
        """What makes queries, keys and values of tokens, and gates where there are any."""
        layers = [self.to_q, self.to_k, self.to_v]
        return layers if self.gates is None else [*layers, self.gates]

    def project_queries(self, hidden_states: Tensor) -> QK:
        """Queries and keys (B, N, H, D) of tokens (B, N, C)."""
        return QK(self._by_head(self.to_q(hidden_states)), self._by_head(self.to_k(hidden_states)))

    def project_values(self, hidden_states: Tensor) -> Tensor:
        """Values (B, N, H, D) of tokens (B, N, C)."""
        return self._by_head(self.to_v(hidden_states))

    def project_gates(self, hidden_states: Tensor) -> Tensor | None:
        """Gates of the branches (B, N, 2, H) of tokens (B, N, C); None where there are none."""
        return None if self.gates is None else self._by_branch(self.gates(hidden_states))

    def _by_head(self, x: Tensor) -> Tensor:
        return x.unflatten(2, (self.num_heads, -1))

    def _by_branch(self, gates: Tensor) -> Tensor:
        return gates.unflatten(2, (-1, self.num_heads))

    def decide(self, queries: QK, call: LayerCall) -> Decision:
        """What the heads do: what a table says, or else the router."""
        if self.exact:
            shape = (len(call.timestep), self.num_heads)
            return Decision(self.allocation.new_full(shape, Band.DENSE.value))
        return self._router_on(call.timestep.device).decide(
            RouterInputs(
                timestep=call.timestep,
                allocation=self.allocation,
                present=self.present,
                score=partial(self._score, queries, call),
                weigh=partial(self._weigh, queries, call),
                costs=partial(self.band_costs, call.grid),
                look_up=partial(look_up, fused=_fused(queries, call)),
            )
        )

    def attend(self, projected: Projected, decision: Decision, call: LayerCall) -> Tensor:
        """(B, N, H, D): every head's attention as it was decided."""
        if self.exact:
            return self._exact(projected.qkv, call)
        learned = self.learned(call, decision)
        return self._by_bands(
            projected.qkv, call, decision.bands, learned, present=decision.present
        )

    def learned(self, call: LayerCall, decision: Decision) -> AttentionParameters:
        """What the operation is given of what the layer has learned."""
        return AttentionParameters(
            rotary=call.rotary,
            query_norm=self.query_norm,
            key_norm=self.key_norm,
            norm_eps=NORM_EPS,
        )

    def _router_on(self, device: torch.device) -> Router:
        """The layer's router, or the table in its place; one that weighs runs with both."""
        table = self._table_on(device)
        if table is None:
            return self.router
        weigher = self.router if self.config.weighs else None
        if torch.compiler.is_compiling():
            # One graph then serves layers with other tables, as it does in regional compilation.
            return TableRouter(table, weigher)
        bands = table[:1] if self._table_alike else table
        return TableRouter(bands, weigher, self._table_present)

    def _score(self, queries: QK, call: LayerCall, network: Any) -> tuple[Tensor, Tensor]:
        inputs = self._seen(queries, call)
        return score(network, call.timestep, inputs, fused=_fused(queries, call))

    def _weigh(self, queries: QK, call: LayerCall, network: Any) -> tuple[Tensor, Tensor]:
        own = OwnBands(self.bands, self.allocation)
        inputs, fused = self._seen(queries, call), _fused(queries, call)
        return weigh(network, call.timestep, inputs, own, fused=fused)

    def _seen(self, queries: QK, call: LayerCall) -> Inputs:
        """What a router's statistics are taken of; the sample alone where ranks share a video."""
        features = (queries.query, queries.key, call.hidden_states)
        norms = (self.query_norm, self.key_norm)
        order = call.token_order if self.context is None else "sample"
        return (features, norms, NORM_EPS, call.grid, self.config, order)

    def _by_bands(
        self,
        qkv: QKV,
        call: LayerCall,
        bands: Tensor,
        parameters: AttentionParameters,
        low_branch: BranchGates | None = None,
        present: tuple[int, ...] | None = None,
    ) -> Tensor:
        """(B, N, H, D), every head by its band, with a LOW branch by gates; bands (B, H) mean what
        the call's timestep bucket says, and are among `present`, if that is known."""

        def attend(*tensors: Tensor, allocation: Tensor, **named: Any) -> Tensor:
            return frequency_attention(
                *tensors,
                allocation=allocation if present is None else KnownBands(allocation, present),
                grid=call.grid,
                parameters=parameters,
                token_order=call.token_order,
                impl=call.impl,
                **named,
            )

        return attend_by_bucket(attend, qkv, bands, self.configs, call.timestep, low_branch)

    def _exact(self, qkv: QKV, call: LayerCall) -> Tensor:
        """(B, N, H, D), exact attention in every head."""
        norms = (self.query_norm, self.key_norm)
        if call.impl == "auto":
            return dense_attention(qkv, norms, call.rotary, call.grid, NORM_EPS)
        # Where all is exact no band's meaning is asked for, and a tile of the grid's own choice
        # fits.
        return frequency_attention(
            *qkv,
            grid=call.grid,
            config=FreqFormerConfig(
                tile=self.config.tile, allocation="dense", routing="fixed", low_branch=False
            ),
            parameters=AttentionLayer.learned(self, call, Decision(self.allocation)),
            token_order=call.token_order,
            impl=call.impl,
        )

    def __getstate__(self) -> dict[str, Any]:
        # A copy starts without the last call's tensors: they carry a graph, which can't be copied.
        return {**self.__dict__, "router_logits": None, "allocation_used": None}


def _fused(queries: QK, call: LayerCall) -> bool:
    """Whether Triton's kernels make the decision; values are like keys to them."""
    return uses_triton((queries.query, queries.key, queries.key), call.impl)
