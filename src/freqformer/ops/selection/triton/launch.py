"""The selection in one Triton launch: the host side.

A plain function: the whole pipeline is one operation of a compiled graph, which never sees what is
inside. Shape legend: R rows, T tiles, C cells, D channels of the prologue's sums.
"""

from __future__ import annotations

import torch
from torch import Tensor

from freqformer.buffers import SELECTION_QUERIES as QUERIES
from freqformer.buffers import power_of_two, selection_programs
from freqformer.ops.architectures import architecture
from freqformer.ops.selection.triton.forward import Cells, Chosen, Means, Sizes, select_tiles

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
    """See `selection.api.select`."""
    _, rows, tiles, head_dim = sums.shape
    lists = sums.new_empty(rows, tiles, count, dtype=torch.int32)
    given = None if cells is None else _cells(*cells)
    bias = None if given is None else sums.new_empty(rows, tiles, given.num)
    side = power_of_two(tiles)
    programs = selection_programs(rows, tiles)
    select_tiles[(programs,)](
        Means(sums=sums, tile_offsets=tile_offsets),
        bands,
        given,
        Chosen(lists=lists, bias=bias),
        torch.empty(programs, QUERIES, side, dtype=torch.float32, device=sums.device),
        Sizes(rows=rows, tiles=tiles),
        count,
        D=head_dim,
        QUERIES=QUERIES,
        KEYS=KEYS,
        PART=min(head_dim, CHANNELS),
        ROWS=max(1, min(QUERIES, GROUP_SCORES // side)),
        TILES=side,
        CELLS=1 if given is None else power_of_two(given.num),
        STEP=CELL_STEP,
        # Three products of tf32 parts are as good as one of float32, which AMD's units multiply.
        PRECISION="ieee" if architecture(sums.device).is_amd else "tf32x3",
        num_warps=4,  # pyright: ignore[reportCallIssue]
        num_stages=2,  # pyright: ignore[reportCallIssue]
    )
    return lists, bias


def _cells(tiles: Tensor, tokens: Tensor) -> Cells:
    num, longest = tiles.shape
    return Cells(tiles=tiles, tokens=tokens, num=num, longest=longest)
