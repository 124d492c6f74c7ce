"""What `frequency_attention` refuses, and what it says then."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from freqformer.config import FreqFormerConfig
from freqformer.grid import Grid
from freqformer.ops.parameters import AttentionParameters

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
IMPLS = ("auto", "eager", "reference")


def check_tensors(
    query: Tensor, key: Tensor, value: Tensor, grid: Grid, num_text_tokens: int, text_mask: Tensor | None
) -> None:
    if query.ndim != 4:
        raise ValueError(f"query has shape {tuple(query.shape)}; (batch, tokens, heads, head_dim) is allowed: reshape it")
    for name, x in (("key", key), ("value", value)):
        if x.shape != query.shape or x.dtype != query.dtype or x.device != query.device:
            raise ValueError(
                f"{name} is {x.dtype} {tuple(x.shape)} on {x.device}; the query's {query.dtype} {tuple(query.shape)} on "
                f"{query.device} is allowed: project the three alike"
            )
    if query.dtype not in DTYPES:
        raise ValueError(f"query has dtype {query.dtype}; {', '.join(map(str, DTYPES))} are allowed: convert it")
    if num_text_tokens < 0 or query.shape[1] != grid.num_tokens + num_text_tokens:
        raise ValueError(
            f"query has {query.shape[1]} tokens; {grid} and num_text_tokens={num_text_tokens} make "
            f"{grid.num_tokens + num_text_tokens}: pass the grid after patchify and the text tokens behind the video"
        )
    expected = (query.shape[0], num_text_tokens)
    if text_mask is not None and (text_mask.dtype != torch.bool or tuple(text_mask.shape) != expected):
        raise ValueError(
            f"text_mask is {text_mask.dtype} {tuple(text_mask.shape)}; bool {expected} is allowed: True where a text "
            "token may be seen"
        )


def check_options(config: FreqFormerConfig, parameters: AttentionParameters | None, token_order: str, impl: str) -> None:
    if parameters is None and config.band_features in ("gains", "strict"):
        raise ValueError(
            f"parameters is None and band_features is {config.band_features!r}, which is learned: pass "
            "AttentionParameters, or choose band_features 'full' or 'values'"
        )
    if config.band_features == "gains" and parameters is not None and parameters.gains is None:
        raise ValueError("parameters.gains is None and band_features is 'gains'; pass a tensor (heads, 3)")
    if token_order not in ("raster", "tile"):
        raise ValueError(f"token_order is {token_order!r}; 'raster' and 'tile' are allowed")
    if impl not in IMPLS:
        raise ValueError(f"impl is {impl!r}; {', '.join(IMPLS)} are allowed: no other code is in this version")


def row_bands(allocation: Tensor | Sequence[int], query: Tensor) -> Tensor:
    """The band of every (batch, head) row, int64 (batch * heads,)."""
    batch, _, heads, _ = query.shape
    bands = torch.as_tensor(allocation, device=query.device)
    wrong = bands.is_floating_point() or bands.is_complex() or bands.dtype == torch.bool
    if wrong or tuple(bands.shape) not in ((heads,), (batch, heads)):
        raise ValueError(
            f"allocation is {bands.dtype} {tuple(bands.shape)}; whole numbers ({heads},) or ({batch}, {heads}) are "
            "allowed: one Band per head"
        )
    if bool(((bands < 0) | (bands > 3)).any()):
        raise ValueError(f"allocation is {bands.tolist()}; bands 0 to 3 are allowed: LOW, MID, HIGH, DENSE")
    return bands.long().expand(batch, heads).flatten()
