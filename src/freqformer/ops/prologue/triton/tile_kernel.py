"""The first Triton kernel of the prologue: every token is read once and written where the attention
reads it.

`launch.py` holds the host side, `arguments.py` the shape legend. An argument that is None is absent
from the compiled kernel.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl

from freqformer.ops.jit import cast
from freqformer.ops.prologue.triton.tokens import (
    HIGH,
    LOW,
    MID,
    add_product,
    load_chunk,
    load_normed,
    load_tile,
    rotary_tables,
    rotate_tokens,
    row_band,
    this_program,
    write_tokens,
)


class Target(NamedTuple):
    """Where the tokens of one row go."""

    base: tl.tensor
    """The row's part of a buffer."""
    exact: tl.tensor
    """First row of MID and HIGH rows' tokens with all bands, for text queries; 0 for none."""


@triton.jit
def _band_features(tokens, x, chunk, tiles, learned, sizes, blocks):
    """Some tokens of a MID or HIGH row's tile with their bands weighted: float32 (CHUNK, W).

    Args:
        tokens: the normalised tokens of the chunk.
        x, chunk: `Tokens`, `Chunk`.
    """
    SLOTS: tl.constexpr = blocks.SLOTS
    SIZE: tl.constexpr = SLOTS * SLOTS
    tile = chunk.tile
    step = tiles.projector_step
    own = tl.zeros((blocks.CHUNK, blocks.W), tl.float32)
    mid = tl.zeros((blocks.CHUNK, blocks.W), tl.float32)
    # `Band` counts as the projectors do: low, mid, high.
    matrix = tiles.projectors + tile.kind * 3 * SIZE + chunk.skip * SLOTS
    if x.FEATURES == "own_band":
        matrix += tile.band * SIZE
    # A band mixes all tokens of the tile. They are loaded once more, a few at a time: a whole tile
    # and its projector are more than registers hold, and the cache has both.
    for ahead in range(0, SLOTS, blocks.CHUNK):
        near = load_chunk(tile, ahead, tiles, blocks)
        others = load_normed(x, near, learned, sizes, blocks)
        own = add_product(own, matrix + ahead, step, others, SLOTS, blocks.PARTS)
        if x.FEATURES == "band_gains":
            mid = add_product(mid, matrix + SIZE + ahead, step, others, SLOTS, blocks.PARTS)
    weighted = own
    if x.FEATURES == "high_pass_values":
        # The bands of a token sum up to it: what is above the low band takes one product.
        weighted = tokens.to(tl.float32) - own
    elif x.FEATURES == "band_gains":
        gains = learned.gains + tile.head * 3
        low_gain = tl.load(gains)
        mid_gain = tl.load(gains + 1)
        high_gain = tl.load(gains + 2)
        # high = x - low - mid, put in: two products do for three bands.
        weighted = (
            tokens.to(tl.float32) * high_gain
            + own * (low_gain - high_gain)
            + mid * (mid_gain - high_gain)
        )
    return weighted


@triton.jit
def _move(x, target, chunk, turn, tiles, learned, sizes, blocks):
    """Bring some tokens of a tile to where a row of its band reads them.

    Args:
        x, target, chunk: `Tokens`, `Target`, `Chunk`.
        turn: cos and sin of the tokens; None for values and without rotary embedding.

    Returns: the tokens normalised and rotated, (CHUNK, W), in their dtype.
    """
    tile = chunk.tile
    tokens = load_normed(x, chunk, learned, sizes, blocks)
    turned = tokens
    if turn is not None:
        # Rounded here and not only when stored: the reference rounds between its steps too, and
        # low tokens are made of what the attention would read.
        turned = cast(rotate_tokens(tokens, turn), tokens.dtype)
    written = turned
    kept = chunk.live
    if not x.KEEPS_EXACT:
        # Nobody reads exact tokens of LOW rows, and not writing them saves their bytes. The band is
        # compared after it is broadcast: Triton 3.9's interpreter makes int32 of a boolean that it
        # broadcasts, no mask.
        kept = chunk.live & (tl.broadcast_to(tile.band, chunk.live.shape) != LOW)
    banded = (tile.band == MID) | (tile.band == HIGH)
    if x.FEATURES != "full":
        if banded:
            # Bands are taken of tokens before they are rotated: a rotation that changes from token
            # to token would move them to other frequencies.
            weighted = _band_features(tokens, x, chunk, tiles, learned, sizes, blocks)
            weighted = cast(weighted, tokens.dtype)
            if turn is not None:
                weighted = cast(rotate_tokens(weighted, turn), tokens.dtype)
            written = weighted
    if x.KEEPS_EXACT:
        # Masked, not branched: Triton 3.6 fails to compile some of the branches.
        copied = chunk.live & tl.broadcast_to((target.exact > 0) & banded, chunk.live.shape)
        exact = target.base + target.exact * blocks.W
        write_tokens(exact, chunk.tile_order, copied, turned)
    write_tokens(target.base, chunk.tile_order, kept, written)
    return turned


@triton.jit
def _reduce(reduced, turned, chunk, tiles, blocks):
    """What a tile is reduced to, float32 (LOW_SLOTS, W), with some of its tokens added: low tokens,
    and in the last row the sum of all."""
    # The matrix's columns for these tokens. Its last row is ones, so that the sum comes out of the
    # same product.
    matrix = tiles.reduction + chunk.tile.kind * blocks.LOW_SLOTS * blocks.SLOTS + chunk.skip
    return add_product(reduced, matrix, tiles.reduction_step, turned, blocks.SLOTS, blocks.PARTS)


@triton.jit
def _leave(reduced, low, sums, tile, blocks):
    """Write what a tile was reduced to.

    Args:
        reduced: float32 (LOW_SLOTS, W).
        low: where the row's low tokens begin.
        sums: where the tile's sum goes.
    """
    if (tile.band == LOW) | blocks.BRANCH:
        # The last row, the sum, is masked: a tile has fewer low tokens than slots.
        write_tokens(low, tile.low_place, tile.low_place >= 0, reduced)
    if blocks.SUMS:
        if (tile.band == MID) | (tile.band == HIGH):
            # A block can't be cut: all rows but the last count as zero, and then the rows are
            # summed, which is exact.
            last = tl.arange(0, reduced.shape[0]) == reduced.shape[0] - 1
            total = tl.sum(tl.where(last[:, None], reduced, 0.0), 0)
            tl.store(sums + tl.arange(0, reduced.shape[1]), total)


@triton.jit
def prepare_tiles(qkv, allocation, rows, tiles, learned, sizes, blocks):
    """One tile of one row: launched over tiles and rows, rows fastest.

    Args:
        qkv, allocation, tiles, learned, sizes, blocks: see `arguments.py`.
        rows: `PreparedRows`, of which tokens, low tokens and tile sums are written.
    """
    W: tl.constexpr = blocks.W
    LOW_SLOTS: tl.constexpr = blocks.LOW_SLOTS
    program = this_program(sizes)
    band = row_band(allocation, program.sample, program.head)
    tile = load_tile(program, band, tiles, blocks)
    query_row = rows.query + tile.wide_row * sizes.query_rows * W
    key_row = rows.key + tile.wide_row * sizes.key_rows * W
    value_row = rows.value + tile.wide_row * sizes.key_rows * W
    query_target = Target(base=query_row, exact=sizes.segments.exact)
    key_target = Target(base=key_row, exact=sizes.segments.exact)
    value_target = Target(base=value_row, exact=sizes.segments.exact)
    low_query = tl.zeros((LOW_SLOTS, W), tl.float32)
    low_key = tl.zeros((LOW_SLOTS, W), tl.float32)
    low_value = tl.zeros((LOW_SLOTS, W), tl.float32)
    # A few tokens at once take few registers, so that many programs have loads in flight.
    for skip in range(0, blocks.SLOTS, blocks.CHUNK):
        chunk = load_chunk(tile, skip, tiles, blocks)
        # Queries and keys share the rotary tables, whose bytes are as many as theirs.
        turn = None
        if learned.TURNS:
            turn = rotary_tables(
                learned.rotary, tile.sample, tile.head, chunk.call_order, chunk.live, W
            )
        query = _move(qkv.query, query_target, chunk, turn, tiles, learned, sizes, blocks)
        low_query = _reduce(low_query, query, chunk, tiles, blocks)
        key = _move(qkv.key, key_target, chunk, turn, tiles, learned, sizes, blocks)
        low_key = _reduce(low_key, key, chunk, tiles, blocks)
        value = _move(qkv.value, value_target, chunk, None, tiles, learned, sizes, blocks)
        low_value = _reduce(low_value, value, chunk, tiles, blocks)
    # Sums of queries, keys and values lie one after the other, (3, R, T, W).
    query_sums = rows.sums + (tile.wide_row * sizes.tiles + tile.number) * W
    sums_step = tl.cast(sizes.rows, tl.int64) * sizes.tiles * W
    key_sums = query_sums + sums_step
    # Low queries follow text in their buffer, low keys and values have a segment.
    _leave(low_query, query_row + sizes.tokens * W, query_sums, tile, blocks)
    _leave(low_key, key_row + sizes.segments.low * W, key_sums, tile, blocks)
    _leave(low_value, value_row + sizes.segments.low * W, key_sums + sums_step, tile, blocks)
