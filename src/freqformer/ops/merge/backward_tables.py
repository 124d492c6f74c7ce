"""Static tables of the merge's backward launch: from the tokens that a tile's low tokens reach to
the low tokens.

Shape legend: N video tokens, M low tokens, T tiles, K classes of tiles, LOW_SLOTS and REACH the
sides of the kernel's blocks.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from freqformer.bands import interpolation_matrix, low_grid, low_samples, synthesis_matrix
from freqformer.buffers import power_of_two
from freqformer.ops.merge.tables import Axis, tile_matrices, tile_places
from freqformer.ops.plan_tables import kept_by_plan, upload
from freqformer.ops.tile_matrices import padded, parts
from freqformer.ops.tokens import TokenOrder
from freqformer.plan import AttentionPlan

STEP = 64
"""Tokens that the kernel multiplies at once; REACH is a multiple of it."""


@dataclass(frozen=True, eq=False)
class CollapseTables:
    """Everything static about the backward of a merge for one plan, device, dtype and order; made
    by `collapse_tables`."""

    num_tokens: int
    """N."""
    tile_class: Tensor
    """int32 (T,)."""
    low_place: Tensor
    """Place of a tile's low tokens in the low grid's raster order, -1 behind the last: int32 (T,
    LOW_SLOTS)."""
    reach: Tensor
    """Tokens whose outputs a tile's low tokens take part in, -1 for none: int32 (T, REACH)."""
    weights: Tensor
    """From those to the tile's low tokens: summands (1 or 2, K, LOW_SLOTS, REACH)."""


@kept_by_plan
def collapse_tables(
    plan: AttentionPlan, device: torch.device, dtype: torch.dtype, token_order: TokenOrder
) -> CollapseTables:
    """The tables of a plan on a device; `reach` in `token_order`."""
    layout = plan.layout
    low_axes, axes = zip(*(_axis(plan, axis) for axis in range(3)), strict=True)
    classes, matrices = tile_matrices(layout, list(axes))
    reach = tile_places(list(axes), layout.grid.shape)
    if token_order == "tile":
        reach = torch.where(reach < 0, -1, layout.tile_to_raster[reach.clamp_min(0)])
    low_place = tile_places(list(low_axes), low_grid(layout, plan.config))
    low_slots = power_of_two(low_place.shape[1])
    width = -(-reach.shape[1] // STEP) * STEP

    def widened(x: Tensor, columns: int) -> Tensor:
        return upload(pad(x, (0, columns - x.shape[1]), value=-1), device)

    return CollapseTables(
        num_tokens=layout.grid.num_tokens,
        tile_class=upload(classes.of_tile, device),
        low_place=widened(low_place, low_slots),
        reach=widened(reach, width),
        weights=parts(padded(matrices, low_slots, width), dtype).to(device),
    )


def _axis(plan: AttentionPlan, axis: int) -> tuple[Axis, Axis]:
    """For every tile along one axis its low tokens' places, and the matrix to them from the tokens
    that they reach."""
    layout = plan.layout
    config = plan.config
    samples = low_samples(layout, config, axis)
    if config.low_output == "interpolate":
        whole = interpolation_matrix(layout, config, axis)
    else:
        pairs = zip(layout.extents(axis), samples, strict=True)
        whole = torch.block_diag(*(synthesis_matrix(n, m) for n, m in pairs))
    low = []
    reached = []
    first = 0
    for m in samples:
        columns = whole[:, first : first + m]
        reaches = (columns != 0).any(1)
        tokens = reaches.nonzero().squeeze(1)
        begin = int(tokens.min())
        end = int(tokens.max()) + 1
        low.append((columns, torch.arange(first, first + m)))
        # A short tile's rows are padded too, since its low tokens' places are.
        matrix = pad(columns[begin:end], (0, max(samples) - m)).T.contiguous()
        reached.append((matrix, torch.arange(begin, end)))
        first += m
    return _alike(low), _alike(reached)


def _alike(tiles: Axis) -> Axis:
    """Matrices and places padded to the longest places, with zero columns and -1."""
    width = max(len(place) for _, place in tiles)
    return [
        (pad(m, (0, width - len(place))), pad(place, (0, width - len(place)), value=-1))
        for m, place in tiles
    ]
