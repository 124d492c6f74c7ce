"""Token order, RMS norm and rotary embedding: what the operations share."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from freqformer.grid import TileLayout, TokenOrder
from freqformer.ops.parameters import Pairs


class _Permute(torch.autograd.Function):
    """x[:, index]; the gradient is gathered by the inverse, much faster than the general
    scatter."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, index: Tensor, inverse: Tensor) -> Tensor:  # type: ignore[override]
        return x.index_select(1, index)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:  # type: ignore[override]
        _, index, inverse = inputs
        ctx.save_for_backward(index, inverse)
        ctx.save_for_forward(index, inverse)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        index, inverse = ctx.saved_tensors
        # By the same function, for gradients of gradients.
        return _Permute.apply(grads[0], inverse, index), None, None  # type: ignore[return-value]

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        index, _ = ctx.saved_tensors
        return tangents[0].index_select(1, index)


def reorder(x: Tensor, layout: TileLayout, came: TokenOrder, wanted: TokenOrder) -> Tensor:
    """Tokens (axis 1) of x from one order to the other; the same tensor when they agree."""
    if came == wanted:
        return x
    to_tile, to_raster = _indices(layout, x.device)
    return _Permute.apply(x, *((to_tile, to_raster) if wanted == "tile" else (to_raster, to_tile)))  # type: ignore[return-value]


@lru_cache(maxsize=256)  # training takes clips of many sizes by turns
@torch.inference_mode(False)  # what it caches must also serve training
def _indices(layout: TileLayout, device: torch.device) -> tuple[Tensor, Tensor]:
    """The layout's permutations on a device; cached, because copying them there at every call would
    wait for it."""
    return layout.raster_to_tile.to(device), layout.tile_to_raster.to(device)


def rotate(x: Tensor, rotary: tuple[Tensor, Tensor], pairs: Pairs = "interleaved") -> Tensor:
    """Rotary embedding of x (..., N, D) by cos and sin, which broadcast with (..., N, P): of its
    first 2 P channels neighbours are pairs, or channels P apart (`halved`); the others stay."""
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    cos, sin = (table.to(device=x.device, dtype=wide) for table in rotary)
    count = 2 * cos.shape[-1]
    turned = x[..., :count].to(wide)
    if pairs == "interleaved":
        first, second = turned.unflatten(-1, (-1, 2)).unbind(-1)
    else:
        first, second = turned.chunk(2, -1)
    both = (first * cos - second * sin, first * sin + second * cos)
    turned = torch.stack(both, -1).flatten(-2) if pairs == "interleaved" else torch.cat(both, -1)
    turned = turned.to(x.dtype)
    return turned if count == x.shape[-1] else torch.cat([turned, x[..., count:]], -1)


def rms_norm(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """x over its root mean square along the last axis, times `weight`; the same tensor without a
    weight."""
    if weight is None:
        return x
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    return F.rms_norm(x.to(wide), weight.shape, weight.to(wide), eps).to(x.dtype)
