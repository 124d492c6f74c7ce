"""The Triton kernel that moves heads to blocks, or back.

Shape legend: B batch, n tokens, H heads, h of a block, W values of a token and head.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor


class Whole(NamedTuple):
    """Tokens of all heads, (B, n, H, W)."""

    base: Tensor
    sample: int
    """Numbers from one sample to the next, and so from one token, one head and one value."""
    token: int
    head: int
    channel: int


class Sizes(NamedTuple):
    """How many there are."""

    batch: int
    tokens: int
    heads: int


@triton.jit
def move_heads(
    whole,
    blocks,
    order,
    places,
    sizes,
    TO_BLOCKS: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
    WIDE: tl.constexpr,
):
    """Move ROWS tokens of one head of one sample. Launched over heads, blocks of tokens, samples.

    Args:
        whole: `Whole`, read or written.
        blocks: flat; for every rank (n, B, h, W).
        order: the head that is in each place of the blocks, int64 (H,).
        places: int64 (H, 3), see `launch.py`.
        sizes: `Sizes`.
        TO_BLOCKS: whether blocks are written, and not read.
        WIDTH: W, and WIDE that rounded up to a power of two.
    """
    # The heads of a token are neighbours in memory: programs that run side by side share its lines.
    slot = tl.program_id(0) % sizes.heads
    part = tl.program_id(0) // sizes.heads
    parts = tl.cdiv(sizes.tokens, ROWS)
    sample = (part // parts).to(tl.int64)
    # A video has more numbers than an int32 counts.
    token = (part % parts).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    channel = tl.arange(0, WIDE)
    live = (token < sizes.tokens)[:, None] & (channel < WIDTH)[None, :]
    head = tl.load(order + slot)
    first = tl.load(places + 3 * slot)
    count = tl.load(places + 3 * slot + 1)
    place = tl.load(places + 3 * slot + 2)
    row = whole.base + sample * whole.sample + head * whole.head
    at_whole = row + token[:, None] * whole.token + channel[None, :] * whole.channel
    before = first * sizes.batch * sizes.tokens
    rank_row = before + (token * sizes.batch + sample) * count + place
    at_blocks = blocks + rank_row[:, None] * WIDTH + channel[None, :]
    if TO_BLOCKS:
        tl.store(at_blocks, tl.load(at_whole, mask=live), mask=live)
    else:
        tl.store(at_whole, tl.load(at_blocks, mask=live), mask=live)
