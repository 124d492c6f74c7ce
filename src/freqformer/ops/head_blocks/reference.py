"""Heads in blocks, in plain PyTorch.

Shape legend: B batch, n tokens, H heads, h of a block, W values of a token and head.
"""

from __future__ import annotations

import torch
from torch import Tensor


def to_blocks(x: Tensor, order: Tensor, counts: tuple[int, ...]) -> Tensor:
    """As `api.to_blocks`."""
    heads = order.split(counts)
    return torch.cat([x.index_select(2, some).transpose(0, 1).flatten() for some in heads])


def from_blocks(
    blocks: Tensor, order: Tensor, counts: tuple[int, ...], shape: tuple[int, int, int, int]
) -> Tensor:
    """As `api.from_blocks`."""
    batch, tokens, _, width = shape
    parts = blocks.split([batch * tokens * count * width for count in counts])
    by_rank = [
        part.view(tokens, batch, count, width) for part, count in zip(parts, counts, strict=True)
    ]
    return torch.cat(by_rank, 2).transpose(0, 1).index_select(2, order.argsort())
