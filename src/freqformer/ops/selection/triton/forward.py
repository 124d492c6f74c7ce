"""The Triton kernel of the selection: `launch.py` holds the host side."""

from __future__ import annotations

import triton
import triton.language as tl

from freqformer.ops.jit import INTERPRETED

MID = tl.constexpr(1)


@triton.jit
def _tile_counts(tile_offsets, tile, tiles):
    """Tokens of tiles, 1 for those behind the last."""
    first = tl.load(tile_offsets + tile, mask=tile < tiles, other=0)
    return tl.load(tile_offsets + tile + 1, mask=tile < tiles, other=1) - first


@triton.jit
def _best(scores, place, tiles, count, ROWS: tl.constexpr):
    """Which `count` scores of every row are largest, ties to the lower place: bool (ROWS, places).

    The bits of a float, its sign turned into an offset, order like the float. The threshold, the
    count-th largest number, is then found bit by bit from the top.
    """
    bits = scores.to(tl.int32, bitcast=True)
    # -0 is as large as 0, and their bits differ.
    bits = tl.where(bits == -2147483648, 0, bits)
    ordered = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.uint32, bitcast=True) ^ 0x80000000
    ordered = tl.where((place < tiles)[None, :], ordered, 0)
    threshold = tl.zeros((ROWS,), tl.uint32)
    for step in range(32):
        trial = threshold | (tl.full((ROWS,), 1, tl.uint32) << (31 - step))
        enough = tl.sum((ordered >= trial[:, None]).to(tl.int32), 1) >= count
        threshold = tl.where(enough, trial, threshold)
    above = ordered > threshold[:, None]
    level = ordered == threshold[:, None]
    wanted = count - tl.sum(above.to(tl.int32), 1)
    chosen = above | level
    # Ties at the threshold are rare, and ranking them is slow.
    if tl.max(tl.sum(level.to(tl.int32), 1) - wanted, 0) > 0:
        chosen = above | (level & (tl.cumsum(level.to(tl.int32), 1) <= wanted[:, None]))
    return chosen


@triton.jit
def _unseen(cells, scratch, cell, num_cells, longest, ROWS: tl.constexpr, STEP: tl.constexpr):
    """log(tokens of a cell that are in no chosen tile), from the tokens of every chosen tile:
    (ROWS, cells)."""
    known = cell < num_cells
    left = tl.load(cells[1] + cell, mask=known, other=0).to(tl.float32)[None, :] + tl.zeros(
        (ROWS, 1), tl.float32
    )
    for first in range(0, longest, STEP):
        step = first + tl.arange(0, STEP)
        real = known[:, None] & (step < longest)[None, :]
        tile = tl.load(cells[0] + cell[:, None] * longest + step[None, :], mask=real, other=-1)
        seen = tl.load(
            scratch[:, None, None] + tile[None, :, :], mask=(tile >= 0)[None, :, :], other=0.0
        )
        left -= tl.sum(seen, 2)
    return tl.where(left > 0, tl.log(tl.maximum(left, 1.0)), float("-inf"))


@triton.jit
def select_tiles(
    sums,
    allocation,
    tile_offsets,
    cells,
    lists,
    bias,
    scratch,
    sizes,
    D: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
    PART: tl.constexpr,
    ROWS: tl.constexpr,
    TILES: tl.constexpr,
    CELLS: tl.constexpr,
    STEP: tl.constexpr,
):
    """The best key tiles of every query tile of MID rows, and the bias of their low summaries.

    A fixed number of programs goes through all blocks of QUERIES query tiles, each with its own
    scratch, so that no more than that many scores are ever held.

    Args:
        sums: float32 (3, R, T, D), sums over tiles of queries and keys first.
        allocation: bands, int32 (R,).
        tile_offsets: int32 (T + 1,).
        cells: tiles of every cell (C, most) with -1 behind the last, and tokens of every cell (C,),
            int32.
        lists: int32 (R, T, count), written ascending.
        bias: float32 (R, T, C), log of the tokens of a cell that are in no listed tile; None
            without summaries.
        scratch: float32 (programs, QUERIES, TILES).
        sizes: R, T, count, C, most tiles of a cell.
    """
    rows, tiles, count, num_cells, longest = sizes
    blocks = tl.cdiv(tiles, QUERIES)
    place = tl.arange(0, TILES)
    own_scratch = scratch + tl.program_id(0).to(tl.int64) * QUERIES * TILES
    for work in range(tl.program_id(0), rows * blocks, tl.num_programs(0)):
        row = work // blocks
        if tl.load(allocation + row) == MID:
            first = work % blocks * QUERIES
            queries = first + tl.arange(0, QUERIES)
            known = queries < tiles
            base = row.to(tl.int64) * tiles * D
            key_base = base + rows.to(tl.int64) * tiles * D
            for chunk in range(0, tiles, KEYS):
                keys = chunk + tl.arange(0, KEYS)
                scores = tl.zeros((QUERIES, KEYS), tl.float32)
                for part in tl.static_range(0, D, PART):  # pyright: ignore[reportGeneralTypeIssues]
                    channel = part + tl.arange(0, PART)
                    entry = base + queries[:, None] * D + channel[None, :]
                    query = tl.load(sums + entry, mask=known[:, None], other=0.0)
                    entry = key_base + keys[None, :] * D + channel[:, None]
                    key = tl.load(sums + entry, mask=(keys < tiles)[None, :], other=0.0)
                    # Three products of tf32 parts are as good as one of float32.
                    scores = tl.dot(
                        query, key, scores, input_precision="ieee" if INTERPRETED else "tf32x3"
                    )
                scores = scores / _tile_counts(tile_offsets, keys, tiles)[None, :]
                # A query tile always sees itself.
                scores = tl.where(queries[:, None] == keys[None, :], float("inf"), scores)
                entry = tl.arange(0, QUERIES)[:, None] * TILES + keys[None, :]
                tl.store(own_scratch + entry, scores, mask=(keys < TILES)[None, :])
            tl.debug_barrier()
            for group in range(0, QUERIES, ROWS):
                member = group + tl.arange(0, ROWS)
                entry = own_scratch + member[:, None] * TILES + place[None, :]
                chosen = _best(tl.load(entry), place, tiles, count, ROWS)
                query_tile = first + member
                target = (
                    (row.to(tl.int64) * tiles + query_tile)[:, None] * count
                    + tl.cumsum(chosen.to(tl.int32), 1)
                    - 1
                )
                tl.store(
                    lists + target, place[None, :], mask=chosen & (query_tile < tiles)[:, None]
                )
                if bias is not None:
                    tl.debug_barrier()
                    counts = _tile_counts(tile_offsets, place, tiles)
                    tl.store(entry, tl.where(chosen, counts[None, :], 0).to(tl.float32))
                    tl.debug_barrier()
                    cell = tl.arange(0, CELLS)
                    unseen = _unseen(
                        cells, own_scratch + member * TILES, cell, num_cells, longest, ROWS, STEP
                    )
                    target = (row.to(tl.int64) * tiles + query_tile)[:, None] * num_cells + cell[
                        None, :
                    ]
                    tl.store(
                        bias + target,
                        unseen,
                        mask=(query_tile < tiles)[:, None] & (cell < num_cells)[None, :],
                    )
            # The next block of queries writes where others may still read.
            tl.debug_barrier()
