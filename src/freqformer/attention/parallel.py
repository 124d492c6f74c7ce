"""A layer's attention over a video that ranks share: each computes all tokens of some heads.

Shape legend: B batch, N tokens of the whole video, n of a rank, H heads, h of a rank, D head_dim.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from freqformer.attention.inputs import QKV, LayerCall, Projected
from freqformer.distributed.context import ContextParallel
from freqformer.distributed.exchange import Route, to_heads, to_tokens
from freqformer.distributed.heads import deal_heads
from freqformer.distributed.tokens import token_shares
from freqformer.grid import Extents, Grid, tile_layout
from freqformer.routing import Decision
from freqformer.tracing import constant_result

if TYPE_CHECKING:
    from freqformer.attention.base import AttentionLayer


@constant_result
def num_own_tokens(grid: Grid, tile: Extents | None, ranks: int, rank: int) -> int:
    """Tokens of one of the ranks."""
    return token_shares(tile_layout(grid, tile), ranks)[rank]


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


def attend_across(
    layer: AttentionLayer, projected: Projected, call: LayerCall, context: ContextParallel
) -> tuple[Decision, Tensor]:
    """As the layer's `decide` and `attend`, over this rank's tokens of all heads: (B, n, H, D).

    One all-to-all brings queries, keys, values and gates of some heads here, one takes the output
    back. Which heads follows from what they cost, and what they learned goes with them.
    """
    decision = layer.decide(projected, call)
    route = Route(
        context,
        _shares(layer, call.grid, context),
        deal_heads(_costs(layer, decision, call.grid), context.size),
    )
    parts = list(projected.qkv)
    if projected.gates is not None and not layer.exact:
        parts.append(projected.gates.transpose(2, 3))
    query, key, value, *rest = to_heads(parts, route)
    gates = rest[0].transpose(2, 3).contiguous() if rest else None
    out = layer.attend(
        Projected(QKV(query, key, value), gates),
        decision.of_heads(route.own_heads),
        replace(call, heads=route.own_heads),
    )
    if not layer.exact:
        out = _Touched.apply(out, *_of_heads(layer))  # type: ignore[assignment]
    return decision, to_tokens(out, route)


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


def _shares(layer: AttentionLayer, grid: Grid, context: ContextParallel) -> tuple[int, ...]:
    config = layer.configs[0]  # a table's lists may differ in length by timestep, not in the tile
    return token_shares(tile_layout(grid, config.tile), context.size)


def _costs(layer: AttentionLayer, decision: Decision, grid: Grid) -> Tensor:
    """What every head costs over all samples, float64 (H,), where its bands are."""
    by_band = _on_device(tuple(layer.band_costs(grid)), decision.bands.device)
    return by_band[decision.bands].sum(0)


@lru_cache(maxsize=64)
@torch.inference_mode(False)  # what it caches must also serve training
def _on_device(costs: tuple[float, ...], device: torch.device) -> Tensor:
    return torch.tensor(costs, dtype=torch.float64, device=device)
