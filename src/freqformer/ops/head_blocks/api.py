"""Heads in blocks: what a rank sends to each other one, and what it makes of what they sent.

Each moves every number once. Shape legend: B batch, n tokens, H heads, h of a block, W values of a
token and head.
"""

from __future__ import annotations

from importlib.util import find_spec

import torch
from torch import Tensor

from freqformer.ops.head_blocks import reference
from freqformer.ops.parameters import AttentionParameters


def to_blocks(x: Tensor, order: Tensor, counts: tuple[int, ...]) -> Tensor:
    """The heads of every rank side by side.

    Args:
        x: (B, n, H, W), any strides.
        order: all heads, those of the first rank first, int64 (H,) where x is.
        counts: heads of every rank; their sum is H.

    Returns: flat; for every rank a block (n, B, h, W), tokens before samples.
    """
    if _launches(x):
        from freqformer.ops.head_blocks.triton.launch import launch_to_blocks

        return launch_to_blocks(x, order, counts)
    return reference.to_blocks(x, order, counts)


def from_blocks(
    blocks: Tensor, order: Tensor, counts: tuple[int, ...], shape: tuple[int, int, int, int]
) -> Tensor:
    """The inverse of `to_blocks`: (B, n, H, W) contiguous.

    Args:
        blocks: what `to_blocks` returned.
        order, counts: as there.
        shape: (B, n, H, W).
    """
    if _launches(blocks):
        from freqformer.ops.head_blocks.triton.launch import launch_from_blocks

        return launch_from_blocks(blocks, order, counts, shape)
    return reference.from_blocks(blocks, order, counts, shape)


def prepared_blocks(
    x: Tensor,
    weight: Tensor | None,
    given: AttentionParameters,
    order: Tensor,
    counts: tuple[int, ...],
) -> Tensor | None:
    """As `to_blocks` of queries or keys that are normalised and turned, in one launch.

    Args:
        x: (B, n, H, W), any strides.
        weight: of their norm, as in `given`; None for no norm.
        given: how they are normalised, and their rotary embedding.
        order, counts: as in `to_blocks`.

    Returns: the blocks; None where no launch is made, since one of these wants a gradient, or x is
        not on a GPU.
    """
    wanted = torch.is_grad_enabled() and (
        x.requires_grad or (weight is not None and weight.requires_grad)
    )
    if wanted or not _launches(x) or x.dtype == torch.float64:
        return None
    from freqformer.ops.head_blocks.triton.launch import launch_prepared

    return launch_prepared(x, weight, given, order, counts)


def _launches(x: Tensor) -> bool:
    """Whether the kernel runs: a compiled graph makes one of the reference by itself."""
    return x.is_cuda and not torch.compiler.is_compiling() and find_spec("triton") is not None
