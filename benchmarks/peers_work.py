"""What a kernel of `peers.py` computes, and what must come out, in float64 on sampled queries and
keys.

Shape legend: R rows (heads; one sample), P places of queries, S places of keys, D head_dim.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from freqformer.grid import TILE_SLOTS, Grid
from freqformer.ops.block_sparse.cost import BACKWARD_FACTOR

LOW_QUERIES = -1
"""The block of a row that is all its low queries."""


class Timed(NamedTuple):
    """A call to time, and how its result is read."""

    run: Callable[[], Any]
    read: Callable[[Any], Any]
    """Of what `run` gives: the output (R, P, D), or `Grads`."""


class Grads(NamedTuple):
    """Gradients of queries (R, P, D), keys and values (R, S, D); some have more places."""

    query: Tensor
    key: Tensor
    value: Tensor


class Block(NamedTuple):
    """Some queries of a row, and what they see."""

    queries: slice
    """Their places."""
    keys: Tensor
    """Places of the keys, int64."""
    bias: Tensor
    """Added to the logits of each key, float64."""


@dataclass(frozen=True, eq=False)
class Work(ABC):
    """Queries, keys and values of one call, and the gradient of its output."""

    query: Tensor
    """(R, P, D)."""
    key: Tensor
    """(R, S, D)."""
    value: Tensor
    grad_out: Tensor
    """At the places of the queries."""

    @property
    @abstractmethod
    def flops(self) -> float:
        """Useful ones, of a forward: 4 * queries * keys * D of every kept block."""

    @property
    @abstractmethod
    def samples(self) -> list[tuple[int, int]]:
        """(row, block of queries) of what is checked."""

    @abstractmethod
    def block(self, row: int, index: int) -> Block:
        """What a block of queries of a row sees: that of a tile, or `LOW_QUERIES`."""

    @abstractmethod
    def listing(self, row: int, tile: int) -> list[int]:
        """The blocks of a row that see the tokens of a tile."""

    @abstractmethod
    def written(self, x: Tensor) -> Tensor:
        """The rows and places of an output or a gradient that every kernel writes."""

    def pass_flops(self, backward: bool) -> float:
        """Useful FLOPs of a forward, or of a backward."""
        return self.flops * (BACKWARD_FACTOR if backward else 1.0)

    def output_error(self, out: Tensor) -> float:
        """Largest |out - exact| / |exact| of the sampled blocks; out (R, P, D)."""
        worst = 0.0
        for row, index in self.samples:
            block = self.block(row, index)
            exact = self._weights(row, block) @ self.value[row, block.keys].double()
            worst = max(worst, _relative(out[row, block.queries], exact))
        return worst

    def gradient_error(self, grads: Grads) -> float:
        """The same of gradients of the sampled blocks' queries and of their tiles' keys and
        values."""
        worst = 0.0
        for row, index in self.samples:
            block = self.block(row, index)
            grad = self._logit_grads(row, block) @ self.key[row, block.keys].double()
            worst = max(worst, _relative(grads.query[row, block.queries], grad * self._scale))
            if index != LOW_QUERIES:
                own = slice(index * TILE_SLOTS, (index + 1) * TILE_SLOTS)
                exact_key, exact_value = self._tile_grads(row, index)
                worst = max(worst, _relative(grads.key[row, own], exact_key))
                worst = max(worst, _relative(grads.value[row, own], exact_value))
        return worst

    def _tile_grads(self, row: int, tile: int) -> tuple[Tensor, Tensor]:
        shape = (TILE_SLOTS, self.key.shape[2])
        key = self.key.new_zeros(shape, dtype=torch.float64)
        value = torch.zeros_like(key)
        for index in self.listing(row, tile):
            block = self.block(row, index)
            own = (block.keys // TILE_SLOTS == tile).nonzero().squeeze(1)
            own = own[block.keys[own].argsort()]
            weights, slopes = self._weights(row, block), self._logit_grads(row, block)
            key += slopes[:, own].T @ self.query[row, block.queries].double() * self._scale
            value += weights[:, own].T @ self.grad_out[row, block.queries].double()
        return key, value

    def _weights(self, row: int, block: Block) -> Tensor:
        query, key = self.query[row, block.queries].double(), self.key[row, block.keys].double()
        return (query @ key.T * self._scale + block.bias).softmax(-1)

    def _logit_grads(self, row: int, block: Block) -> Tensor:
        weights = self._weights(row, block)
        grad_out = self.grad_out[row, block.queries].double()
        agree = grad_out @ self.value[row, block.keys].double().T
        return weights * (agree - (weights * agree).sum(-1, keepdim=True))

    @property
    def _scale(self) -> float:
        return self.query.shape[2] ** -0.5


def _relative(found: Tensor, exact: Tensor) -> float:
    error = float((found.double() - exact).norm() / exact.norm())
    return error if math.isfinite(error) else math.inf


@dataclass(frozen=True)
class Size:
    """How large a work is."""

    grid: Grid
    heads: int
    head_dim: int
    device: torch.device
    dtype: torch.dtype

    @property
    def draw(self) -> torch.Generator:
        """The same numbers in every process."""
        return torch.Generator(self.device).manual_seed(0)

    def normal(self, draw: torch.Generator, places: int) -> Tensor:
        """(heads, places, head_dim)."""
        shape = (self.heads, places, self.head_dim)
        return torch.randn(shape, generator=draw, device=self.device).to(self.dtype)


def tile_tokens(tiles: Tensor) -> Tensor:
    """Places of the tokens of full tiles, int64."""
    slots = torch.arange(TILE_SLOTS, device=tiles.device)
    return (tiles.long()[:, None] * TILE_SLOTS + slots).flatten()


def batched(work: Work) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key and value (1, R, places, D)."""
    return work.query[None], work.key[None], work.value[None]


def heads_last(x: Tensor) -> Tensor:
    """(H, N, D) -> (1, N, H, D)."""
    return x.transpose(0, 1)[None].contiguous()


def heads_first(x: Tensor) -> Tensor:
    """(1, N, H, D) -> (H, N, D)."""
    return x[0].transpose(0, 1)
