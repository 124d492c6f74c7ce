"""The Triton kernel that moves heads to blocks, or back.

Shape legend: B batch, n tokens, H heads, h of a block, W values of a token and head.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from freqformer.ops.jit import cast


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


class Norm(NamedTuple):
    """The RMS norm of tokens."""

    weight: Tensor | None
    """(W,), or (H, W) across heads; None for no norm."""
    head: int
    """Numbers from one head's weight to the next: 0 where heads share one."""
    scales: Tensor | None
    """float32 (B, n), one over the root mean square of all heads' values of a token; None where
    every head has its own."""
    eps: float


class Rotary(NamedTuple):
    """Tables of a rotary embedding, (B or 1, tokens, H or 1, P) of equal strides; None for none."""

    cos: Tensor | None
    sin: Tensor | None
    tokens: int
    """Later tokens aren't turned."""
    sample: int
    token: int
    head: int
    pair: int


class Angles(NamedTuple):
    """cos and sin, float32 (tokens, pairs) each."""

    cos: tl.tensor
    sin: tl.tensor


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


@triton.jit
def token_scales(
    whole, scales, eps, sizes, ROWS: tl.constexpr, WIDTH: tl.constexpr, WIDE: tl.constexpr
):
    """One over the root mean square of all heads' values of ROWS tokens of one sample.

    Launched over blocks of tokens and samples.

    Args:
        whole, sizes: as in `move_heads`.
        scales: float32 (B, n), written.
        eps: added to the mean square.
    """
    parts = tl.cdiv(sizes.tokens, ROWS)
    sample = (tl.program_id(0) // parts).to(tl.int64)
    token = (tl.program_id(0) % parts).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    channel = tl.arange(0, WIDE)
    here = token < sizes.tokens
    live = here[:, None] & (channel < WIDTH)[None, :]
    row = whole.base + sample * whole.sample + token[:, None] * whole.token
    total = tl.zeros((ROWS,), tl.float32)
    for head in range(sizes.heads):
        entry = row + head * whole.head + channel[None, :] * whole.channel
        # Squares of float16 would overflow, and bfloat16 sums lose what is small.
        wide = tl.load(entry, mask=live, other=0.0).to(tl.float32)
        total += tl.sum(wide * wide, 1)
    scale = tl.rsqrt(total / (sizes.heads * WIDTH) + eps)
    tl.store(scales + sample * sizes.tokens + token, scale, mask=here)


@triton.jit
def _normed(row, channel, live, scale, norm, head, step, WIDTH: tl.constexpr):
    """These values of tokens, after their norm: float32, rounded as their dtype rounds them."""
    x = tl.load(row + channel[None, :] * step, mask=live, other=0.0)
    wide = x.to(tl.float32)
    if norm.weight is not None:
        at = norm.weight + head * norm.head + channel
        gain = tl.load(at, mask=channel < WIDTH, other=0.0).to(tl.float32)
        wide = cast(wide * scale[:, None] * gain[None, :], x.dtype).to(tl.float32)
    return wide


@triton.jit
def _angles(rotary, table, pair, known):
    """cos and sin of tokens whose `table` rows these are; by an angle of zero, what has none
    stays."""
    entry = table + (pair * rotary.pair)[None, :]
    return Angles(
        cos=tl.load(rotary.cos + entry, mask=known, other=1.0).to(tl.float32),
        sin=tl.load(rotary.sin + entry, mask=known, other=0.0).to(tl.float32),
    )


@triton.jit
def prepare_heads(
    whole,
    blocks,
    order,
    places,
    norm,
    rotary,
    sizes,
    ROWS: tl.constexpr,
    PAIRS: tl.constexpr,
    NEIGHBOURS: tl.constexpr,
    WIDTH: tl.constexpr,
    WIDE: tl.constexpr,
):
    """As `move_heads` to blocks, of tokens that are normalised and turned on the way.

    Args:
        norm: `Norm`.
        rotary: `Rotary`.
        PAIRS: P.
        NEIGHBOURS: whether values 2i and 2i + 1 are turned together, else i and i + P.
    """
    slot = tl.program_id(0) % sizes.heads
    part = tl.program_id(0) // sizes.heads
    parts = tl.cdiv(sizes.tokens, ROWS)
    sample = (part // parts).to(tl.int64)
    token = (part % parts).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    channel = tl.arange(0, WIDE)
    here = token < sizes.tokens
    live = here[:, None] & (channel < WIDTH)[None, :]
    head = tl.load(order + slot)
    row = whole.base + sample * whole.sample + head * whole.head + token[:, None] * whole.token
    scale = tl.zeros((ROWS,), tl.float32)
    if norm.weight is not None:
        if norm.scales is not None:
            scale = tl.load(norm.scales + sample * sizes.tokens + token, mask=here, other=0.0)
        else:
            entry = row + channel[None, :] * whole.channel
            own = tl.load(entry, mask=live, other=0.0).to(tl.float32)
            scale = tl.rsqrt(tl.sum(own * own, 1) / WIDTH + norm.eps)
    x = _normed(row, channel, live, scale, norm, head, whole.channel, WIDTH)
    if rotary.cos is not None:
        table = sample * rotary.sample + head * rotary.head + token[:, None] * rotary.token
        known = (here & (token < rotary.tokens))[:, None]
        if NEIGHBOURS:
            # Pairs become the last axis, which splits without a move between threads.
            pair = tl.arange(0, WIDE // 2)
            turn = _angles(rotary, table, pair, known & (pair < PAIRS)[None, :])
            even, odd = tl.split(tl.reshape(x, (ROWS, WIDE // 2, 2)))
            both = tl.join(even * turn.cos - odd * turn.sin, even * turn.sin + odd * turn.cos)
            x = tl.reshape(both, (ROWS, WIDE))
        else:
            turned = channel < 2 * PAIRS
            first = channel < PAIRS
            other = tl.where(first, channel + PAIRS, channel - PAIRS)
            # The other value of a pair comes from the cache: this program has just read it.
            other = tl.where(turned, other, channel)
            second = _normed(row, other, live, scale, norm, head, whole.channel, WIDTH)
            turn = _angles(rotary, table, channel % PAIRS, known & turned[None, :])
            x = x * turn.cos + tl.where(first[None, :], -second, second) * turn.sin
    count = tl.load(places + 3 * slot + 1)
    before = tl.load(places + 3 * slot) * sizes.batch * sizes.tokens
    place = tl.load(places + 3 * slot + 2)
    rank_row = before + (token * sizes.batch + sample) * count + place
    at_blocks = blocks + rank_row[:, None] * WIDTH + channel[None, :]
    tl.store(at_blocks, cast(x, blocks.dtype.element_ty), mask=live)
