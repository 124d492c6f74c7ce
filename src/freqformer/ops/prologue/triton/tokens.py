"""What the Triton kernels of the prologue do with the tokens of one tile of one row.

Shape legend: N video and X text tokens, H heads, D head_dim, W channels of a row of the
buffers, SLOTS tokens of a tile, CHUNK those that a program holds at once. Tokens in registers are
as wide as the buffers: zeros follow their D channels.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl

from freqformer.ops.jit import cast, dot, load_vector, real_channels
from freqformer.ops.prologue.triton.arguments import Rotary

LOW = tl.constexpr(0)
MID = tl.constexpr(1)
HIGH = tl.constexpr(2)
DENSE = tl.constexpr(3)


class Program(NamedTuple):
    """Which row a program works for, and which of the row's programs it is."""

    row: tl.tensor
    wide_row: tl.tensor
    """The same in int64, for offsets in buffers."""
    sample: tl.tensor
    head: tl.tensor
    part: tl.tensor


class Tile(NamedTuple):
    """One tile of one row, as its program knows it."""

    wide_row: tl.tensor
    sample: tl.tensor
    head: tl.tensor
    band: tl.tensor
    number: tl.tensor
    first: tl.tensor
    """Its first token in tile order, and the first of the next tile."""
    last: tl.tensor
    kind: tl.tensor
    """Its class."""
    cell: tl.tensor | int
    """The cell that it belongs to; 0 where the kernel isn't told."""
    low_place: tl.tensor
    """(LOW_SLOTS,), places of its low tokens, -1 after the last."""


class Chunk(NamedTuple):
    """Some tokens of a tile, (CHUNK,) each."""

    tile: Tile
    skip: tl.tensor
    """The first slot of them."""
    tile_order: tl.tensor
    """Their places in tile order, where buffers hold them."""
    call_order: tl.tensor
    """Their places in the order of the call."""
    live: tl.tensor
    """Whether there is such a token."""


class ChannelPairs(NamedTuple):
    """The first and the second channel of every pair, (W / 2,) each."""

    first: tl.tensor
    second: tl.tensor


@triton.jit
def this_program(sizes):
    """The row of a program; programs of one part of all rows are neighbours."""
    # In the call's tensors the heads of a token are neighbours: programs that run side by side read
    # the same lines, and every line comes from memory once.
    row = tl.program_id(0) % sizes.rows
    return Program(
        row=row,
        # One row's buffer times all rows is more numbers than an int32 counts.
        wide_row=row.to(tl.int64),
        sample=row // sizes.heads,
        head=row % sizes.heads,
        part=tl.program_id(0) // sizes.rows,
    )


@triton.jit
def load_tile(program, band, tiles, blocks):
    """The tile that is a program's part of its row."""
    number = program.part
    # What a tile's matrices are depends on its class: almost all tiles are of one.
    slot = tl.arange(0, blocks.LOW_SLOTS)
    if tiles.cell is not None:
        cell = tl.load(tiles.cell + number)
    else:
        cell = 0
    return Tile(
        wide_row=program.wide_row,
        sample=program.sample,
        head=program.head,
        band=band,
        number=number,
        first=tl.load(tiles.offsets + number),
        last=tl.load(tiles.offsets + number + 1),
        kind=tl.load(tiles.kind + number),
        cell=cell,
        low_place=tl.load(tiles.low_place + number * blocks.LOW_SLOTS + slot),
    )


@triton.jit
def load_some(tile, skip, tiles, COUNT: tl.constexpr):
    """Where the COUNT tokens of a tile from its slot `skip` on are: `Chunk`."""
    tile_order = tile.first + skip + tl.arange(0, COUNT)
    # Tiles at the grid's border are shorter than their block.
    live = tile_order < tile.last
    call_order = tile_order
    if tiles.raster is not None:
        call_order = tl.load(tiles.raster + tile_order, mask=live, other=0)
    return Chunk(tile=tile, skip=skip, tile_order=tile_order, call_order=call_order, live=live)


@triton.jit
def load_chunk(tile, skip, tiles, blocks):
    """Where the tokens of a tile that a program holds at once are, from its slot `skip` on."""
    return load_some(tile, skip, tiles, blocks.CHUNK)


@triton.jit
def row_band(allocation, sample, head):
    """The band of a row; DENSE for a number that is none, which the merge launch then answers with
    NaN."""
    at = allocation.bands + sample * allocation.sample + head * allocation.head
    # int64 as PyTorch makes it, or any other integer type: comparisons want one.
    band = tl.load(at).to(tl.int32)
    return tl.where((band >= LOW) & (band <= DENSE), band, DENSE)


@triton.jit
def sees_summaries(band, other, BRANCH: tl.constexpr):
    """Whether a row of a band sees the learned summaries of another: of all but its own, and a LOW
    branch sees both."""
    # Its own band's tokens a row sees themselves, and a DENSE row those of every band.
    return ((band != other) & (band != DENSE)) | BRANCH


@triton.jit
def summaries_of(segments, OTHER: tl.constexpr):
    """First row of the learned summaries of the mid or high band."""
    # Chosen at compile time: a segment has a name and no number.
    start = segments.high_summaries
    if OTHER == MID:
        start = segments.mid_summaries
    return start


@triton.jit
def paired_channels(x, D: tl.constexpr, W: tl.constexpr):
    """The `ChannelPairs` of `Tokens` x whose HALF isn't 0; channels that stay make pairs too."""
    pair = tl.arange(0, W // 2)
    first = pair
    second = pair + D // 2
    if 2 * x.HALF < D:
        # The turned channels come first, [HALF | HALF], and behind them those that stay, halved
        # alike.
        turned = pair < x.HALF
        first = tl.where(turned, pair, pair + x.HALF)
        second = tl.where(turned, pair + x.HALF, pair + D // 2)
    return ChannelPairs(first=first, second=second)


@triton.jit
def load_tokens(x, sample, head, place, live, D: tl.constexpr, W: tl.constexpr):
    """Tokens `place` of one row of `Tokens` x, zero where not live: (places, W)."""
    # A video's tokens hold more numbers than an int32 counts: offsets are int64 before they grow.
    base = x.base + sample.to(tl.int64) * x.sample + head.to(tl.int64) * x.head
    row = base + place.to(tl.int64)[:, None] * x.token
    # Zeros where there is no token: products with them add nothing, and NaN can't come in.
    if x.HALF > 0:
        pairs = paired_channels(x, D, W)
        real = real_channels(live, D // 2, W // 2)
        tokens = tl.join(
            tl.load(row + pairs.first[None, :], mask=real, other=0.0),
            tl.load(row + pairs.second[None, :], mask=real, other=0.0),
        )
        tokens = tl.reshape(tokens, (place.shape[0], W))
    else:
        channel = tl.arange(0, W)
        tokens = tl.load(row + channel[None, :], mask=real_channels(live, D, W), other=0.0)
    return tokens


@triton.jit
def norm_weight(x, head, D: tl.constexpr, W: tl.constexpr):
    """A head's weight of the norm of `Tokens` x, float32 (W,), channels as `load_tokens` has
    them."""
    weight = x.norm + head * x.norm_head
    if x.HALF > 0:
        pairs = paired_channels(x, D, W)
        real = tl.arange(0, W // 2) < D // 2
        gain = tl.join(
            tl.load(weight + pairs.first, mask=real, other=0.0),
            tl.load(weight + pairs.second, mask=real, other=0.0),
        )
        gain = tl.reshape(gain, (W,)).to(tl.float32)
    else:
        gain = load_vector(weight, D, W)
    return gain


@triton.jit
def norm_scale(wide, x, sample, place, live, num_tokens, eps, D: tl.constexpr):
    """One over the root mean square of float32 tokens (places, W) of `Tokens` x: (places,)."""
    if x.scales is not None:
        # Other heads' channels count too, and a program of one head doesn't see them.
        at = sample.to(tl.int64) * num_tokens + place
        scale = tl.load(x.scales + at, mask=live, other=0.0)
    else:
        scale = tl.rsqrt(tl.sum(wide * wide, 1) / D + eps)
    return scale


@triton.jit
def normed(tokens, x, sample, head, place, live, num_tokens, eps, D: tl.constexpr):
    """Loaded tokens `place` of one row of `Tokens` x after their norm, rounded to their dtype.

    Args:
        num_tokens: N + X.
    """
    if x.norm is not None:
        # Squares of float16 would overflow, and bfloat16 sums lose what is small.
        wide = tokens.to(tl.float32)
        scale = norm_scale(wide, x, sample, place, live, num_tokens, eps, D)
        gain = norm_weight(x, head, D, tokens.shape[1])
        tokens = cast(wide * scale[:, None] * gain[None, :], tokens.dtype)
    return tokens


@triton.jit
def load_normed(x, chunk, learned, sizes, blocks):
    """Tokens of a `Chunk` of `Tokens` x after their norm, (CHUNK, W)."""
    tile = chunk.tile
    place = chunk.call_order
    tokens = load_tokens(x, tile.sample, tile.head, place, chunk.live, blocks.D, blocks.W)
    return normed(
        tokens,
        x,
        tile.sample,
        tile.head,
        place,
        chunk.live,
        sizes.tokens,
        learned.eps,
        blocks.D,
    )


@triton.jit
def seen_text(text_mask, sample, num_text, place, live):
    """Which text tokens `place` of a sample may be seen: all that are live where there is no mask
    (B, X)."""
    seen = live
    if text_mask is not None:
        # The last block reaches behind the sample's tokens, into the next sample's mask.
        known = tl.load(text_mask + sample.to(tl.int64) * num_text + place, mask=live, other=0)
        # A mask is made of bytes: any that isn't zero is True.
        seen = live & (known.to(tl.int32) != 0)
    return seen


@triton.jit
def finite_where_masked(x, seen):
    """Queries x (places, W) of text tokens, 0 for what isn't finite in masked ones: it would reach
    gradients."""
    wide = x.to(tl.float32)
    # The largest float32. NaN compares as False too. Chosen and not multiplied by 0, which would
    # leave NaN as it is.
    finite = tl.abs(wide) <= 3.4028234663852886e38
    return tl.where(seen[:, None] | finite, x, tl.zeros(x.shape, x.dtype))


@triton.jit
def rotary_tables(rotary, sample, head, place, live, W: tl.constexpr):
    """cos and sin of the tokens `place` of one row, float32 (places, W / 2) each."""
    # One angle for two neighbouring channels.
    pair = tl.arange(0, W // 2)
    real = real_channels(live, rotary.PAIRS, W // 2)
    if rotary.PLAIN:
        # Narrow offsets: the pooling of summaries has no registers to spare.
        entry = place[:, None] * rotary.PAIRS + pair[None, :]
    else:
        row = sample.to(tl.int64) * rotary.sample + head.to(tl.int64) * rotary.head
        token = row + place.to(tl.int64)[:, None] * rotary.token
        entry = token + (pair * rotary.pair)[None, :]
    # By an angle of zero, pairs without one stay.
    cos = tl.load(rotary.cos + entry, mask=real, other=1.0).to(tl.float32)
    sin = tl.load(rotary.sin + entry, mask=real, other=0.0).to(tl.float32)
    return Rotary(cos=cos, sin=sin)


@triton.jit
def rotate_tokens(x, turn):
    """Rotary embedding of neighbouring channels of x (places, W) by `turn`, float32."""
    SLOTS: tl.constexpr = x.shape[0]
    W: tl.constexpr = x.shape[1]
    # Pairs become the last axis, which splits without a move between threads: a thread holds
    # neighbouring channels.
    even, odd = tl.split(tl.reshape(x.to(tl.float32), (SLOTS, W // 2, 2)))
    turned = tl.join(even * turn.cos - odd * turn.sin, even * turn.sin + odd * turn.cos)
    return tl.reshape(turned, (SLOTS, W))


@triton.jit
def add_product(total, matrix, step, x, WIDTH: tl.constexpr, PARTS: tl.constexpr):
    """total + a block of the sum of PARTS matrices, `step` elements apart and WIDTH wide, times x;
    float32."""
    ROWS: tl.constexpr = total.shape[0]
    COLUMNS: tl.constexpr = x.shape[0]
    entry = matrix + tl.arange(0, ROWS)[:, None] * WIDTH + tl.arange(0, COLUMNS)[None, :]
    # No mask: tables are as large as blocks, and zero where a tile has no token.
    for part in tl.static_range(PARTS):  # pyright: ignore[reportGeneralTypeIssues]
        total = dot(tl.load(entry + part * step), x, total)
    return total


@triton.jit
def whole_block(
    matrix,
    step,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    WIDTH: tl.constexpr,
    PARTS: tl.constexpr,
):
    """A block of the sum of PARTS matrices, `step` elements apart and WIDTH wide, float32."""
    entry = matrix + tl.arange(0, ROWS)[:, None] * WIDTH + tl.arange(0, COLUMNS)[None, :]
    total = tl.load(entry).to(tl.float32)
    # Added in float32, the summands are the weight again.
    for part in tl.static_range(1, PARTS):  # pyright: ignore[reportGeneralTypeIssues]
        total += tl.load(entry + part * step).to(tl.float32)
    return total


@triton.jit
def write_tokens(target, place, live, x):
    """Tokens x (places, W) to the rows `place` of a buffer (rows, W)."""
    W: tl.constexpr = x.shape[1]
    entry = target + place.to(tl.int64)[:, None] * W + tl.arange(0, W)[None, :]
    # Rounded by `cast`: left to the store, the interpreter would cut bfloat16 off.
    tl.store(entry, cast(x, target.dtype.element_ty), mask=live[:, None])
