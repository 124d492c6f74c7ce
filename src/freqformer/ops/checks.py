"""What `frequency_attention` refuses, and what it says then."""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

import torch
from torch import Tensor

from freqformer._validate import check_choice, check_kind, check_whole, mapped
from freqformer.config import FreqFormerConfig
from freqformer.grid import Grid, TokenOrder, check_grid
from freqformer.ops.backends import IMPLS
from freqformer.ops.parameters import (
    AttentionParameters,
    BranchGates,
    Pairs,
    RotaryEmbedding,
)
from freqformer.plan import Selection

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def check_tensors(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    grid: Grid,
    num_text_tokens: int,
    text_mask: Tensor | None,
) -> None:
    """Raise ValueError unless the tensors agree with one another and with the grid."""
    check_grid(grid)
    for name, x in (("query", query), ("key", key), ("value", value)):
        check_kind(name, x, Tensor, "pass (batch, tokens, heads, head_dim)")
    if any(mapped(x) for x in (query, key, value)):
        raise ValueError(
            "query, key or value is mapped by torch.vmap, which can't follow a choice of tiles; "
            "plain tensors are "
            "allowed: fold the mapped axis into the batch, and call once"
        )
    if query.ndim != 4 or query.numel() == 0:
        raise ValueError(
            f"query has shape {tuple(query.shape)}; (batch, tokens, heads, head_dim), none empty, "
            "is allowed: reshape it"
        )
    for name, x in (("key", key), ("value", value)):
        if x.shape != query.shape or x.dtype != query.dtype or x.device != query.device:
            raise ValueError(
                f"{name} is {x.dtype} {tuple(x.shape)} on {x.device}; the query's {query.dtype} "
                f"{tuple(query.shape)} on "
                f"{query.device} is allowed: project the three alike"
            )
    if query.dtype not in DTYPES:
        raise ValueError(
            f"query has dtype {query.dtype}; {', '.join(map(str, DTYPES))} are allowed: convert it"
        )
    check_whole("num_text_tokens", num_text_tokens, 0)
    tokens = grid.num_tokens + num_text_tokens
    _, found, heads, _ = query.shape
    if found != tokens:
        remedy = "pass the grid after patchify and the text tokens behind the video"
        if heads == tokens:
            remedy = (
                "its axes look swapped, (batch, heads, tokens, head_dim): transpose(1, 2) "
                "makes them fit"
            )
        raise ValueError(
            f"query has {found} tokens and shape {tuple(query.shape)}; (batch, tokens, heads, "
            "head_dim) is allowed, and "
            f"{grid} and num_text_tokens={num_text_tokens} make {tokens} tokens: {remedy}"
        )
    expected = (query.shape[0], num_text_tokens)
    if text_mask is None:
        return
    check_kind("text_mask", text_mask, Tensor, "pass bools (batch, num_text_tokens)")
    if (
        text_mask.dtype != torch.bool
        or tuple(text_mask.shape) != expected
        or text_mask.device != query.device
    ):
        raise ValueError(
            f"text_mask is {text_mask.dtype} {tuple(text_mask.shape)} on {text_mask.device}; bool "
            f"{expected} on "
            f"{query.device} is allowed: True where a text token may be seen"
        )


def check_parameters(
    parameters: AttentionParameters | None, query: Tensor, grid: Grid, config: FreqFormerConfig
) -> None:
    """Raise ValueError unless the learned inputs are there that the config needs, in the shapes of
    these queries."""
    if parameters is None:
        if config.band_features in ("band_gains", "own_band"):
            raise ValueError(
                f"parameters is None and band_features is {config.band_features!r}, which only a "
                "trained layer knows: "
                "pass its AttentionParameters, or choose band_features 'full' or 'high_pass_values'"
            )
        return
    check_kind(
        "parameters",
        parameters,
        AttentionParameters,
        "name what is learned, AttentionParameters(...)",
    )
    heads, head_dim = query.shape[2:]
    if config.band_features == "band_gains" and parameters.gains is None:
        raise ValueError(
            "parameters.gains is None and band_features is 'band_gains'; pass a tensor "
            f"({heads}, 3)"
        )
    norm = (heads, head_dim) if parameters.norm_across_heads else (head_dim,)
    shapes: dict[str, tuple[int, ...]] = {
        "summary_queries": (heads, 2, head_dim),
        "summary_offsets": (heads, 3),
        "gains": (heads, 3),
        "query_norm": norm,
        "key_norm": norm,
    }
    for name, shape in shapes.items():
        x = getattr(parameters, name)
        if x is not None:
            by_sample = name == "summary_offsets" and x.ndim == 3
            _check_learned(name, x, (len(query), *shape) if by_sample else shape, query)
    check_rotary(parameters.rotary, query, grid)


def check_rotary(
    rotary: RotaryEmbedding | tuple[Tensor, Tensor] | None, query: Tensor, grid: Grid
) -> None:
    """Raise ValueError unless rotary is None, cos and sin, each (video tokens, head_dim / 2), or a
    record that fits these queries."""
    if rotary is None:
        return
    head_dim = query.shape[3]
    if head_dim % 2:
        raise ValueError(
            f"parameters.rotary is given and head_dim is {head_dim}; it rotates pairs: make "
            "head_dim even"
        )
    if isinstance(rotary, RotaryEmbedding):
        check_choice("parameters.rotary.pairs", rotary.pairs, get_args(Pairs))
        for name in ("cos", "sin"):
            _check_table(f"parameters.rotary.{name}", getattr(rotary, name), query, grid)
        if rotary.cos.shape != rotary.sin.shape:
            raise ValueError(
                f"parameters.rotary.sin is {tuple(rotary.sin.shape)}; the shape of cos, "
                f"{tuple(rotary.cos.shape)}, is allowed: take both of the same angles"
            )
        return
    if not isinstance(rotary, tuple | list) or len(rotary) != 2:
        raise ValueError(
            f"rotary is a {type(rotary).__name__}; a RotaryEmbedding, or a pair (cos, sin) of "
            "tensors is allowed: pass both tables"
        )
    for table in rotary:
        _check_learned("rotary", table, (grid.num_tokens, head_dim // 2), query)


def _check_table(name: str, table: Tensor, query: Tensor, grid: Grid) -> None:
    """Raise ValueError unless a table of a `RotaryEmbedding` fits the queries."""
    check_kind(name, table, Tensor, "pass a tensor")
    batch, tokens, heads, head_dim = query.shape
    shape = (1, *table.shape[:1], 1, *table.shape[1:]) if table.ndim == 2 else tuple(table.shape)
    fits = (
        len(shape) == 4
        and shape[0] in (1, batch)
        and shape[1] in (grid.num_tokens, tokens)
        and shape[2] in (1, heads)
        and 1 <= shape[3] <= head_dim // 2
    )
    if not fits or not table.is_floating_point() or table.device != query.device:
        raise ValueError(
            f"{name} is {table.dtype} {tuple(table.shape)} on {table.device}; floats (tokens, P), "
            f"or (1 or {batch}, tokens, 1 or {heads}, P), on {query.device} are allowed, with "
            f"{grid.num_tokens} tokens of the video or all {tokens}, and P up to "
            f"{head_dim // 2} pairs: take the tables of these tokens"
        )


def check_low_branch(low_branch: BranchGates | None, query: Tensor, grid: Grid) -> None:
    """Raise ValueError unless the gates of a LOW branch fit the video tokens and heads of the
    query."""
    if low_branch is None:
        return
    check_kind("low_branch", low_branch, BranchGates, "pass BranchGates(by_token=...)")
    batch, _, heads, _ = query.shape
    shapes = {"by_token": (batch, grid.num_tokens, 2, heads), "by_sample": (batch, 2, heads)}
    if low_branch.by_token is None and low_branch.by_sample is None:
        raise ValueError(
            "low_branch has no gates; by_token, by_sample or both are allowed: pass None for no "
            "LOW branch"
        )
    for name, shape in shapes.items():
        x = getattr(low_branch, name)
        if x is not None:
            _check_floats(f"low_branch.{name}", x, shape, query)


def check_head_parts(head_parts: int, query: Tensor) -> None:
    """Raise ValueError unless heads can be computed in so many parts."""
    check_whole("head_parts", head_parts, 1)
    _, _, heads, _ = query.shape
    if head_parts > heads:
        raise ValueError(
            f"head_parts is {head_parts} and there are {heads} heads; 1 to {heads} are allowed, "
            "since every part has a head: lower it"
        )


def _check_learned(name: str, x: Tensor, shape: tuple[int, ...], query: Tensor) -> None:
    _check_floats(f"parameters.{name}", x, shape, query)


def _check_floats(name: str, x: Tensor, shape: tuple[int, ...], query: Tensor) -> None:
    check_kind(name, x, Tensor, "pass a tensor")
    if tuple(x.shape) != shape or not x.is_floating_point() or x.device != query.device:
        raise ValueError(
            f"{name} is {x.dtype} {tuple(x.shape)} on {x.device}; floats {shape} on "
            f"{query.device} are allowed "
            "for these queries: heads, head_dim and video tokens must agree"
        )


def check_options(
    config: FreqFormerConfig, selection: Selection | None, token_order: str, impl: str
) -> None:
    """Raise ValueError for an option that is unknown, or that the config leaves no room for."""
    check_kind(
        "config",
        config,
        FreqFormerConfig,
        "FreqFormerConfig() is the default, from_dict reads one from a dict",
    )
    if selection is not None:
        check_kind("selection", selection, Selection, "pass Selection(tiles)")
    if selection is not None and config.mid_pattern != "topk":
        raise ValueError(
            f"selection is given and mid_pattern is {config.mid_pattern!r}, which leaves no "
            "choice: pass None, or take "
            "mid_pattern 'topk'"
        )
    check_choice("token_order", token_order, get_args(TokenOrder))
    check_choice("impl", impl, IMPLS, "no other code is in this version")


def row_numbers(bands: Tensor, query: Tensor) -> Tensor:
    """Bands (batch, heads), checked, of every row: int64 (batch * heads,) on the query's device."""
    check_bands(bands)
    return bands.to(query.device).long().flatten()


def check_bands(bands: Tensor) -> None:
    """Raise ValueError unless all are bands. Waits for the device where they are on one."""
    if bool(((bands < 0) | (bands > 3)).any()):
        raise ValueError(
            f"allocation is {bands.tolist()}; bands 0 to 3 are allowed: LOW, MID, HIGH, DENSE"
        )


def head_bands(allocation: Tensor | Sequence[int], query: Tensor) -> Tensor:
    """The allocation as whole numbers (batch, heads), where it is; their range isn't checked."""
    batch, _, heads, _ = query.shape
    try:
        bands = torch.as_tensor(allocation)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"allocation is {allocation!r}; whole numbers, one Band per head, are allowed"
        ) from error
    wrong = bands.is_floating_point() or bands.is_complex() or bands.dtype == torch.bool
    if wrong or tuple(bands.shape) not in ((heads,), (batch, heads)):
        raise ValueError(
            f"allocation is {bands.dtype} {tuple(bands.shape)}; whole numbers ({heads},) or "
            f"({batch}, {heads}) are "
            "allowed: one Band per head"
        )
    return bands.expand(batch, heads)
