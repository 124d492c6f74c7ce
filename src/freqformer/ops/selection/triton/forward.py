"""The Triton kernel of the selection: `launch.py` holds the host side.

Shape legend: R rows, one head of one sample each, T tiles, C cells, D channels of the
prologue's sums; k tiles are kept.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from freqformer.ops.jit import INTERPRETED

MID = tl.constexpr(1)


class Means(NamedTuple):
    """What tile means are made of. Products of sums are divided by the key tile's tokens alone:
    the query tile's would scale its whole row, and leave the order as it is."""

    sums: Tensor
    """float32 (3, R, T, D), sums over tiles of queries, then of keys; the third is not read."""
    tile_offsets: Tensor
    """int32 (T + 1,), first token of every tile, and the number of tokens."""


class Cells(NamedTuple):
    """Cells of neighbouring tiles, each of which one low summary stands for."""

    tiles: Tensor
    """int32 (C, longest), tiles of every cell, -1 behind the last."""
    tokens: Tensor
    """int32 (C,)."""
    num: int
    """C."""
    longest: int
    """Most tiles of a cell."""


class Chosen(NamedTuple):
    """What the kernel writes."""

    lists: Tensor
    """int32 (R, T, k), ascending."""
    bias: Tensor | None
    """float32 (R, T, C), log(tokens of a cell in no listed tile); None without summaries."""


class Sizes(NamedTuple):
    """What is known only at launch."""

    rows: int
    tiles: int


@triton.jit
def _tile_counts(tile_offsets, tile, tiles):
    """Tokens of tiles, 1 for those behind the last."""
    # 1 - 0 after the last, as scores are divided by it.
    first = tl.load(tile_offsets + tile, mask=tile < tiles, other=0)
    return tl.load(tile_offsets + tile + 1, mask=tile < tiles, other=1) - first


@triton.jit
def _best(scores, place, tiles, kept, ROWS: tl.constexpr):
    """Which `kept` scores of every row are largest, ties to the lower place: bool (ROWS, TILES).

    The bits of a float, its sign turned into an offset, order like the float. The threshold, the
    kept-th largest number, is then found bit by bit from the top: 32 counts, however many tiles are
    kept, where a sort would move every score many times.
    """
    bits = scores.to(tl.int32, bitcast=True)
    # -0 is as large as 0, and their bits differ.
    bits = tl.where(bits == -2147483648, 0, bits)
    # Negative floats order backwards by their bits: all but the sign is turned over. Then the sign
    # itself, so that negative numbers lie below positive ones as unsigned integers.
    ordered = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.uint32, bitcast=True) ^ 0x80000000
    # No score is 0 now, not even -inf, so that what is behind the last tile is never chosen.
    ordered = tl.where((place < tiles)[None, :], ordered, 0)
    threshold = tl.zeros((ROWS,), tl.uint32)
    for step in range(32):
        # A bit belongs to the threshold if enough scores are still as large with it.
        trial = threshold | (tl.full((ROWS,), 1, tl.uint32) << (31 - step))
        enough = tl.sum((ordered >= trial[:, None]).to(tl.int32), 1) >= kept
        threshold = tl.where(enough, trial, threshold)
    above = ordered > threshold[:, None]
    level = ordered == threshold[:, None]
    wanted = kept - tl.sum(above.to(tl.int32), 1)
    chosen = above | level
    # Ties at the threshold are rare, and ranking them is slow.
    if tl.max(tl.sum(level.to(tl.int32), 1) - wanted, 0) > 0:
        chosen = above | (level & (tl.cumsum(level.to(tl.int32), 1) <= wanted[:, None]))
    return chosen


@triton.jit
def _unseen(cells, listed, cell, ROWS: tl.constexpr, STEP: tl.constexpr):
    """log(tokens of a cell that are in no listed tile): (ROWS, CELLS).

    Args:
        listed: for each row a pointer to float32 (TILES,), the tokens of every listed tile, 0 for
            all others.
    """
    known = cell < cells.num
    left = tl.load(cells.tokens + cell, mask=known, other=0).to(tl.float32)[None, :] + tl.zeros(
        (ROWS, 1), tl.float32
    )
    # A row's block is (ROWS, CELLS, STEP): a step of a few tiles keeps it in registers.
    for first in range(0, cells.longest, STEP):
        step = first + tl.arange(0, STEP)
        real = known[:, None] & (step < cells.longest)[None, :]
        entry = cells.tiles + cell[:, None] * cells.longest + step[None, :]
        tile = tl.load(entry, mask=real, other=-1)
        seen = tl.load(
            listed[:, None, None] + tile[None, :, :], mask=(tile >= 0)[None, :, :], other=0.0
        )
        left -= tl.sum(seen, 2)
    # Counts of tokens are whole, and exact in float32: an empty cell has exactly 0 left.
    return tl.where(left > 0, tl.log(tl.maximum(left, 1.0)), float("-inf"))


# Layers and steps of one model keep other numbers of tiles, and Triton would compile this kernel
# once more for a 1, and for what 16 divides.
@triton.jit(do_not_specialize=["kept"])
def select_tiles(
    means,
    allocation,
    cells,
    chosen_tiles,
    scratch,
    sizes,
    kept,
    D: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
    PART: tl.constexpr,
    ROWS: tl.constexpr,
    TILES: tl.constexpr,
    CELLS: tl.constexpr,
    STEP: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """The best key tiles of every query tile of MID rows, and the bias of their low summaries.

    A fixed number of programs goes through all blocks of QUERIES query tiles, each with its own
    scratch, so that no more than that many scores are ever held.

    Args:
        means, sizes: `Means`, `Sizes`.
        allocation: bands, int32 (R,).
        cells: `Cells`, None without summaries.
        chosen_tiles: `Chosen`, written for MID rows only.
        scratch: float32 (programs, QUERIES, TILES).
        kept: tiles that a list has, from 1 to T.
        QUERIES, KEYS, PART: query tiles, key tiles and channels of one product.
        ROWS, TILES: query tiles that are ranked at once, and T rounded up: a block of scores.
        CELLS, STEP: C rounded up, and tiles of a cell that are looked up at once.
        PRECISION: how factors in float32 are multiplied, to float32's precision.
    """
    rows = sizes.rows
    tiles = sizes.tiles
    blocks = tl.cdiv(tiles, QUERIES)
    place = tl.arange(0, TILES)
    own_scratch = scratch + tl.program_id(0).to(tl.int64) * QUERIES * TILES
    for work in range(tl.program_id(0), rows * blocks, tl.num_programs(0)):
        # Neighbouring programs take neighbouring blocks of one row, and share its keys in the L2
        # cache.
        row = work // blocks
        # Rows of other bands have no choice: skipping them here costs one load each.
        if tl.load(allocation + row) == MID:
            first = work % blocks * QUERIES
            queries = first + tl.arange(0, QUERIES)
            known = queries < tiles
            base = row.to(tl.int64) * tiles * D
            key_base = base + rows.to(tl.int64) * tiles * D
            # 1. Scores of a block of query tiles with all key tiles, to scratch: a row of them is
            # ranked as a whole, and a product's layout would spread it over the warps.
            for chunk in range(0, tiles, KEYS):
                keys = chunk + tl.arange(0, KEYS)
                scores = tl.zeros((QUERIES, KEYS), tl.float32)
                for part in tl.static_range(0, D, PART):  # pyright: ignore[reportGeneralTypeIssues]
                    channel = part + tl.arange(0, PART)
                    entry = base + queries[:, None] * D + channel[None, :]
                    query = tl.load(means.sums + entry, mask=known[:, None], other=0.0)
                    entry = key_base + keys[None, :] * D + channel[:, None]
                    key = tl.load(means.sums + entry, mask=(keys < tiles)[None, :], other=0.0)
                    scores = tl.dot(
                        query, key, scores, input_precision="ieee" if INTERPRETED else PRECISION
                    )
                scores = scores / _tile_counts(means.tile_offsets, keys, tiles)[None, :]
                # A query tile always sees itself.
                scores = tl.where(queries[:, None] == keys[None, :], float("inf"), scores)
                entry = tl.arange(0, QUERIES)[:, None] * TILES + keys[None, :]
                tl.store(own_scratch + entry, scores, mask=(keys < TILES)[None, :])
            # Threads now read what others wrote.
            tl.debug_barrier()
            for group in range(0, QUERIES, ROWS):
                # 2. The best tiles of ROWS query tiles. A running count of the chosen is where
                # each goes in the list, which so ascends without a sort.
                member = group + tl.arange(0, ROWS)
                entry = own_scratch + member[:, None] * TILES + place[None, :]
                chosen = _best(tl.load(entry), place, tiles, kept, ROWS)
                query_tile = first + member
                target = (
                    (row.to(tl.int64) * tiles + query_tile)[:, None] * kept
                    + tl.cumsum(chosen.to(tl.int32), 1)
                    - 1
                )
                tl.store(
                    chosen_tiles.lists + target,
                    place[None, :],
                    mask=chosen & (query_tile < tiles)[:, None],
                )
                if cells is not None:
                    # 3. What the lists leave of every cell. The tokens of each chosen tile take the
                    # place of its score, for a cell to look up: all threads must have read the
                    # scores before, and must see the tokens after.
                    tl.debug_barrier()
                    counts = _tile_counts(means.tile_offsets, place, tiles)
                    tl.store(entry, tl.where(chosen, counts[None, :], 0).to(tl.float32))
                    tl.debug_barrier()
                    cell = tl.arange(0, CELLS)
                    unseen = _unseen(cells, own_scratch + member * TILES, cell, ROWS, STEP)
                    target = (row.to(tl.int64) * tiles + query_tile)[:, None] * cells.num + cell[
                        None, :
                    ]
                    tl.store(
                        chosen_tiles.bias + target,
                        unseen,
                        mask=(query_tile < tiles)[:, None] & (cell < cells.num)[None, :],
                    )
            # The next block of queries writes where others may still read.
            tl.debug_barrier()
