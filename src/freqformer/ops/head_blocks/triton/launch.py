"""Heads to blocks and back in Triton, one launch each: the host side.

Shape legend: B batch, n tokens, H heads, W values of a token and head.
"""

from __future__ import annotations

from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from freqformer.ops.head_blocks.triton.kernel import Sizes, Whole, move_heads

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


def _launch(
    x: Tensor, blocks: Tensor, order: Tensor, counts: tuple[int, ...], *, to_blocks: bool
) -> None:
    batch, tokens, heads, width = x.shape
    if not x.numel():
        return
    wide = triton.next_power_of_2(width)
    rows = max(1, NUMBERS // wide)
    sample, token, head, channel = x.stride()
    grid = (heads * triton.cdiv(tokens, rows) * batch,)
    move_heads[grid](
        Whole(base=x, sample=sample, token=token, head=head, channel=channel),
        blocks,
        order,
        _places(counts, x.device),
        Sizes(batch=batch, tokens=tokens, heads=heads),
        TO_BLOCKS=tl.constexpr(to_blocks),
        ROWS=tl.constexpr(rows),
        WIDTH=tl.constexpr(width),
        WIDE=tl.constexpr(wide),
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
