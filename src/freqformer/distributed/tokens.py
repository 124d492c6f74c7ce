"""A video's tokens on the ranks that share it: whole tiles in tile order, no padding.

Gradients are shares too: each rank's gradient of a weight is what its own tokens and heads give,
and their sum over ranks is that of one process. So every rank computes the loss of the whole video,
and the backward of a gather takes the rank's own share of it.

Shape legend: B batch, N tokens of the whole video, n of a rank.
"""

from __future__ import annotations

import math
from functools import lru_cache
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from freqformer.distributed.collective import start_all_to_all, wait
from freqformer.distributed.context import ContextParallel
from freqformer.grid import TileLayout


@lru_cache(maxsize=64)
def token_shares(layout: TileLayout, ranks: int) -> tuple[int, ...]:
    """Tokens of every rank. A border is the tile's border nearest to an even share, so that with
    fewer tiles than ranks some have none."""
    borders = layout.offsets.tolist()
    total = layout.grid.num_tokens
    cuts = [
        min(borders, key=lambda border, even=rank * total / ranks: (abs(border - even), border))
        for rank in range(ranks + 1)
    ]
    return tuple(end - start for start, end in pairwise(cuts))


def shard_tokens(tokens: Tensor, layout: TileLayout, context: ContextParallel) -> Tensor:
    """This rank's share of the tokens, (B, N, ...) in tile order -> (B, n, ...).

    Args:
        tokens: of the whole video, the same on every rank.
        layout: of the grid and tile, from `tile_layout`.
        context: the ranks that share the video.

    Raises:
        ValueError: for another number of tokens than the grid's.
    """
    if tokens.ndim < 2 or tokens.shape[1] != layout.grid.num_tokens:
        raise ValueError(
            f"tokens has shape {tuple(tokens.shape)}; (batch, {layout.grid.num_tokens}, ...) is "
            "allowed: pass the whole video's tokens in tile order"
        )
    shares = token_shares(layout, context.size)
    start = sum(shares[: context.rank])
    return tokens[:, start : start + shares[context.rank]]


def gather_tokens(tokens: Tensor, layout: TileLayout, context: ContextParallel) -> Tensor:
    """The whole video's tokens from every rank's share, (B, n, ...) -> (B, N, ...) in tile order.

    Args:
        tokens: what `shard_tokens` gave, or what was computed of it.
        layout, context: as there.

    Raises:
        ValueError: for another number of tokens than this rank's share.
    """
    shares = token_shares(layout, context.size)
    if tokens.ndim < 2 or tokens.shape[1] != shares[context.rank]:
        raise ValueError(
            f"tokens has shape {tuple(tokens.shape)}; (batch, {shares[context.rank]}, ...) is "
            "allowed: pass this rank's share"
        )
    return _Gather.apply(tokens, shares, context)  # type: ignore[return-value]


class _Gather(torch.autograd.Function):
    """All shares, one after another; the gradient is the own share's."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, tokens: Tensor, shares: tuple[int, ...], context: ContextParallel
    ) -> Tensor:
        ctx.start = sum(shares[: context.rank])
        ctx.count = shares[context.rank]
        return start_gather(tokens, shares, context).arrive()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return grads[0][:, ctx.start : ctx.start + ctx.count], None, None


class Gathering(NamedTuple):
    """Shares of all ranks on their way."""

    received: Tensor
    """Not to be read yet."""
    shape: tuple[int, ...]
    """(N, B, ...)."""

    def arrive(self) -> Tensor:
        """(B, N, ...)."""
        return wait(self.received).view(self.shape).transpose(0, 1)


def start_gather(x: Tensor, shares: tuple[int, ...], context: ContextParallel) -> Gathering:
    """As `gather_tokens`, for any shares along axis 1 and without a gradient; it travels until it
    is asked to arrive."""
    own = x.transpose(0, 1).contiguous()
    row = math.prod(own.shape[1:])
    # Every rank sends all of its tokens to each other one: uneven shares need no padding so.
    sent = own.flatten().repeat(context.size)
    received = start_all_to_all(
        sent, [share * row for share in shares], [own.numel()] * context.size, context.group
    )
    return Gathering(received, (sum(shares), *own.shape[1:]))
