"""Static tables of the fused attention launch: what a plan says, as int32 and float32 on the
device."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from freqformer.buffers import KeyLayout, key_layout
from freqformer.config import Band
from freqformer.ops.block_sparse.transposed import TransposedLists, transpose_lists
from freqformer.ops.plan_tables import kept_by_plan, tile_order, upload
from freqformer.plan import AttentionPlan


@dataclass(frozen=True, eq=False)
class LaunchTables:
    """Everything static about the attention launch of one plan on one device; made by
    `launch_tables`.

    Shape legend: N video tokens, M low tokens, T tiles, L longest list, C cells.
    """

    plan: AttentionPlan
    keys: KeyLayout
    tile_offsets: Tensor
    """First token of every tile in tile order, and N: int32 (T + 1,)."""
    tile_counts: Tensor
    """Tokens of every tile, uint8 (T,)."""
    raster: Tensor
    """Raster place of every token in tile order, int32 (N,)."""
    every_tile: Tensor
    """0 to T - 1: the list of DENSE rows and text queries, int32 (T,)."""
    high_lists: Tensor
    """int32 (T, L)."""
    mid_lists: Tensor | None
    """Static MID lists, int32 (1, T, L); None for top-k, and where MID sees every tile."""
    mid_lengths: Tensor | None
    """int32 (1, T), with `mid_lists`."""
    low_bias: Tensor
    """log(tokens that the low token stands for), float32 (M,)."""
    high_bias: Tensor | None
    """log(tokens of the cell that the query tile doesn't see), float32 (T, C); -inf where none;
    None without cells."""
    mid_bias: Tensor | None
    """The same for static MID lists, float32 (1, T, C)."""
    band_blocks: Tensor
    """Most blocks of 128 keys that a query block of a row sees, by `Band`, int32 (4,): what rows
    are ordered by."""

    @property
    def uniform(self) -> bool:
        """Whether every tile is full."""
        layout = self.plan.layout
        return all(
            extent % side == 0 for extent, side in zip(layout.grid.shape, layout.tile, strict=True)
        )

    @cached_property
    def high_transposed(self) -> TransposedLists:
        """Which query tiles list a key tile in HIGH rows, for the backward."""
        return transpose_lists(self.high_lists[None], None)

    @cached_property
    def mid_transposed(self) -> TransposedLists | None:
        """The same for static MID lists."""
        if self.mid_lists is None:
            return None
        return transpose_lists(self.mid_lists, self.mid_lengths)

    @cached_property
    def sizes(self) -> dict[str, int]:
        """Integers of the plan by the names of kernels' parameters."""
        plan = self.plan
        return {
            "num_heads": plan.num_heads,
            "num_tiles": plan.layout.num_tiles,
            "num_tokens": plan.layout.grid.num_tokens,
            "num_text": plan.num_text_tokens,
            "low_at": self.keys.low,
            "low_sums_at": self.keys.low_summaries,
            "mid_sums_at": self.keys.mid_summaries,
            "high_sums_at": self.keys.high_summaries,
            "text_at": self.keys.text,
            "exact_at": self.keys.exact,
        }


@kept_by_plan
def launch_tables(plan: AttentionPlan, device: torch.device) -> LaunchTables:
    """The tables of a plan on a device."""

    def here(x: Tensor, dtype: torch.dtype = torch.int32) -> Tensor:
        return upload(x, device, dtype)

    layout, lists = plan.layout, plan.mid_lists
    if lists is not None and int((lists >= 0).sum()) == layout.num_tiles**2:
        lists = None
    order = tile_order(plan, device)
    summarised = plan.cells.num_cells > 0
    # The text blocks at the end of key_blocks see everything, whatever the band.
    text_blocks = -(-plan.num_text_tokens // layout.block)
    blocks = [plan.key_blocks(band)[: -text_blocks or None] for band in Band]
    return LaunchTables(
        plan=plan,
        keys=key_layout(plan),
        tile_offsets=order.offsets,
        tile_counts=here(layout.counts, torch.uint8),
        raster=order.raster,
        every_tile=here(torch.arange(layout.num_tiles)),
        high_lists=here(plan.high_lists),
        mid_lists=None if lists is None else here(lists[None]),
        mid_lengths=None if lists is None else here((lists >= 0).sum(-1)[None]),
        low_bias=here(plan.low_weights.log(), torch.float32),
        high_bias=here(unseen_bias(plan.high_lists, plan), torch.float32) if summarised else None,
        mid_bias=here(unseen_bias(lists, plan)[None], torch.float32)
        if summarised and lists is not None
        else None,
        band_blocks=here(torch.stack([band_blocks.max() for band_blocks in blocks])),
    )


def unseen_bias(lists: Tensor, plan: AttentionPlan) -> Tensor:
    """log(tokens of every cell that a query tile doesn't see exactly): lists (T, L) -> float64 (T,
    C)."""
    counts, cells = plan.layout.counts, plan.cells
    listed = lists.clamp_min(0)
    seen = torch.where(lists >= 0, counts[listed], 0)
    left = cells.counts.repeat(lists.shape[0], 1)
    left.scatter_add_(1, cells.cell_of_tile[listed], -seen)
    return left.double().log()
