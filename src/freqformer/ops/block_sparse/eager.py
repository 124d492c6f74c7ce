"""Block-sparse attention in plain PyTorch with linear memory, on any device.

Query tiles are taken in chunks whose scores fit a core's cache. Each chunk gathers its key tiles,
and the backward pass gathers and computes the scores again instead of keeping them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from freqformer.ops.block_sparse.api import TileLists

CHUNK_SCORES = 1 << 20
"""Scores per chunk: 4 MiB of float32, so that a chunk stays in cache between its matrix
products."""
QUERY_BLOCK = 128
"""Queries per chunk row where there are no tiles."""


@dataclass(frozen=True)
class _Chunk:
    """Some query tiles of one row, and the key tiles that they see."""

    row: int
    queries: Tensor
    """Query tiles, int64 (c,)."""
    lists: Tensor
    """Their key tiles, int64 (c, l), -1 behind the end."""
    bias: Tensor
    """(c, l * slots + E), -inf on slots that hold no key."""


class _Tiles:
    """Padded views of compact tokens, and the chunks to take them in. Slots behind a tile's end
    repeat its last token."""

    def __init__(self, tiles: TileLists | None, num_queries: int, device: torch.device) -> None:
        self.tiles = tiles
        if tiles is None:
            self.counts = torch.tensor(
                [min(QUERY_BLOCK, num_queries - s) for s in range(0, num_queries, QUERY_BLOCK)]
            )
            self.slots = min(QUERY_BLOCK, num_queries)
            starts = torch.arange(0, num_queries, QUERY_BLOCK)[:, None]
            index = starts + torch.minimum(torch.arange(self.slots)[None], self.counts[:, None] - 1)
            self.lists = torch.zeros(1, len(self.counts), 0, dtype=torch.int64, device=device)
        else:
            self.counts, self.slots = tiles.layout.counts, tiles.layout.slots
            index = tiles.layout.padded_index()
            self.lists = tiles.lists.to(device)
        self.ragged = bool((self.counts < self.slots).any())
        self.valid = (torch.arange(self.slots) < self.counts[:, None]).to(device)
        self.counts, self.index = self.counts.to(device), index.to(device)

    def pad(self, x: Tensor) -> Tensor:
        """(R, N, D) -> (R, T, slots, D)."""
        if self.ragged:
            x = x.index_select(1, self.index.flatten())
        return x.reshape(x.shape[0], *self.index.shape, x.shape[-1])

    def compact(self, x: Tensor) -> Tensor:
        """(R, T, slots, D) -> (R, N, D)."""
        x = x.flatten(1, 2)
        return x.index_select(1, self.valid.flatten().nonzero().squeeze(1)) if self.ragged else x

    def chunks(self, extra_bias: Tensor) -> Iterator[_Chunk]:
        """Chunks of every row, longest lists first."""
        num_tiles = self.index.shape[0]
        for row in range(extra_bias.shape[0]):
            lists = self.lists[row if self.lists.shape[0] > 1 else 0]
            lengths = (lists >= 0).sum(-1)
            order = lengths.argsort(descending=True, stable=True)
            start = 0
            while start < num_tiles:
                longest = int(lengths[order[start]])
                keys = longest * self.slots + extra_bias.shape[1]
                queries = order[start : start + max(1, CHUNK_SCORES // (self.slots * max(keys, 1)))]
                chunk_lists = lists[queries, :longest]
                yield _Chunk(row, queries, chunk_lists, self._bias(chunk_lists, extra_bias[row]))
                start += len(queries)

    def _bias(self, lists: Tensor, extra_bias: Tensor) -> Tensor:
        listed = lists.clamp_min(0)
        video = extra_bias.new_zeros(*lists.shape, self.slots)
        if self.ragged or bool((lists < 0).any()):
            video.masked_fill_(~(self.valid[listed] & (lists >= 0)[..., None]), -torch.inf)
        extra = extra_bias.expand(lists.shape[0], -1)
        cells = self.tiles.cells if self.tiles is not None else None
        if cells is not None and cells.num_cells:
            left = cells.counts.to(lists.device).repeat(lists.shape[0], 1)
            counts = torch.where(lists >= 0, self.counts[listed], 0)
            left.scatter_add_(1, cells.cell_of_tile.to(lists.device)[listed], -counts)
            extra = extra + F.pad(left.to(extra.dtype).log(), (0, extra.shape[1] - cells.num_cells))
        return torch.cat([video.flatten(1), extra], 1)


def _gathered(tiles: Tensor, extra: Tensor, chunk: _Chunk, dtype: torch.dtype) -> Tensor:
    """Keys or values of a chunk: (c, l * slots + E, D)."""
    extras = extra[chunk.row].to(dtype).expand(len(chunk.queries), -1, -1)
    if not chunk.lists.shape[1]:
        return extras
    listed = tiles[chunk.row].index_select(0, chunk.lists.clamp_min(0).flatten())
    listed = listed.reshape(len(chunk.queries), -1, tiles.shape[-1])
    return torch.cat([listed.to(dtype), extras], 1)


def _weights(query: Tensor, key: Tensor, bias: Tensor) -> Tensor:
    nothing = bias.isneginf().all(-1)
    scores = torch.baddbmm(
        bias[:, None].to(query.dtype), query, key.transpose(1, 2), alpha=query.shape[-1] ** -0.5
    )
    weights = scores.softmax(-1)
    if bool(nothing.any()):
        weights = weights.masked_fill(nothing[:, None, None], 0)
    return _rounded(weights)


def _slopes(grad_weights: Tensor, weights: Tensor) -> Tensor:
    """Gradients of scores, through the softmax from the weights and not from the rounded output.

    Where one key takes nearly all weight, the two terms cancel, and only so to the last bit.
    """
    slopes = torch.ops.aten._softmax_backward_data(grad_weights, weights, -1, weights.dtype)
    return _rounded(slopes)


_factors: list[torch.dtype] = []
"""What weights and slopes are rounded to, where anything: see `rounded_weights`."""


@contextmanager
def rounded_weights(dtype: torch.dtype) -> Iterator[None]:
    """Within it, weights of attention and gradients of scores are rounded to `dtype`, as kernels on
    matrix units must: the peer that their errors are measured by. It holds for the process."""
    _factors.append(dtype)
    try:
        yield
    finally:
        _factors.pop()


def _rounded(x: Tensor) -> Tensor:
    return x.to(_factors[-1]).to(x.dtype) if _factors else x


def _add_tiles(total: Tensor, index: Tensor, tiles: Tensor) -> None:
    """total[index] += tiles, repeated indices added up, with the same bits at every run."""
    if total.is_cuda:
        total.index_put_((index,), tiles, accumulate=True)  # CUDA's index_add_ adds in any order
    else:
        total.index_add_(0, index, tiles)


class _GatherAttention(torch.autograd.Function):
    """The attention; its backward is made of differentiable operations, so that gradients have
    gradients too."""

    @staticmethod
    def forward(
        tiles: _Tiles, query: Tensor, key: Tensor, value: Tensor, *extras: Tensor
    ) -> Tensor:  # type: ignore[override]
        extra_key, extra_value, extra_bias = extras
        wide = extra_bias.dtype
        padded_query, key_tiles, value_tiles = tiles.pad(query), key, value
        if tiles.tiles is not None:
            key_tiles, value_tiles = tiles.pad(key), tiles.pad(value)
        out = torch.empty_like(padded_query)
        for chunk in tiles.chunks(extra_bias):
            q = padded_query[chunk.row, chunk.queries].to(wide)
            k = _gathered(key_tiles, extra_key, chunk, wide)
            v = _gathered(value_tiles, extra_value, chunk, wide)
            out[chunk.row, chunk.queries] = (_weights(q, k, chunk.bias) @ v).to(out.dtype)
        return tiles.compact(out)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:  # type: ignore[override]
        tiles, *tensors = inputs
        ctx.tiles = tiles
        ctx.save_for_backward(*tensors)

    @staticmethod
    def jvp(ctx: Any, *_: Any) -> Any:
        raise ValueError(
            "forward-mode differentiation reached eager attention, which has none: take reverse "
            "mode (torch.func.grad, "
            "backward), or impl='reference'"
        )

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        query, key, value, extra_key, extra_value, extra_bias = ctx.saved_tensors
        tiles, wide = ctx.tiles, extra_bias.dtype
        scale = query.shape[-1] ** -0.5
        padded = [tiles.pad(x) for x in (query, grads[0])]
        key_tiles, value_tiles = (
            (tiles.pad(key), tiles.pad(value)) if tiles.tiles is not None else (key, value)
        )
        grad_query = torch.empty_like(padded[0])
        grad_key, grad_value, grad_extra_key, grad_extra_value, grad_bias = (
            torch.zeros_like(x, dtype=wide)
            for x in (key_tiles, value_tiles, extra_key, extra_value, extra_bias)
        )
        for chunk in tiles.chunks(extra_bias):
            q, grad_out = (x[chunk.row, chunk.queries].to(wide) for x in padded)
            # Padding slots repeat a token; their share of the gradients is dropped here.
            grad_out = grad_out * tiles.valid[chunk.queries][..., None]
            k = _gathered(key_tiles, extra_key, chunk, wide)
            v = _gathered(value_tiles, extra_value, chunk, wide)
            weights = _weights(q, k, chunk.bias)
            grad_v = weights.transpose(1, 2) @ grad_out
            grad_scores = _slopes(grad_out @ v.transpose(1, 2), weights)
            grad_query[chunk.row, chunk.queries] = (grad_scores @ k * scale).to(query.dtype)
            grad_k = grad_scores.transpose(1, 2) @ q * scale
            video = chunk.lists.shape[1] * tiles.slots
            for total, extra_total, grad in (
                (grad_key, grad_extra_key, grad_k),
                (grad_value, grad_extra_value, grad_v),
            ):
                if video:
                    listed = grad[:, :video].reshape(-1, tiles.slots, grad.shape[-1])
                    _add_tiles(total[chunk.row], chunk.lists.clamp_min(0).flatten(), listed)
                extra_total[chunk.row] += grad[:, video:].sum(0)
            grad_bias[chunk.row] += grad_scores[:, :, video:].sum((0, 1))
        if tiles.tiles is not None:
            grad_key, grad_value = tiles.compact(grad_key), tiles.compact(grad_value)
        inputs = (key, value, extra_key, extra_value, extra_bias)
        totals = (grad_key, grad_value, grad_extra_key, grad_extra_value, grad_bias)
        rest = [total.to(x.dtype) for total, x in zip(totals, inputs, strict=True)]
        return (None, tiles.compact(grad_query), *rest)


def attend(
    query: Tensor,
    key: Tensor | None,
    value: Tensor | None,
    extras: tuple[Tensor, Tensor, Tensor],
    tiles: TileLists | None,
) -> Tensor:
    """See `api.block_sparse_attention`."""
    if key is None or value is None:
        # No exact keys: one empty tile stands for them, so that one code path serves every band.
        key = value = query.new_zeros(query.shape[0], 1, 0, query.shape[2])
    helper = _Tiles(tiles, query.shape[1], query.device)
    return _GatherAttention.apply(helper, query, key, value, *extras)  # type: ignore[return-value]


def attend_dense(query: Tensor, key: Tensor, value: Tensor, key_mask: Tensor | None) -> Tensor:
    """See `api.dense_attention`.

    Not torch's fused attention: on a CPU its backward takes exponentials of score - log-sum-exp,
    and where outlier channels make scores in the hundreds its float32 gradients are off by up to
    1e-4.
    """
    bias = key.new_zeros(
        key.shape[:2], dtype=torch.float64 if key.dtype == torch.float64 else torch.float32
    )
    if key_mask is not None:
        bias = bias.masked_fill(~key_mask, -torch.inf)
    return attend(query, None, None, (key, value, bias), None)
