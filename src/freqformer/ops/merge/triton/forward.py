"""The Triton kernel of the merge: `launch.py` holds the host side.

Shape legend: B batch, H heads, R = B * H rows (row = sample * H + head), N video and X text tokens,
M low tokens, T tiles, K classes of tiles, D head_dim, SLOTS tokens of a tile, rounded up, NEAR low
tokens around a tile, rounded up, W channels of a block, D rounded up. An argument that is
None is absent from the compiled kernel.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from freqformer.ops.jit import branch_gates, cast, dot, real_channels

LOW = tl.constexpr(0)
DENSE = tl.constexpr(3)


class Allocation(NamedTuple):
    """The band of every head, integers (B, H) of any strides."""

    bands: Tensor
    sample: int
    """Numbers from one sample to the next, and so from one head."""
    head: int


class Gates(NamedTuple):
    """Gates of the own band and of LOW, None for none of a kind.

    A kernel asks `BRANCH` whether there are any: Triton 3.6 can't compare a tuple that holds None
    with None.
    """

    by_token: Tensor | None
    """(B, N, 2, H)."""
    by_sample: Tensor | None
    """(B, 2, H)."""


class Tiles(NamedTuple):
    """The tiles, and how each is made of low tokens: see `MergeTables`."""

    offsets: Tensor
    """int32 (T + 1,), first token of every tile in tile order, and N."""
    raster: Tensor | None
    """int32 (N,), raster place of every token in tile order; None where tokens are in tile
    order."""
    kind: Tensor
    """int32 (T,), class of every tile."""
    near: Tensor
    """int32 (T, NEAR), low tokens around every tile, -1 for none."""
    weights: Tensor
    """(PARTS, K, SLOTS, NEAR), summands of the matrix from those to the tile's tokens."""
    weight_step: int
    """Numbers from one summand to the next."""


class Sizes(NamedTuple):
    """What is known only at launch."""

    heads: int
    rows: int
    tokens: int
    """N + X."""
    video: int
    """N."""
    low: int
    """M."""
    tiles: int


class Blocks(NamedTuple):
    """Sizes known at compile time, each a `tl.constexpr`."""

    SLOTS: tl.constexpr
    ROWS: tl.constexpr
    """Tokens of one program, a part of a tile."""
    NEAR: tl.constexpr
    STEP: tl.constexpr
    """Low tokens that are multiplied at once."""
    D: tl.constexpr
    W: tl.constexpr
    """D, rounded up."""
    PARTS: tl.constexpr
    BRANCH: tl.constexpr
    """Whether every head has a LOW branch, which gates weigh."""


class Part(NamedTuple):
    """What one program takes: some tokens of one tile of one row."""

    row: tl.tensor
    sample: tl.tensor
    head: tl.tensor
    tile: tl.tensor
    first: tl.tensor
    """Its first slot in the tile."""


class Places(NamedTuple):
    """Tokens of a part, (ROWS,) each."""

    place: tl.tensor
    """In the order of the call."""
    live: tl.tensor
    """Whether there is such a token."""


@triton.jit
def program_part(sizes, blocks):
    """Which part of which tile of which row this program takes."""
    # Heads run fastest, since in memory the heads of a token are neighbours: programs that run at
    # the same time read and write the same lines.
    row = tl.program_id(0) % sizes.rows
    part = tl.program_id(0) // sizes.rows
    # A whole tile of float32 sums takes so many registers that too few programs fit, so that
    # several programs share one.
    parts_of_tile: tl.constexpr = blocks.SLOTS // blocks.ROWS
    return Part(
        row=row,
        sample=row // sizes.heads,
        head=row % sizes.heads,
        tile=part // parts_of_tile,
        first=part % parts_of_tile * blocks.ROWS,
    )


@triton.jit
def part_places(part, tiles, blocks):
    """Where the tokens of a part are."""
    slot = part.first + tl.arange(0, blocks.ROWS)
    start = tl.load(tiles.offsets + part.tile)
    # Tiles at the grid's border are shorter than their block.
    live = slot < tl.load(tiles.offsets + part.tile + 1) - start
    place = start + slot
    if tiles.raster is not None:
        # The table ends with the last tile: a dead slot would read behind it.
        place = tl.load(tiles.raster + place, mask=live, other=0)
    return Places(place=place, live=live)


@triton.jit
def expanded(low_out, part, tiles, num_low, blocks):
    """The tokens of a part from the low tokens around their tile, float32 (ROWS, W); low_out is
    (R, M, D)."""
    token = tl.arange(0, blocks.ROWS)
    channel = tl.arange(0, blocks.W)
    near = tiles.near + part.tile * blocks.NEAR
    # Most tiles are alike and share one matrix, which stays in the cache.
    kind = tl.load(tiles.kind + part.tile)
    matrix = tiles.weights + (kind * blocks.SLOTS + part.first) * blocks.NEAR
    total = tl.zeros((blocks.ROWS, blocks.W), tl.float32)
    for first in range(0, blocks.NEAR, blocks.STEP):
        step = first + tl.arange(0, blocks.STEP)
        source = tl.load(near + step)
        # Rows of low tokens can hold more numbers than an int32 counts.
        entry = (part.row.to(tl.int64) * num_low + source)[:, None] * blocks.D + channel[None, :]
        # -1 stands where a tile at the border has fewer low tokens around it. The matrix is 0
        # there, but 0 times what memory happens to hold could be NaN.
        low = tl.load(
            low_out + entry, mask=real_channels(source >= 0, blocks.D, blocks.W), other=0.0
        )
        # A weight is a sum of PARTS 16-bit numbers: products on tensor cores are exact for each, so
        # that together they are as good as float32 weights.
        for summand in tl.static_range(blocks.PARTS):  # pyright: ignore[reportGeneralTypeIssues]
            at = matrix + summand * tiles.weight_step
            weight = tl.load(at + token[:, None] * blocks.NEAR + step[None, :])
            total = dot(weight, low, total)
    return total


@triton.jit
def merge_kernel(low_out, own, out, gates, allocation, tiles, sizes, blocks):
    """Some tokens of one tile of one row: outputs of LOW heads return to all tokens, and with
    BRANCH every head gets (1 + g[0]) * own + g[1] * low. NaN for a row whose band is none.

    Args:
        low_out: (R, M, D).
        own: (B, N + X, H, D), the bands' outputs; may be `out`. Read with BRANCH, but in LOW rows.
        out: (B, N + X, H, D). Without BRANCH video tokens of LOW rows are written; with it all
            video tokens, and text tokens, which have no branch, by programs after the tiles.
        gates, allocation, tiles, sizes, blocks: `Gates`, `Allocation`, `Tiles`, `Sizes`, `Blocks`.
    """
    heads = sizes.heads
    part = program_part(sizes, blocks)
    channel = tl.arange(0, blocks.W)
    first_out = part.sample.to(tl.int64) * sizes.tokens
    if blocks.BRANCH:
        if part.tile >= sizes.tiles:
            # No gate reaches text: it is copied, in blocks as long as a tile.
            slot = part.first + tl.arange(0, blocks.ROWS)
            place = sizes.video + (part.tile - sizes.tiles) * blocks.SLOTS + slot
            entry = ((first_out + place)[:, None] * heads + part.head) * blocks.D + channel[None, :]
            live = real_channels(place < sizes.tokens, blocks.D, blocks.W)
            tl.store(out + entry, tl.load(own + entry, mask=live, other=0.0), mask=live)
            return
    band = tl.load(allocation.bands + part.sample * allocation.sample + part.head * allocation.head)
    known = (band >= LOW) & (band <= DENSE)
    if not blocks.BRANCH:
        # The attention launch has written these rows. One of no band goes on, to be made NaN: the
        # host can't look at the allocation without waiting for the device.
        if known & (band != LOW):
            return
    tokens = part_places(part, tiles, blocks)
    target = ((first_out + tokens.place)[:, None] * heads + part.head) * blocks.D + channel[None, :]
    real = real_channels(tokens.live, blocks.D, blocks.W)
    result = expanded(low_out, part, tiles, sizes.low, blocks)
    if blocks.BRANCH:
        own_gate, low_gate = branch_gates(
            gates.by_token,
            gates.by_sample,
            part.sample,
            part.head,
            heads,
            sizes.video,
            tokens.place,
            tokens.live,
        )
        # A LOW head's own band is the LOW branch itself, and nobody has written its `own`. What is
        # read is read once: it stays out of the L1 cache, where the matrix of a class lies.
        read = real & (band != LOW)
        x = tl.load(own + target, mask=read, other=0.0, cache_modifier=".cg").to(tl.float32)
        x = tl.where(band == LOW, result, x)
        # x + g * x and not (1 + g) * x: a gate of zero leaves x as it is, to the bit.
        result = x + own_gate[:, None] * x + low_gate[:, None] * result
    if not known:
        result = tl.full((blocks.ROWS, blocks.W), float("nan"), tl.float32)
    tl.store(out + target, cast(result, out.dtype.element_ty), mask=real)
