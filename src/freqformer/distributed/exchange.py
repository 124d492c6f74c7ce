"""Ulysses: from a share of the tokens of all heads to all tokens of a share of the heads, and back.

Shape legend: B batch, N tokens of the whole video, n of a rank, H heads, h of a rank, W values of a
token and head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist
from torch.autograd.function import once_differentiable

from freqformer.distributed.context import ContextParallel


@dataclass(frozen=True, eq=False)
class Route:
    """Who has what before and after an exchange."""

    context: ContextParallel
    tokens: tuple[int, ...]
    """Tokens of every rank, as `token_shares`."""
    heads: tuple[Tensor, ...]
    """Heads of every rank, as `deal_heads`."""

    @property
    def own_heads(self) -> Tensor:
        """Heads of this rank, int64 (h,)."""
        return self.heads[self.context.rank]


def to_heads(parts: Sequence[Tensor], route: Route) -> tuple[Tensor, ...]:
    """(B, n, H, W) each -> (B, N, h, W) each, in one all-to-all; one dtype, any widths.

    It needs no divisible numbers: ranks may have other numbers of tokens, none included, and heads.
    """
    return _Exchange.apply(route, True, *parts)  # type: ignore[return-value]


def to_tokens(x: Tensor, route: Route) -> Tensor:
    """The inverse of `to_heads`: (B, N, h, W) -> (B, n, H, W)."""
    (out,) = _Exchange.apply(route, False, x)  # type: ignore[misc]
    return out


class _Exchange(torch.autograd.Function):
    """It moves values and changes none, so that its gradient is its inverse."""

    @staticmethod
    def forward(ctx: Any, route: Route, heads_wanted: bool, *parts: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        ctx.route, ctx.heads_wanted = route, heads_wanted
        return _to_heads(parts, route) if heads_wanted else _to_tokens(parts, route)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:  # type: ignore[override]
        moved = _to_tokens if ctx.heads_wanted else _to_heads
        return None, None, *moved(grads, ctx.route)


def _to_heads(parts: Sequence[Tensor], route: Route) -> tuple[Tensor, ...]:
    batch, own_tokens = parts[0].shape[:2]
    widths = [part.shape[3] for part in parts]
    row = batch * sum(widths)  # values of a token and head
    counts = [len(heads) for heads in route.heads]
    own_heads = counts[route.context.rank]
    sent = parts[0].new_empty(own_tokens * sum(counts) * row)
    # A block for each rank, tokens before samples: blocks of all ranks then lie one after another
    # in the order of tokens.
    blocks = sent.split([own_tokens * count * row for count in counts])
    for block, heads in zip(blocks, route.heads, strict=True):
        shaped = block.view(own_tokens, batch, len(heads), sum(widths)).split(widths, -1)
        for place, part in zip(shaped, parts, strict=True):
            place.copy_(part.index_select(2, heads).transpose(0, 1))
    received = sent.new_empty(sum(route.tokens) * own_heads * row)
    dist.all_to_all_single(
        received,
        sent,
        [tokens * own_heads * row for tokens in route.tokens],
        [len(block) for block in blocks],
        group=route.context.group,
    )
    whole = received.view(sum(route.tokens), batch, own_heads, sum(widths)).transpose(0, 1)
    return tuple(part.contiguous() for part in whole.split(widths, -1))


def _to_tokens(parts: Sequence[Tensor], route: Route) -> tuple[Tensor, ...]:
    batch = parts[0].shape[0]
    widths = [part.shape[3] for part in parts]
    row = batch * sum(widths)
    counts = [len(heads) for heads in route.heads]
    rank = route.context.rank
    own_tokens = route.tokens[rank]
    sent = torch.cat([part.transpose(0, 1) for part in parts], -1).flatten()
    received = sent.new_empty(own_tokens * sum(counts) * row)
    sizes = [own_tokens * count * row for count in counts]
    dist.all_to_all_single(
        received,
        sent,
        sizes,
        [tokens * counts[rank] * row for tokens in route.tokens],
        group=route.context.group,
    )
    # In the order of ranks, so that one permutation sorts the heads.
    order = torch.cat(route.heads)
    out = [received.new_empty(batch, own_tokens, sum(counts), width) for width in widths]
    for block, heads in zip(received.split(sizes), order.split(counts), strict=True):
        shaped = block.view(own_tokens, batch, len(heads), sum(widths)).split(widths, -1)
        for whole, part in zip(out, shaped, strict=True):
            whole.index_copy_(2, heads, part.transpose(0, 1))
    return tuple(out)
