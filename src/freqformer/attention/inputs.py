"""What a layer's call is given, and exact attention over it.

Shape legend: B batch, N video tokens, C channels, H heads, D head_dim.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, NamedTuple, get_args

import torch
from torch import Tensor
from torch.nn import functional

from freqformer._validate import check_choice, check_kind, on_host
from freqformer.config import FreqFormerConfig
from freqformer.grid import Grid, TokenOrder, check_grid
from freqformer.ops.backends import ImplChoice
from freqformer.ops.checks import check_rotary
from freqformer.ops.tokens import rms_norm, rotate

NORM_EPS = 1e-6


class QKV(NamedTuple):
    """Query, key and value of a layer, each (B, N, H, D)."""

    query: Tensor
    key: Tensor
    value: Tensor


class QK(NamedTuple):
    """Query and key of a layer, each (B, N, H, D)."""

    query: Tensor
    key: Tensor


@dataclass(frozen=True, eq=False)
class Projected:
    """What a layer makes of its tokens one by one."""

    qkv: QKV
    gates: Tensor | None = None
    """What the token says of its own branch and of LOW, (B, N, 2, H)."""


@dataclass(frozen=True, eq=False)
class LayerCall:
    """One call of a layer, as `forward` is given it."""

    hidden_states: Tensor
    """(B, N, C), tokens in `token_order`."""
    grid: Grid
    timestep: Tensor
    """(B,)."""
    rotary: tuple[Tensor, Tensor] | None
    token_order: TokenOrder
    impl: ImplChoice
    heads: Tensor | None = None
    """Which of the layer's heads attend here, int64 (heads,); None for all of them."""


def own_precision(x: Tensor) -> AbstractContextManager[Any]:
    """Without autocast: bands and their statistics are taken in float32, and it would take them in
    half precision."""
    return torch.autocast(x.device.type, enabled=False)


def check_size(dim: Any, num_heads: Any, config: Any) -> None:
    """Raise ValueError unless `num_heads` heads of an even head_dim make `dim` channels."""
    whole = all(isinstance(size, int) and not isinstance(size, bool) for size in (dim, num_heads))
    if not whole or num_heads < 1 or dim < 1 or dim % (2 * num_heads):
        raise ValueError(
            f"dim is {dim!r} and num_heads {num_heads!r}; dim = num_heads * an even head_dim is "
            "allowed, whole numbers"
        )
    check_kind("config", config, FreqFormerConfig, "FreqFormerConfig() is the default")


def check_inputs(
    hidden_states: Any,
    grid: Any,
    timestep: Any,
    dim: int,
    token_order: Any,
    num_tokens: Callable[[], int] | None = None,
) -> None:
    """Raise ValueError unless tokens (B, N, C) are the grid's and timesteps (B,) are in [0, 1].

    `num_tokens` says how many of the grid's tokens there are here, None means all of them.

    The range is looked at where that costs no wait: on the CPU, outside of traces.
    """
    check_grid(grid)
    check_choice("token_order", token_order, get_args(TokenOrder))
    check_kind("hidden_states", hidden_states, Tensor, "pass tokens (batch, tokens, channels)")
    check_kind(
        "timestep",
        timestep,
        Tensor,
        "make one timestep a sample, torch.full((batch,), t, device=...)",
    )
    shape = tuple(hidden_states.shape)
    wanted = grid.num_tokens if num_tokens is None else num_tokens()
    expected = (*shape[:1], wanted, dim)
    if shape != expected or tuple(timestep.shape) != expected[:1]:
        swapped = len(shape) == 3 and shape != expected and shape[1:] == (dim, wanted)
        remedy = "pass the grid of these tokens"
        if num_tokens is not None:
            remedy = "pass this rank's share of the tokens in tile order, from shard_tokens"
        if swapped:
            remedy = "its axes look swapped, transpose(1, 2)"
        raise ValueError(
            f"hidden_states has shape {shape} and timestep {tuple(timestep.shape)}; (batch, "
            f"{wanted}, {dim}) and "
            f"(batch,) are allowed for {grid}: {remedy}"
        )
    check_timestep(
        timestep, 1.0, "divide the scheduler's timesteps by their number, 1000 in diffusers"
    )


def check_timestep(timestep: Tensor, most: float, remedy: str) -> None:
    """Raise ValueError for a timestep outside [0, most], NaN included, where looking costs no
    wait."""
    if on_host(timestep) and not bool(((timestep >= 0) & (timestep <= most)).all()):
        raise ValueError(
            f"timestep is {timestep.tolist()}; numbers from 0 (clean) to {most:g} (noise) are "
            f"allowed: {remedy}"
        )


def dense_attention(
    qkv: QKV,
    norms: tuple[Tensor, Tensor],
    rotary: tuple[Tensor, Tensor] | None,
    grid: Grid,
    eps: float,
) -> Tensor:
    """Exact attention of all heads by torch's own operation, (B, N, H, D) in any one order of
    tokens."""
    query, key, value = qkv
    check_rotary(rotary, query, grid)
    query, key = (
        rms_norm(x, norm, eps).transpose(1, 2) for x, norm in zip((query, key), norms, strict=True)
    )
    if rotary is not None:
        query, key = rotate(query, rotary), rotate(key, rotary)
    return functional.scaled_dot_product_attention(query, key, value.transpose(1, 2)).transpose(
        1, 2
    )
