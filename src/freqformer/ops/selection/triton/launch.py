"""The selection in one Triton launch: the host side.

Shape legend: R rows, T tiles, C cells, D head_dim.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from freqformer.buffers import SELECTION_QUERIES as QUERIES
from freqformer.buffers import power_of_two, selection_programs
from freqformer.ops.selection.triton.forward import select_tiles

KEYS = 64
"""Key tiles whose scores are computed at once."""
CHANNELS = 32
"""Channels that are multiplied at once: the parts of their numbers take many registers."""
GROUP_SCORES = 8192
"""Scores of query tiles whose thresholds are sought at once: 64 registers of each of 128
threads."""
CELL_STEP = 4
"""Tiles of a cell that are looked up at once."""


def select(
    sums: Tensor,
    bands: Tensor,
    tile_offsets: Tensor,
    cells: tuple[Tensor, Tensor] | None,
    count: int,
) -> tuple[Tensor, Tensor | None]:
    """The `count` best key tiles of every query tile of MID rows by mean query . mean key, the tile
    itself among them.

    Args:
        sums: float32 (3, R, T, D), sums over tiles of queries, keys and values.
        bands: `Band` of every row, int32 (R,).
        tile_offsets: first token of every tile, and N: int32 (T + 1,).
        cells: tiles of every cell (C, most), -1 behind the last, and tokens of every cell (C,),
            int32; None without summaries.
        count: tiles to keep, at most T.

    Returns:
        lists: int32 (R, T, count), ascending; among equal scores the lower tiles. Rows of other
        bands hold anything. bias: float32 (R, T, C), log(tokens of the cell that the query tile
        doesn't see exactly), -inf where none is
            left; None without cells.
    """
    lists, bias = torch.ops.freqformer.select_tiles(
        sums, bands, tile_offsets, None if cells is None else list(cells), count
    )
    return lists, None if cells is None else bias


@torch.library.custom_op(
    "freqformer::select_tiles",
    mutates_args=(),
    schema=(
        "(Tensor sums, Tensor bands, Tensor tile_offsets, Tensor[]? cells, int count) -> "
        "(Tensor, Tensor)"
    ),
)
def _select_tiles(
    sums: Tensor, bands: Tensor, tile_offsets: Tensor, cells: Sequence[Tensor] | None, count: int
) -> tuple[Tensor, Tensor]:
    lists, bias = _outputs(sums, cells, count)
    _, rows, tiles, head_dim = sums.shape
    side, programs = power_of_two(tiles), selection_programs(rows, tiles)
    select_tiles[(programs,)](
        sums,
        bands,
        tile_offsets,
        None if cells is None else tuple(cells),
        lists,
        None if cells is None else bias,
        torch.empty(programs, QUERIES, side, dtype=torch.float32, device=sums.device),
        (rows, tiles, count, *((0, 0) if cells is None else cells[0].shape)),
        D=head_dim,
        QUERIES=QUERIES,
        KEYS=KEYS,
        PART=min(head_dim, CHANNELS),
        ROWS=max(1, min(QUERIES, GROUP_SCORES // side)),
        TILES=side,
        CELLS=1 if cells is None else power_of_two(cells[0].shape[0]),
        STEP=CELL_STEP,
        num_warps=4,  # pyright: ignore[reportCallIssue]
        num_stages=2,  # pyright: ignore[reportCallIssue]
    )
    return lists, bias


@_select_tiles.register_fake
def _(sums, bands, tile_offsets, cells, count):
    return _outputs(sums, cells, count)


def _outputs(sums: Tensor, cells: Sequence[Tensor] | None, count: int) -> tuple[Tensor, Tensor]:
    _, rows, tiles, _ = sums.shape
    lists = sums.new_empty(rows, tiles, count, dtype=torch.int32)
    return lists, sums.new_empty(rows, tiles, 0 if cells is None else cells[1].shape[0])
