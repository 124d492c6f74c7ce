"""Static tables of the prologue launches: what a plan says, as int32 and matrices on the device.

Shape legend: N video tokens, M low tokens, T tiles, K classes of tiles, C cells, SLOTS and
LOW_SLOTS the sides of the kernels' blocks.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from freqformer.bands import analysis_matrix, band_masks, dct_matrix, low_grid, low_samples
from freqformer.buffers import KeyLayout, key_layout, power_of_two, selects_tiles
from freqformer.ops.plan_tables import kept_by_plan, tile_order, upload
from freqformer.ops.tile_matrices import TileClasses, kron, padded, parts, tile_classes
from freqformer.plan import AttentionPlan


@dataclass(frozen=True, eq=False)
class PrologueTables:
    """Everything static about the prologue of one plan, device and dtype; made by
    `prologue_tables`."""

    plan: AttentionPlan
    keys: KeyLayout
    tile_offsets: Tensor
    """First token of every tile in tile order, and N: int32 (T + 1,)."""
    raster: Tensor
    """Raster place of every token in tile order, int32 (N,)."""
    tile_class: Tensor
    """int32 (T,)."""
    reduction: Tensor
    """What a tile's tokens are reduced to, by class: A of `bands`, low tokens, and in the last row
    the sum of all, so that one product gives both: summands (1 or 2, K, LOW_SLOTS, SLOTS)."""
    projectors: Tensor | None
    """From a tile's tokens to its low, mid and high band: summands (1 or 2, K, 3, SLOTS, SLOTS).
    None where neither band features nor learned summaries need them."""
    low_place: Tensor
    """Place of a tile's low tokens in the low grid's raster order, -1 behind the last: int32 (T,
    LOW_SLOTS)."""
    cell_tiles: Tensor
    """Tiles of every cell, -1 behind the last: int32 (C, most tiles of a cell)."""
    cell_counts: Tensor
    """Tokens of every cell, int32 (C,)."""
    cell_of_tile: Tensor
    """int32 (T,)."""
    zeros: Tensor
    """First row of every run of `key_layout.PAD` zero rows in the key and value buffers, int32."""

    @property
    def sums(self) -> bool:
        """Whether sums over tiles are needed: for the selection, or for low summaries."""
        return selects_tiles(self.plan) or self.plan.cells.num_cells > 0


@kept_by_plan
def prologue_tables(
    plan: AttentionPlan, device: torch.device, dtype: torch.dtype
) -> PrologueTables:
    """The tables of a plan on a device."""
    layout = plan.layout
    config = plan.config
    slots = power_of_two(layout.slots)
    extents = [
        list(zip(layout.extents(axis), low_samples(layout, config, axis), strict=True))
        for axis in range(3)
    ]
    classes = tile_classes(layout, extents)
    places = layout.coordinates()[classes.members].tolist()
    boxes = [[extents[axis][i] for axis, i in enumerate(place)] for place in places]
    low_place = _low_places(plan)
    reductions = [kron([analysis_matrix(n, m) for n, m in box]) for box in boxes]
    reduction = padded(reductions, low_place.shape[1], slots)
    reduction[:, -1] = 1
    projectors = None
    if plan.learned_summaries or config.band_features != "full":
        projectors = parts(_projectors(plan, classes, boxes, slots), dtype).to(device)
    order = tile_order(plan, device)
    return PrologueTables(
        plan=plan,
        keys=key_layout(plan),
        tile_offsets=order.offsets,
        raster=order.raster,
        tile_class=upload(classes.of_tile, device),
        reduction=parts(reduction, dtype).to(device),
        projectors=projectors,
        low_place=upload(low_place, device),
        cell_tiles=upload(members(plan.cells.cell_of_tile, plan.cells.num_cells), device),
        cell_counts=upload(plan.cells.counts, device),
        cell_of_tile=upload(plan.cells.cell_of_tile, device),
        zeros=upload(torch.tensor(_segment_ends(plan)), device),
    )


def _projectors(
    plan: AttentionPlan, classes: TileClasses, boxes: list[list[tuple[int, int]]], slots: int
) -> Tensor:
    """C^T mask C of every class and band, C the DCT of a tile: float64 (K, 3, slots, slots)."""
    layout = plan.layout
    masks = band_masks((layout.grid, layout.tile), plan.config)[:, layout.raster_to_tile]
    tables = []
    for tile, box in zip(classes.members.tolist(), boxes, strict=True):
        transform = kron([dct_matrix(n) for n, _ in box])
        mask = masks[:, layout.offsets[tile] : layout.offsets[tile + 1]].double()
        tables.append(padded([transform.T @ (m[:, None] * transform) for m in mask], slots, slots))
    return torch.stack(tables)


def _low_places(plan: AttentionPlan) -> Tensor:
    """Low tokens of every tile, int64 (T, LOW_SLOTS), -1 behind the last."""
    layout = plan.layout
    owner = torch.zeros((), dtype=torch.int64)
    for axis in range(3):
        samples = torch.tensor(low_samples(layout, plan.config, axis))
        owner = owner[..., None] * layout.tiles[axis] + torch.arange(
            len(samples)
        ).repeat_interleave(samples)
    assert owner.shape == low_grid(layout, plan.config)
    places = members(owner.flatten(), layout.num_tiles)
    # One slot more than low tokens: the last row of a reduction is the sum of all.
    spare = power_of_two(places.shape[1] + 1) - places.shape[1]
    return torch.nn.functional.pad(places, (0, spare), value=-1)


def members(owner: Tensor, groups: int) -> Tensor:
    """The things of every group in ascending order, -1 behind the last: owner (things,) -> int64
    (groups, most)."""
    counts = owner.bincount(minlength=groups)[:groups]
    if not groups:
        return torch.zeros(0, 1, dtype=torch.int64)
    order = owner.argsort(stable=True)
    place = torch.arange(len(owner)) - (counts.cumsum(0) - counts)[owner[order]]
    table = torch.full((groups, int(counts.max())), -1)
    table[owner[order], place] = order
    return table


def _segment_ends(plan: AttentionPlan) -> list[int]:
    """Rows behind the last of every segment of the key and value buffers, where zeros follow."""
    video = plan.layout.grid.num_tokens
    cells = plan.cells.num_cells
    lengths = (plan.num_low_tokens, cells, cells, cells, plan.num_text_tokens, video)
    starts = key_layout(plan).offsets
    # Offset 0 says that the exact tokens are the video segment itself, and -1 that a segment
    # doesn't exist.
    return [video] + [
        start + length for start, length in zip(starts, lengths, strict=True) if start > 0
    ]
