"""Matrices that act on one tile, stored once for all tiles that share them, as the kernels read
them.

Almost all tiles of a grid are alike: only tiles at its borders hold fewer tokens or have fewer
neighbours. Shape legend: T tiles, K classes of tiles.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from freqformer.grid import TileLayout


@dataclass(frozen=True, eq=False)
class TileClasses:
    """Tiles that are alike along every axis."""

    of_tile: Tensor
    """Class of every tile, int64 (T,)."""
    members: Tensor
    """One tile of every class, int64 (K,)."""


def tile_classes(layout: TileLayout, kinds: Sequence[Sequence[Hashable]]) -> TileClasses:
    """Classes of tiles from what tells them apart along each axis: `kinds[axis][i]` for the i-th
    tile along it."""
    place = layout.coordinates()
    columns = []
    for axis, along in enumerate(kinds):
        distinct = {kind: number for number, kind in enumerate(dict.fromkeys(along))}
        columns.append(torch.tensor([distinct[kind] for kind in along])[place[:, axis]])
    _, of_tile = torch.stack(columns, -1).unique(dim=0, return_inverse=True)
    first = torch.full((int(of_tile.max()) + 1,), layout.num_tiles)
    return TileClasses(
        of_tile, first.scatter_reduce(0, of_tile, torch.arange(layout.num_tiles), "amin")
    )


def kron(matrices: Sequence[Tensor]) -> Tensor:
    """The matrix over a tile's tokens in raster order that acts as one matrix along each axis."""
    time, height, width = matrices
    return torch.kron(torch.kron(time, height), width)


def padded(matrices: Sequence[Tensor], rows: int, columns: int) -> Tensor:
    """Matrices in the corner of zero matrices (len(matrices), rows, columns), float64."""
    table = torch.zeros(len(matrices), rows, columns, dtype=torch.float64)
    for place, matrix in zip(table, matrices, strict=True):
        tall, wide = matrix.shape
        place[:tall, :wide] = matrix
    return table


def parts(table: Tensor, dtype: torch.dtype) -> Tensor:
    """A float64 table as summands in `dtype`, (1 or 2, *table.shape).

    Tensor cores multiply 16-bit numbers exactly and add in float32. Two 16-bit summands hold a
    weight to about 2^-17, so that a matrix product in two passes is as good as one in float32.
    """
    high = table.to(dtype)
    if dtype == torch.float32:
        return high[None]
    return torch.stack([high, (table - high.double()).to(dtype)])
