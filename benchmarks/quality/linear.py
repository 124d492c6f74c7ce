"""Softmax attention to chosen tiles, and linear attention to all tokens or to the others.

Two shapes that published video models have, as layers beside the operation. The linear part is
plain PyTorch: sums over tiles in float32. To all tokens it takes time in proportion to them; to the
others, sums over tiles are summed over the tiles that each tile leaves.

- `WindowAndLinear`: a window, and linear attention over the whole video in both directions of time,
  summed with gates by token. The gate of the linear part is zero at first.
- `TilesAndLinear`: each tile's best tiles by softmax attention, all others by linear attention,
  whose output passes a learned projection and is added, in the manner of Sparse-Linear Attention
  (Zhang et al., arXiv 2509.24006), which also skips the least tiles. Here none is skipped, and
  the projection is zero at first.

Linear attention (Katharopoulos et al., arXiv 2006.16236) with the softmax over channels as feature
map (Shen et al., arXiv 1812.01243; the default of Sparse-Linear Attention too).

Shape legend: B batch, N video tokens, T tiles, S tokens of a tile, H heads, D head_dim.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from freqformer.attention import NORM_EPS, QKV, FreqAttention, LayerCall, Projected
from freqformer.config import Band, FreqFormerConfig
from freqformer.grid import Extents, Grid, tile_layout
from freqformer.ops.merge import gated_sum
from freqformer.ops.tokens import TokenOrder, reorder, rms_norm, rotate
from freqformer.routing import Decision
from freqformer.tracing import constant_result

Linear = Literal["all", "others"]
"""Which tokens linear attention sees: all, or those of tiles that softmax attention doesn't."""
LEAST_WEIGHT = 1e-6
"""Below the sum of the weights of any token: a query that sees nothing gets zeros."""


class Sums(NamedTuple):
    """What a linear attention keeps of keys and values."""

    states: Tensor
    """Sums of feature times value, float32 (..., H, D, D)."""
    weights: Tensor
    """Sums of features, float32 (..., H, D)."""


def features(x: Tensor) -> Tensor:
    """The feature map: a softmax over the channels, in float32 at least. (..., D) -> (..., D)."""
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    return x.to(wide).softmax(-1)


def tile_sums(key: Tensor, value: Tensor) -> Sums:
    """Sums over the tokens of every tile.

    Args:
        key: features (B, T, S, H, D).
        value: (B, T, S, H, D).

    Returns: sums (B, T, H, ...).
    """
    states = torch.einsum("btshd,btshe->bthde", key, value.to(key.dtype))
    return Sums(states, key.sum(2))


def look_up(query: Tensor, sums: Sums) -> Tensor:
    """Mean value of what each query sees, weighted by products of features.

    Args:
        query: features (B, T, S, H, D).
        sums: of every tile (B, T, H, ...), or one for all (B, 1, H, ...).

    Returns: (B, T, S, H, D), float32 at least.
    """
    states, weights = (x.expand(-1, query.shape[1], *x.shape[2:]) for x in sums)
    totals = torch.einsum("btshd,bthde->btshe", query, states)
    weight = torch.einsum("btshd,bthd->btsh", query, weights)
    return totals / weight.clamp_min(LEAST_WEIGHT)[..., None]


def linear_to_all(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Linear attention of all tokens to all tokens: three times (B, T, S, H, D), and the same."""
    sums = tile_sums(features(key), value)
    return look_up(features(query), Sums(*(x.sum(1, keepdim=True) for x in sums)))


def linear_to_others(query: Tensor, key: Tensor, value: Tensor, chosen: Tensor) -> Tensor:
    """Linear attention of every tile's tokens to all tiles but its chosen ones.

    Args:
        query, key, value: (B, T, S, H, D).
        chosen: 1 where a query tile sees a key tile by other means, else 0, (B, H, T, T).

    Returns: (B, T, S, H, D), zeros where all are chosen.
    """
    sums = tile_sums(features(key), value)
    others = 1 - chosen.to(sums.states.dtype)
    states = torch.einsum("bhij,bjhde->bihde", others, sums.states)
    weights = torch.einsum("bhij,bjhd->bihd", others, sums.weights)
    return look_up(features(query), Sums(states, weights))


@torch.no_grad()
def best_tiles(query: Tensor, key: Tensor, count: int) -> Tensor:
    """Which key tiles are a query tile's best by mean query . mean key, itself among them.

    It is the rule of MID heads, without their care for equal scores, and waits for no device.

    Args:
        query, key: (B, T, S, H, D).
        count: tiles to choose, at most T.

    Returns: 1 where chosen, else 0: float32 (B, H, T, T).
    """
    wide = torch.float64 if query.dtype == torch.float64 else torch.float32
    queries, keys = (x.to(wide).mean(2).transpose(1, 2) for x in (query, key))
    scores = queries @ keys.transpose(2, 3)
    own = torch.eye(scores.shape[-1], dtype=torch.bool, device=scores.device)
    places = scores.masked_fill(own, torch.inf).topk(min(count, scores.shape[-1]), -1).indices
    return torch.zeros_like(scores, dtype=torch.float32).scatter_(-1, places, 1.0)


def linear_flops(linear: Linear, tokens: int, head_dim: int, tiles: int) -> float:
    """FLOPs of the linear part of one head and clip.

    Args:
        linear: what it sees.
        tokens, head_dim, tiles: of the clip and the head.
    """
    sums_and_queries = 4.0 * tokens * head_dim**2
    if linear == "all":
        return sums_and_queries
    projection = 2.0 * tokens * head_dim**2
    return sums_and_queries + projection + 2.0 * tiles**2 * head_dim**2


@constant_result
def whole_tiles(grid: Grid, tile: Extents | None) -> int:
    """The number of tiles in a grid.

    Raises:
        ValueError: where some of them hold fewer tokens than others.
    """
    layout = tile_layout(grid, tile)
    if layout.ragged:
        raise ValueError(
            f"grid is {grid} and the tile {layout.tile}; grids that the tile divides are allowed: "
            "choose another size of video"
        )
    return layout.num_tiles


class _WithLinear(FreqAttention):
    """A layer of fixed bands that also has queries, keys and values tile by tile."""

    def __init__(self, dim: int, num_heads: int, config: FreqFormerConfig) -> None:
        super().__init__(dim, num_heads, replace(config, routing="fixed", low_branch=False))

    def _tiled(self, qkv: QKV, call: LayerCall) -> tuple[Tensor, Tensor, Tensor]:
        """Normalised and rotated queries and keys, and values, each (B, T, S, H, D)."""
        norms = (self.query_norm, self.key_norm)
        query, key = (rms_norm(x, norm, NORM_EPS) for x, norm in zip(qkv[:2], norms, strict=True))
        if call.rotary is not None:
            query, key = (
                rotate(x.transpose(1, 2), call.rotary).transpose(1, 2) for x in (query, key)
            )
        tiles = whole_tiles(call.grid, self.config.tile)
        query, key, value = (
            self._ordered(x, call, call.token_order, "tile").unflatten(1, (tiles, -1))
            for x in (query, key, qkv.value)
        )
        return query, key, value

    def _back(self, x: Tensor, like: Tensor, call: LayerCall) -> Tensor:
        """(B, T, S, H, D) -> (B, N, H, D) in the order of the call and the dtype of `like`."""
        return self._ordered(x.flatten(1, 2).to(like.dtype), call, "tile", call.token_order)

    def _ordered(self, x: Tensor, call: LayerCall, came: TokenOrder, wanted: TokenOrder) -> Tensor:
        return reorder(x, tile_layout(call.grid, self.config.tile), came, wanted)


class WindowAndLinear(_WithLinear):
    """Every head its own band, and linear attention over the whole video, summed with gates.

    Args:
        dim, num_heads: as in `FreqAttention`.
        config: who has which band; its routing and LOW branch are left out.
    """

    def __init__(self, dim: int, num_heads: int, config: FreqFormerConfig) -> None:
        super().__init__(dim, num_heads, config)
        self.gates = nn.Linear(dim, 2 * num_heads)
        for parameter in self.gates.parameters():
            nn.init.zeros_(parameter)

    def attend(self, projected: Projected, decision: Decision, call: LayerCall) -> Tensor:
        """(B, N, H, D): (1 + g[0]) * own band + g[1] * linear attention."""
        own = super().attend(projected, decision, call)
        linear = linear_to_all(*self._tiled(projected.qkv, call))
        return gated_sum(own, self._back(linear, own, call), projected.gates)


class TilesAndLinear(_WithLinear):
    """Every head its best tiles, and linear attention to the others behind a projection.

    Args:
        dim, num_heads: as in `FreqAttention`.
        config: how many tiles; every head is MID with the top-k pattern.
    """

    def __init__(self, dim: int, num_heads: int, config: FreqFormerConfig) -> None:
        super().__init__(dim, num_heads, config)
        if set(self.bands) != {Band.MID.value} or config.mid_pattern != "topk":
            raise ValueError(
                f"config has bands {self.bands} and mid_pattern {config.mid_pattern!r}; MID heads "
                "with 'topk' are allowed: linear attention takes the tiles that they leave"
            )
        self.projection = nn.Linear(self.head_dim, self.head_dim)
        for parameter in self.projection.parameters():
            nn.init.zeros_(parameter)

    def attend(self, projected: Projected, decision: Decision, call: LayerCall) -> Tensor:
        """(B, N, H, D): the best tiles, and the projection of linear attention to the others."""
        own = super().attend(projected, decision, call)
        query, key, value = self._tiled(projected.qkv, call)
        count = self.config.mid_tiles or query.shape[1]
        linear = linear_to_others(query, key, value, best_tiles(query, key, count))
        added = self.projection(linear.to(self.projection.weight.dtype))
        return own + self._back(added, own, call)
