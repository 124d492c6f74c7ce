"""Linear layers beside an exchange: products write where an all-to-all leaves from, and read where
one arrived, so that no head is packed or unpacked.

A weight's rows, or columns, are put in the order of ranks instead, which is little. Backward it is
the same the other way round. Samples of a batch lie side by side as they travel: one sample is
copied nowhere, of several the tokens are.

Shape legend: B batch, n tokens of a rank, C channels, H heads, h of a rank, W values of a token and
head.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from freqformer.attention.projections import as_autocast, is_plain
from freqformer.distributed.collective import wait
from freqformer.distributed.exchange import Route, Sent, Way, send_to_tokens, start_to_heads, way_of


class Projection(NamedTuple):
    """A linear layer whose channels are (branches, H, W)."""

    layer: nn.Linear
    branches: int = 1


def writes_in_place(layers: Sequence[nn.Module]) -> bool:
    """Whether these layers are products and nothing else, in code that is not traced: a compiled
    graph joins what it copies by itself."""
    return not torch.compiler.is_compiling() and all(map(is_plain, layers))


def send_projected(
    hidden_states: Tensor, projections: Sequence[Projection], route: Route
) -> list[Sent]:
    """Project this rank's tokens (B, n, C) and send the heads to their ranks, each layer's while
    the next one is computed.

    Returns: for each layer what `at_heads` takes; of several branches it makes (B, N, h, branches)
    with the numbers of (B, N, branches, h).
    """
    batch, tokens, _ = hidden_states.shape
    heads = sum(route.num_heads)
    ways = tuple(
        way_of((batch, tokens, heads, one.layer.out_features // heads), route, route.tokens)
        for one in projections
    )
    branches = tuple(one.branches for one in projections)
    given = (x for one in projections for x in (one.layer.weight, one.layer.bias))
    tensors = as_autocast([hidden_states, *given])
    order = route.order
    made: Any = _SentProducts.apply(ways, branches, order, *tensors)
    sent = zip(ways, made[: len(ways)], made[len(ways) :], strict=True)
    return [Sent(way, order, packed, received) for way, packed, received in sent]


def project_returned(x: Tensor, layer: nn.Linear, route: Route) -> Tensor:
    """Send (B, N, h, W) to the ranks that have the tokens, and project what comes back.

    The product of the heads that this rank has itself is computed while others travel.

    Returns: (B, n, C).
    """
    x, weight, bias = as_autocast([x, layer.weight, layer.bias])
    (sent,) = send_to_tokens(x, route)
    return _ProductOfReturned.apply(*sent, weight, bias)  # type: ignore[return-value]


class _SentProducts(torch.autograd.Function):
    """Products of the same tokens by each of several weights, sent as they are made: what was sent,
    and then what will arrive."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        ways: tuple[Way, ...],
        branches: tuple[int, ...],
        order: Tensor,
        hidden_states: Tensor,
        *given: Tensor | None,
    ) -> tuple[Tensor, ...]:
        """given: weight and bias of each layer, (O, C) and (O,) or None."""
        rows = _rows(hidden_states)
        packed = [rows.new_empty(sum(way.of_tokens)) for way in ways]
        received = []
        for number, (way, sent) in enumerate(zip(ways, packed, strict=True)):
            weights, biases = (
                _by_rank(x, branches[number], order, way)
                for x in given[2 * number : 2 * number + 2]
            )
            blocks = zip(_blocks(sent, way), weights, biases, strict=True)
            for block, weight, bias in blocks:
                _product(rows, weight, bias, block)
            received.append(start_to_heads(sent, way))
        ctx.ways = ways
        ctx.branches = branches
        ctx.save_for_backward(order, hidden_states, *given[::2])
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*received)
        return *packed, *received

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:  # type: ignore[override]
        order, hidden_states, *weights = ctx.saved_tensors
        rows = _rows(hidden_states)
        total: Tensor | None = None
        learned: list[Tensor | None] = [None] * (2 * len(weights))
        # The last that left began its way back first.
        for number in reversed(range(len(weights))):
            grad = grads[number]
            if grad is None:
                continue
            way, count = ctx.ways[number], ctx.branches[number]
            blocks = _few(_blocks(wait(grad), way))
            if ctx.needs_input_grad[3]:
                by_rank = _few(_by_rank(weights[number], count, order, way), 0)
                for block, weight in zip(blocks, by_rank, strict=True):
                    # In place: `addmm` would copy the sum first.
                    total = block @ weight if total is None else total.addmm_(block, weight)
            needs_weight, needs_bias = ctx.needs_input_grad[4 + 2 * number : 6 + 2 * number]
            if needs_weight:
                found = [block.T @ rows for block in blocks]
                learned[2 * number] = _by_layer(found, count, order, way)
            if needs_bias:
                found = [block.sum(0) for block in blocks]
                learned[2 * number + 1] = _by_layer(found, count, order, way)
        if total is not None:
            total = _samples(total, hidden_states.shape[0])
        return None, None, None, total, *learned


class _ProductOfReturned(torch.autograd.Function):
    """What came back from all heads times a weight; the own heads' first."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        way: Way,
        order: Tensor,
        packed: Tensor,
        received: Tensor,
        weight: Tensor,
        bias: Tensor | None,
    ) -> Tensor:
        """As `Sent`, then (C, H * W) and (C,) or None."""
        rows = way.tokens[way.rank] * way.batch
        columns = _columns(weight, order, way)
        own = packed.split(way.of_heads)[way.rank].view(rows, way.heads[way.rank] * way.width)
        out = nn.functional.linear(own, columns.pop(way.rank), bias)
        arrived = wait(received)
        others = _blocks(arrived, way)
        del others[way.rank]
        # One sum of all others, whatever their number: each is rounded.
        out.addmm_(_joined(others), _joined(columns).T)
        ctx.way = way
        ctx.save_for_backward(order, arrived, weight)
        return _samples(out, way.batch)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:  # type: ignore[override]
        way: Way = ctx.way
        order, arrived, weight = ctx.saved_tensors
        rows = _rows(grads[0])
        back = None
        if ctx.needs_input_grad[2]:
            packed = rows.new_empty(sum(way.of_tokens))
            blocks = zip(_blocks(packed, way), _columns(weight, order, way), strict=True)
            for block, own in blocks:
                torch.mm(rows, own, out=block)
            back = start_to_heads(packed, way)
        grad_weight = None
        if ctx.needs_input_grad[4]:
            # While the gradient of the heads travels.
            found = torch.cat([rows.T @ block for block in _blocks(arrived, way)], 1)
            by_head = found.unflatten(1, (len(order), -1))
            grad_weight = torch.empty_like(by_head).index_copy_(1, order, by_head).flatten(1)
        grad_bias = rows.sum(0) if ctx.needs_input_grad[5] else None
        return None, None, back, None, grad_weight, grad_bias


def _rows(x: Tensor) -> Tensor:
    """(B, n, C) -> (n * B, C), tokens before samples as they travel."""
    return x.transpose(0, 1).flatten(0, 1)


def _samples(rows: Tensor, batch: int) -> Tensor:
    """The inverse of `_rows`."""
    return rows.unflatten(0, (len(rows) // batch, batch)).transpose(0, 1)


def _blocks(packed: Tensor, way: Way) -> list[Tensor]:
    """Of every rank's heads this rank's tokens, each (n * B, branches * h * W)."""
    rows = way.tokens[way.rank] * way.batch
    sizes = zip(packed.split(way.of_tokens), way.heads, strict=True)
    return [block.view(rows, heads * way.width) for block, heads in sizes]


def _by_rank(x: Tensor | None, branches: int, order: Tensor, way: Way) -> list[Any]:
    """A layer's weight or bias (branches * H * W, ...) for the heads of every rank; None of
    None."""
    if x is None:
        return [None] * len(way.heads)
    by_head = x.unflatten(0, (branches, len(order), -1)).index_select(1, order)
    return [part.flatten(0, 2) for part in by_head.split(way.heads, 1)]


def _by_layer(parts: Sequence[Tensor], branches: int, order: Tensor, way: Way) -> Tensor:
    """The inverse of `_by_rank`, also of what `_few` joined."""
    whole = torch.cat(list(parts))
    sizes = [heads * len(whole) // len(order) for heads in way.heads]
    counts = zip(whole.split(sizes), way.heads, strict=True)
    by_head = torch.cat([part.unflatten(0, (branches, heads, -1)) for part, heads in counts], 1)
    return torch.empty_like(by_head).index_copy_(1, order, by_head).flatten(0, 2)


def _columns(weight: Tensor, order: Tensor, way: Way) -> list[Tensor]:
    """A weight (C, H * W) for the heads of every rank, each (C, h * W)."""
    by_head = weight.unflatten(1, (len(order), -1)).index_select(1, order)
    return [part.flatten(1) for part in by_head.split(way.heads, 1)]


def _few(blocks: Sequence[Tensor], axis: int = 1) -> list[Tensor]:
    """One block of all ranks, or one of each where there are two: products of many ranks' are
    short, and each sum is rounded."""
    return [torch.cat(list(blocks), axis)] if len(blocks) > 2 else list(blocks)


def _joined(blocks: Sequence[Tensor]) -> Tensor:
    """(rows, ...) side by side."""
    return blocks[0] if len(blocks) == 1 else torch.cat(list(blocks), 1)


def _product(rows: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> None:
    if bias is None:
        torch.mm(rows, weight.T, out=out)
    else:
        torch.addmm(bias, rows, weight.T, out=out)
