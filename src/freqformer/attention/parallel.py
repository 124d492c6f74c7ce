"""A layer's attention over a video that ranks share: each computes all tokens of some heads.

Shape legend: B batch, N tokens of the whole video, n of a rank, H heads, h of a rank, D head_dim.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from freqformer.attention.inputs import QKV, LayerCall, Projected, own_precision
from freqformer.distributed.context import ContextParallel
from freqformer.distributed.exchange import (
    Route,
    at_heads,
    at_tokens,
    num_messages,
    send_to_heads,
    send_to_tokens,
)
from freqformer.distributed.heads import deal_heads, head_costs
from freqformer.distributed.tokens import token_shares
from freqformer.grid import Extents, Grid, tile_layout
from freqformer.routing import Decision
from freqformer.tracing import constant_result

if TYPE_CHECKING:
    from freqformer.attention.base import AttentionLayer


def num_own_tokens(grid: Grid, tile: Extents | None, context: ContextParallel) -> int:
    """Tokens of this rank."""
    return _shares(grid, tile, context.size)[context.rank]


@constant_result
def _shares(grid: Grid, tile: Extents | None, ranks: int) -> tuple[int, ...]:
    """Tokens of every rank."""
    return token_shares(tile_layout(grid, tile), ranks)


def check_tile_order(token_order: str) -> None:
    """Raise ValueError for tokens that can't be shared."""
    if token_order != "tile":
        raise ValueError(
            f"token_order is {token_order!r} and ranks share the video; 'tile' is allowed, since "
            "they share whole tiles: reorder tokens and rotary tables, and pass "
            "token_order='tile'"
        )


def shared_logits(decision: Decision, context: ContextParallel | None) -> Tensor | None:
    """Logits for a loss that every rank takes of them."""
    logits = decision.logits
    return logits if logits is None or context is None else context.shared(logits)


def forward_across(
    layer: AttentionLayer, call: LayerCall, context: ContextParallel
) -> tuple[Decision, Tensor]:
    """As the layer's forward, over this rank's tokens: what was decided, and (B, n, C).

    Queries, keys and gates travel to the ranks that have their heads while values are projected.
    The output comes back in two parts, and the first is projected while the second travels.
    Backward it is the same the other way round. Which heads follows from what they cost, and what
    they learned goes with them.
    """
    decision, route, projected = _meet(layer, call, context)
    with own_precision(call.hidden_states):
        out = layer.attend(
            projected,
            decision.of_heads(route.own_heads),
            replace(call, heads=route.own_heads),
        )
    if not layer.exact:
        out = _Touched.apply(out, *_of_heads(layer))
    returning = send_to_tokens(out, route, num_messages(route))
    done = [layer.to_out(at_tokens(sent).flatten(2)) for sent in returning]
    return decision, done[0] if len(done) == 1 else torch.cat(done, 1)


def _meet(
    layer: AttentionLayer, call: LayerCall, context: ContextParallel
) -> tuple[Decision, Route, Projected]:
    """What the layer makes of all tokens, for this rank's heads; of all heads this rank's share is
    not held any longer than it travels."""
    hidden_states = call.hidden_states
    queries = layer.project_queries(hidden_states)
    with own_precision(hidden_states):
        decision = layer.decide(queries, call)
    # A table's lists may differ in length by timestep, not in the tile.
    route = Route(
        context,
        _shares(call.grid, layer.configs[0].tile, context.size),
        deal_heads(head_costs(layer.band_costs(call.grid), decision.bands), context.size),
    )
    sent = [send_to_heads(x, route) for x in queries]
    gates = None if layer.exact else layer.project_gates(hidden_states)
    if gates is not None:
        sent.append(send_to_heads(gates.transpose(2, 3), route))
    sent.append(send_to_heads(layer.project_values(hidden_states), route))
    query, key, *own_gates, value = map(at_heads, sent)
    for_branches = own_gates[0].transpose(2, 3).contiguous() if own_gates else None
    return decision, route, Projected(QKV(query, key, value), for_branches)


class _Touched(torch.autograd.Function):
    """The first tensor; the others get a gradient of zero.

    What a head learns may be of no use to the heads of one rank, and FSDP2 waits for a gradient on
    every rank that has one on any.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, *weights: Tensor) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(*weights)
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        return (grads[0], *(torch.zeros_like(weight) for weight in ctx.saved_tensors))


def _of_heads(layer: AttentionLayer) -> list[Tensor]:
    """What a layer has learned for each head."""
    learned = (
        getattr(layer, name, None) for name in ("summary_queries", "summary_offsets", "gains")
    )
    return [weight for weight in learned if weight is not None]
