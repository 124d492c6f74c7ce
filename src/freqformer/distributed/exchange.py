"""Ulysses: from a share of the tokens of all heads to all tokens of a share of the heads, and back.

What is sent travels until it is asked to arrive, and its gradient as well: the backward of `arrive`
starts the way back, and what was packed waits for it. Whatever lies between the two, forward and
backward, is computed meanwhile.

Shape legend: B batch, N tokens of the whole video, n of a rank, H heads, h of a rank, W values of a
token and head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from freqformer.distributed.collective import start_all_to_all, wait
from freqformer.distributed.context import ContextParallel
from freqformer.ops.head_blocks.api import from_blocks, to_blocks

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


SPLIT_TOKENS = 8192
"""Tokens of a rank from which an output comes back in two messages; chosen, not measured."""


@dataclass(frozen=True, eq=False)
class Route:
    """Who has what before and after an exchange."""

    context: ContextParallel
    tokens: tuple[int, ...]
    """Tokens of every rank, as `token_shares`."""
    heads: tuple[Tensor, ...]
    """Heads of every rank, as `deal_heads`."""

    @property
    def order(self) -> Tensor:
        """All heads, those of the first rank first, int64 (H,)."""
        return torch.cat(self.heads)

    @property
    def num_heads(self) -> tuple[int, ...]:
        """Heads of every rank."""
        return tuple(len(heads) for heads in self.heads)

    @property
    def own_heads(self) -> Tensor:
        """Heads of this rank, int64 (h,)."""
        return self.heads[self.context.rank]


class Way(NamedTuple):
    """The numbers of one all-to-all: the same in a graph of all layers."""

    group: ProcessGroup
    rank: int
    batch: int
    width: int
    """W."""
    tokens: tuple[int, ...]
    """Tokens of every rank that travel."""
    heads: tuple[int, ...]
    """Numbers of heads of every rank."""

    @property
    def row(self) -> int:
        """Values of a token and head."""
        return self.batch * self.width

    @property
    def whole(self) -> tuple[int, int, int, int]:
        """Shape of this rank's tokens with all heads."""
        return self.batch, self.tokens[self.rank], sum(self.heads), self.width

    @property
    def of_tokens(self) -> list[int]:
        """Of this rank's tokens, the values of every rank's heads."""
        return [self.tokens[self.rank] * heads * self.row for heads in self.heads]

    @property
    def of_heads(self) -> list[int]:
        """Of this rank's heads, the values of every rank's tokens."""
        return [tokens * self.heads[self.rank] * self.row for tokens in self.tokens]


class Sent(NamedTuple):
    """What is on its way."""

    way: Way
    order: Tensor
    """All heads in the order of ranks, int64 (H,)."""
    packed: Tensor
    """What was sent, that a gradient comes back to."""
    received: Tensor
    """Not to be read yet."""


def send_to_heads(x: Tensor, route: Route, blocks: Tensor | None = None) -> Sent:
    """Send (B, n, H, W) to the ranks that have the heads.

    It needs no divisible numbers: ranks may have other numbers of tokens, none included, and heads.

    Args:
        x: this rank's tokens.
        route: who has what.
        blocks: what is sent in place of x, which then only has its shape: as `to_blocks` of
            `route.order`, without a gradient.
    """
    way = _way(x, route, route.tokens)
    order = route.order
    packed: Any = _LeaveTokens.apply(way, order, x) if blocks is None else blocks
    received = start_all_to_all(packed, way.of_heads, way.of_tokens, way.group)
    return Sent(way, order, packed, received)


def at_heads(sent: Sent) -> Tensor:
    """What `send_to_heads` sent: (B, N, h, W)."""
    return _ArriveAtHeads.apply(sent.way, sent.order, sent.packed, sent.received)  # type: ignore[return-value]


def num_messages(route: Route) -> int:
    """All-to-alls that bring a layer's output back, the same number on every rank."""
    return 2 if sum(route.tokens) >= SPLIT_TOKENS * len(route.tokens) else 1


def send_to_tokens(x: Tensor, route: Route, messages: int = 1) -> list[Sent]:
    """Send (B, N, h, W) to the ranks that have the tokens.

    Args:
        messages: all-to-alls; each carries one part of every rank's tokens, in their order, so that
            the first can be worked on while the others travel.
    """
    shares = [_parts_of(tokens, messages) for tokens in route.tokens]
    ways = tuple(_way(x, route, tokens) for tokens in zip(*shares, strict=True))
    order = route.order
    leaving: Any = _LeaveHeads.apply(ways, order, x)
    return [
        Sent(way, order, packed, start_all_to_all(packed, way.of_tokens, way.of_heads, way.group))
        for way, packed in zip(ways, leaving, strict=True)
    ]


def at_tokens(sent: Sent) -> Tensor:
    """What one message of `send_to_tokens` carries: (B, its tokens of this rank, H, W)."""
    return _ArriveAtTokens.apply(sent.way, sent.order, sent.packed, sent.received)  # type: ignore[return-value]


# An exchange moves values and changes none, so that its gradient is its inverse.


class _LeaveTokens(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, way: Way, order: Tensor, x: Tensor) -> Tensor:  # type: ignore[override]
        ctx.way = way
        ctx.save_for_backward(order)
        return to_blocks(x, order, way.heads)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:  # type: ignore[override]
        (order,) = ctx.saved_tensors
        return None, None, from_blocks(wait(grads[0]), order, ctx.way.heads, ctx.way.whole)


class _ArriveAtHeads(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, way: Way, order: Tensor, packed: Tensor, received: Tensor
    ) -> Tensor:
        ctx.way = way
        return _join_tokens((wait(received),), (way,))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:  # type: ignore[override]
        way = ctx.way
        (packed,) = _split_tokens(grads[0], (way,))
        return None, None, start_all_to_all(packed, way.of_tokens, way.of_heads, way.group), None


class _LeaveHeads(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, ways: tuple[Way, ...], order: Tensor, x: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        ctx.ways = ways
        return _split_tokens(x, ways)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:  # type: ignore[override]
        return None, None, _join_tokens([wait(grad) for grad in grads], ctx.ways)


class _ArriveAtTokens(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, way: Way, order: Tensor, packed: Tensor, received: Tensor
    ) -> Tensor:
        ctx.way = way
        ctx.save_for_backward(order)
        return from_blocks(wait(received), order, way.heads, way.whole)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:  # type: ignore[override]
        way = ctx.way
        (order,) = ctx.saved_tensors
        packed = to_blocks(grads[0], order, way.heads)
        return None, None, start_all_to_all(packed, way.of_heads, way.of_tokens, way.group), None


def _way(x: Tensor, route: Route, tokens: tuple[int, ...]) -> Way:
    return Way(
        group=route.context.group,
        rank=route.context.rank,
        batch=x.shape[0],
        width=x.shape[3],
        tokens=tokens,
        heads=route.num_heads,
    )


def _parts_of(tokens: int, messages: int) -> list[int]:
    """Tokens of one rank in each message, as even as can be."""
    ends = [tokens * message // messages for message in range(messages + 1)]
    return [end - start for start, end in pairwise(ends)]


def _split_tokens(x: Tensor, ways: tuple[Way, ...]) -> tuple[Tensor, ...]:
    """(B, N, h, W) -> for every message a block for every rank, tokens before samples. With one
    sample and one message nothing is copied."""
    moved = x.transpose(0, 1)
    if len(ways) == 1:
        return (moved.contiguous().view(-1),)
    pieces = moved.split(_pieces(ways))
    return tuple(torch.cat(pieces[message :: len(ways)]).flatten() for message in range(len(ways)))


def _join_tokens(received: Sequence[Tensor], ways: tuple[Way, ...]) -> Tensor:
    """The inverse of `_split_tokens`."""
    shaped = [
        flat.view(sum(way.tokens), way.batch, way.heads[way.rank], way.width)
        for flat, way in zip(received, ways, strict=True)
    ]
    whole = shaped[0]
    if len(ways) > 1:
        split = [part.split(way.tokens) for part, way in zip(shaped, ways, strict=True)]
        whole = torch.cat([piece for rank in zip(*split, strict=True) for piece in rank])
    return whole.transpose(0, 1).contiguous()


def _pieces(ways: tuple[Way, ...]) -> list[int]:
    """Tokens in the order of the video: the first rank's in every message, the second's, ..."""
    by_rank = zip(*(way.tokens for way in ways), strict=True)
    return [tokens for messages in by_rank for tokens in messages]
