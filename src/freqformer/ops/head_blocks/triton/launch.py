"""Heads to blocks and back in Triton, one launch each: the host side.

Shape legend: B batch, n tokens, H heads, W values of a token and head.
"""

from __future__ import annotations

from functools import lru_cache

import torch
import triton
from torch import Tensor

from freqformer.ops.head_blocks.triton.kernel import (
    Norm,
    Rotary,
    Sizes,
    Whole,
    move_heads,
    prepare_heads,
    token_scales,
)
from freqformer.ops.jit import constant
from freqformer.ops.parameters import AttentionParameters, RotaryEmbedding

NUMBERS = 4096
"""That a program moves."""


def launch_to_blocks(x: Tensor, order: Tensor, counts: tuple[int, ...]) -> Tensor:
    """As `api.to_blocks`."""
    blocks = x.new_empty(x.numel())
    _launch(x, blocks, order, counts, to_blocks=True)
    return blocks


def launch_from_blocks(
    blocks: Tensor, order: Tensor, counts: tuple[int, ...], shape: tuple[int, int, int, int]
) -> Tensor:
    """As `api.from_blocks`."""
    x = blocks.new_empty(shape)
    _launch(x, blocks, order, counts, to_blocks=False)
    return x


def launch_prepared(
    x: Tensor,
    weight: Tensor | None,
    given: AttentionParameters,
    order: Tensor,
    counts: tuple[int, ...],
) -> Tensor:
    """As `api.prepared_blocks`."""
    blocks = x.new_empty(x.numel())
    batch, tokens, heads, width = x.shape
    if not x.numel():
        return blocks
    rotation = given.rotation
    wide = triton.next_power_of_2(width)
    rows = max(1, NUMBERS // wide)
    sizes = Sizes(batch=batch, tokens=tokens, heads=heads)
    prepare_heads[(heads * triton.cdiv(tokens, rows) * batch,)](
        _whole(x),
        blocks,
        order,
        _places(counts, x.device),
        _norm(x, weight, given, sizes),
        _rotary(rotation),
        sizes,
        ROWS=constant(rows),
        PAIRS=constant(1 if rotation is None else rotation.cos.shape[-1]),
        NEIGHBOURS=constant(rotation is None or rotation.pairs == "interleaved"),
        WIDTH=constant(width),
        WIDE=constant(wide),
    )
    return blocks


def _whole(x: Tensor) -> Whole:
    sample, token, head, channel = x.stride()
    return Whole(base=x, sample=sample, token=token, head=head, channel=channel)


def _norm(x: Tensor, weight: Tensor | None, given: AttentionParameters, sizes: Sizes) -> Norm:
    """The norm of these tokens, its scales computed where it is across heads."""
    eps = given.norm_eps
    if weight is None or not given.norm_across_heads:
        return Norm(weight=weight, head=0, scales=None, eps=eps)
    width = x.shape[3]
    wide = triton.next_power_of_2(width)
    rows = max(1, NUMBERS // wide)
    scales = x.new_empty((sizes.batch, sizes.tokens), dtype=torch.float32)
    token_scales[(triton.cdiv(sizes.tokens, rows) * sizes.batch,)](
        _whole(x),
        scales,
        eps,
        sizes,
        ROWS=constant(rows),
        WIDTH=constant(width),
        WIDE=constant(wide),
    )
    return Norm(weight=weight.contiguous(), head=width, scales=scales, eps=eps)


def _rotary(rotation: RotaryEmbedding | None) -> Rotary:
    if rotation is None:
        return Rotary(cos=None, sin=None, tokens=0, sample=0, token=0, head=0, pair=0)
    cos = rotation.cos
    sin = rotation.sin
    if cos.stride() != sin.stride():
        cos = cos.contiguous()
        sin = sin.contiguous()
    sample, token, head, pair = cos.stride()
    # One table may serve all samples, and all heads.
    return Rotary(
        cos=cos,
        sin=sin,
        tokens=cos.shape[1],
        sample=sample if cos.shape[0] > 1 else 0,
        token=token,
        head=head if cos.shape[2] > 1 else 0,
        pair=pair,
    )


def _launch(
    x: Tensor, blocks: Tensor, order: Tensor, counts: tuple[int, ...], *, to_blocks: bool
) -> None:
    batch, tokens, heads, width = x.shape
    if not x.numel():
        return
    wide = triton.next_power_of_2(width)
    rows = max(1, NUMBERS // wide)
    grid = (heads * triton.cdiv(tokens, rows) * batch,)
    move_heads[grid](
        _whole(x),
        blocks,
        order,
        _places(counts, x.device),
        Sizes(batch=batch, tokens=tokens, heads=heads),
        TO_BLOCKS=constant(to_blocks),
        ROWS=constant(rows),
        WIDTH=constant(width),
        WIDE=constant(wide),
    )


@lru_cache(maxsize=64)
@torch.inference_mode(False)  # what it caches must also serve training
def _places(counts: tuple[int, ...], device: torch.device) -> Tensor:
    """Of every head in the order of ranks: heads before its block, heads of its block, and its
    place there; int64 (H, 3)."""
    rows = [
        (sum(counts[:rank]), count, place)
        for rank, count in enumerate(counts)
        for place in range(count)
    ]
    return torch.tensor(rows, dtype=torch.int64).to(device)
