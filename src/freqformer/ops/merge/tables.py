"""Static tables of the merge launch: from the low tokens around a tile to the tile's tokens.

Shape legend: N video tokens, M low tokens, T tiles, K classes of tiles, SLOTS and NEAR the sides of
the kernel's blocks.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from freqformer.bands import interpolation_matrix, low_grid, low_samples, synthesis_matrix
from freqformer.buffers import power_of_two
from freqformer.grid import Extents, TileLayout
from freqformer.ops.plan_tables import kept_by_plan, tile_order, upload
from freqformer.ops.tile_matrices import TileClasses, kron, padded, parts, tile_classes
from freqformer.plan import AttentionPlan


@dataclass(frozen=True, eq=False)
class MergeTables:
    """Everything static about the merge of one plan, device and dtype; made by `merge_tables`."""

    tile_offsets: Tensor
    """First token of every tile in tile order, and N: int32 (T + 1,)."""
    raster: Tensor
    """Raster place of every token in tile order, int32 (N,)."""
    tile_class: Tensor
    """int32 (T,)."""
    near: Tensor
    """Low tokens that a tile's tokens are made of, -1 for none: int32 (T, NEAR)."""
    weights: Tensor
    """From those to the tile's tokens: summands (1 or 2, K, SLOTS, NEAR)."""


@kept_by_plan
def merge_tables(plan: AttentionPlan, device: torch.device, dtype: torch.dtype) -> MergeTables:
    """The tables of a plan on a device."""
    layout = plan.layout
    axes = [_axis(plan, axis) for axis in range(3)]
    classes, matrices = tile_matrices(layout, axes)
    near = tile_places(axes, low_grid(layout, plan.config))
    side = power_of_two(near.shape[1])
    near = torch.nn.functional.pad(near, (0, side - near.shape[1]), value=-1)
    order = tile_order(plan, device)
    return MergeTables(
        tile_offsets=order.offsets,
        raster=order.raster,
        tile_class=upload(classes.of_tile, device),
        near=upload(near, device),
        weights=parts(padded(matrices, power_of_two(layout.slots), side), dtype).to(device),
    )


Axis = list[tuple[Tensor, Tensor]]
"""For every tile along one axis a matrix, and the places that its columns (or, turned round, its
rows) stand for."""


def tile_matrices(layout: TileLayout, axes: list[Axis]) -> tuple[TileClasses, list[Tensor]]:
    """Classes of tiles, and the matrix of every class over all three axes."""
    # Matrices of equal tiles differ by rounding where they were cut from different places.
    kinds = [
        [(tuple(m.shape), tuple(m.flatten().mul(2**30).round().tolist())) for m, _ in along]
        for along in axes
    ]
    classes = tile_classes(layout, kinds)
    members = layout.coordinates()[classes.members].tolist()
    of_tile = [[matrix for matrix, _ in along] for along in axes]
    return classes, [kron([of_tile[axis][i] for axis, i in enumerate(place)]) for place in members]


def tile_places(axes: list[Axis], lengths: Extents) -> Tensor:
    """Raster places of every tile in a grid of `lengths`, -1 where an axis has none: int64 (T,
    product of the widths)."""
    total = torch.zeros((), dtype=torch.int64)
    for axis, (tiles, length) in enumerate(zip(axes, lengths, strict=True)):
        places = torch.stack([place for _, place in tiles])
        shape = [1] * 6
        shape[axis], shape[axis + 3] = places.shape
        places = places.reshape(shape)
        total = torch.where((total < 0) | (places < 0), -1, total * length + places)
    return total.flatten(3).flatten(0, 2)


def _axis(plan: AttentionPlan, axis: int) -> Axis:
    """For every tile along one axis, the matrix (extent, width) from low tokens near it, and their
    places (width,).

    The width is the same for all tiles; behind a tile's last place stand zero columns and -1.
    """
    layout = plan.layout
    config = plan.config
    samples = low_samples(layout, config, axis)
    tiles = []
    first_token = 0
    first_low = 0
    interpolates = config.low_output == "interpolate"
    whole = interpolation_matrix(layout, config, axis) if interpolates else None
    for n, m in zip(layout.extents(axis), samples, strict=True):
        if whole is None:
            begin = first_low
            end = first_low + m
            matrix = synthesis_matrix(n, m)
        else:
            # Linear interpolation reaches one low token beyond the tile on either side.
            begin = max(first_low - 1, 0)
            end = min(first_low + m + 1, sum(samples))
            matrix = whole[first_token : first_token + n, begin:end]
        tiles.append((matrix, torch.arange(begin, end)))
        first_token += n
        first_low += m
    width = max(len(place) for _, place in tiles)
    pad = torch.nn.functional.pad
    return [
        (pad(m, (0, width - len(place))), pad(place, (0, width - len(place)), value=-1))
        for m, place in tiles
    ]
