"""What `frequency_attention` refuses, and what it says then."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from freqformer.config import Band, FreqFormerConfig
from freqformer.grid import Grid
from freqformer.ops.parameters import AttentionParameters
from freqformer.plan import Selection
from freqformer.routing import even_allocation

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
IMPLS = ("auto", "eager", "reference", "triton")


def check_tensors(
    query: Tensor, key: Tensor, value: Tensor, grid: Grid, num_text_tokens: int, text_mask: Tensor | None
) -> None:
    """Raise ValueError unless the tensors agree with one another and with the grid."""
    if query.ndim != 4 or query.numel() == 0:
        raise ValueError(
            f"query has shape {tuple(query.shape)}; (batch, tokens, heads, head_dim), none empty, is allowed: reshape it"
        )
    for name, x in (("key", key), ("value", value)):
        if x.shape != query.shape or x.dtype != query.dtype or x.device != query.device:
            raise ValueError(
                f"{name} is {x.dtype} {tuple(x.shape)} on {x.device}; the query's {query.dtype} {tuple(query.shape)} on "
                f"{query.device} is allowed: project the three alike"
            )
    if query.dtype not in DTYPES:
        raise ValueError(f"query has dtype {query.dtype}; {', '.join(map(str, DTYPES))} are allowed: convert it")
    if not isinstance(num_text_tokens, int) or num_text_tokens < 0:
        raise ValueError(f"num_text_tokens is {num_text_tokens!r}; whole numbers from 0 up are allowed")
    if query.shape[1] != grid.num_tokens + num_text_tokens:
        raise ValueError(
            f"query has {query.shape[1]} tokens; {grid} and num_text_tokens={num_text_tokens} make "
            f"{grid.num_tokens + num_text_tokens}: pass the grid after patchify and the text tokens behind the video"
        )
    expected = (query.shape[0], num_text_tokens)
    if text_mask is None:
        return
    if text_mask.dtype != torch.bool or tuple(text_mask.shape) != expected or text_mask.device != query.device:
        raise ValueError(
            f"text_mask is {text_mask.dtype} {tuple(text_mask.shape)} on {text_mask.device}; bool {expected} on "
            f"{query.device} is allowed: True where a text token may be seen"
        )


def check_parameters(parameters: AttentionParameters | None, query: Tensor, grid: Grid, config: FreqFormerConfig) -> None:
    """Raise ValueError unless the learned inputs are there that the config needs, in the shapes of these queries."""
    if parameters is None:
        if config.band_features in ("gains", "strict"):
            raise ValueError(
                f"parameters is None and band_features is {config.band_features!r}, which only a trained layer knows: "
                "pass its AttentionParameters, or choose band_features 'full' or 'values'"
            )
        return
    heads, head_dim = query.shape[2:]
    if config.band_features == "gains" and parameters.gains is None:
        raise ValueError(f"parameters.gains is None and band_features is 'gains'; pass a tensor ({heads}, 3)")
    shapes: dict[str, tuple[int, ...]] = {
        "summary_queries": (heads, 2, head_dim),
        "summary_offsets": (heads, 3),
        "gains": (heads, 3),
        "query_norm": (head_dim,),
        "key_norm": (head_dim,),
    }
    for name, shape in shapes.items():
        x = getattr(parameters, name)
        if x is not None:
            by_sample = name == "summary_offsets" and x.ndim == 3
            _check_learned(name, x, (len(query), *shape) if by_sample else shape, query)
    if parameters.rotary is not None:
        if head_dim % 2:
            raise ValueError(f"parameters.rotary is given and head_dim is {head_dim}; it rotates pairs: make head_dim even")
        for table in parameters.rotary:
            _check_learned("rotary", table, (grid.num_tokens, head_dim // 2), query)


def _check_learned(name: str, x: Tensor, shape: tuple[int, ...], query: Tensor) -> None:
    if tuple(x.shape) != shape or not x.is_floating_point() or x.device != query.device:
        raise ValueError(
            f"parameters.{name} is {x.dtype} {tuple(x.shape)} on {x.device}; floats {shape} on {query.device} are allowed "
            "for these queries: heads, head_dim and video tokens must agree"
        )


def check_options(config: FreqFormerConfig, selection: Selection | None, token_order: str, impl: str) -> None:
    """Raise ValueError for an option that is unknown, or that the config leaves no room for."""
    if selection is not None and config.mid_pattern != "topk":
        raise ValueError(
            f"selection is given and mid_pattern is {config.mid_pattern!r}, which leaves no choice: pass None, or take "
            "mid_pattern 'topk'"
        )
    if token_order not in ("raster", "tile"):
        raise ValueError(f"token_order is {token_order!r}; 'raster' and 'tile' are allowed")
    if impl not in IMPLS:
        raise ValueError(f"impl is {impl!r}; {', '.join(IMPLS)} are allowed: no other code is in this version")


def row_bands(allocation: Tensor | Sequence[int], query: Tensor) -> Tensor:
    """The band of every (batch, head) row, int64 (batch * heads,) on the query's device."""
    bands = head_bands(allocation, query)
    check_bands(bands)
    return bands.to(query.device).long().flatten()


def check_bands(bands: Tensor) -> None:
    """Raise ValueError unless all are bands. Waits for the device where they are on one."""
    if bool(((bands < 0) | (bands > 3)).any()):
        raise ValueError(f"allocation is {bands.tolist()}; bands 0 to 3 are allowed: LOW, MID, HIGH, DENSE")


def head_bands(allocation: Tensor | Sequence[int], query: Tensor) -> Tensor:
    """The allocation as whole numbers (batch, heads), where it is; their range isn't checked."""
    batch, _, heads, _ = query.shape
    try:
        bands = torch.as_tensor(allocation)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"allocation is {allocation!r}; whole numbers, one Band per head, are allowed") from error
    wrong = bands.is_floating_point() or bands.is_complex() or bands.dtype == torch.bool
    if wrong or tuple(bands.shape) not in ((heads,), (batch, heads)):
        raise ValueError(
            f"allocation is {bands.dtype} {tuple(bands.shape)}; whole numbers ({heads},) or ({batch}, {heads}) are "
            "allowed: one Band per head"
        )
    return bands.expand(batch, heads)


def layer_bands(allocation: Sequence[int] | None, num_heads: int) -> list[int]:
    """The initial or fixed band of every head of a layer, a third of them in each where None is given."""
    if allocation is None:
        return even_allocation(num_heads)
    bands = [int(band) for band in allocation]
    if len(bands) != num_heads or not all(0 <= band <= Band.DENSE for band in bands):
        raise ValueError(f"allocation is {bands}; {num_heads} bands from 0 to 3 are allowed: LOW, MID, HIGH, DENSE")
    return bands
