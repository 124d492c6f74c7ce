"""Lists of key tiles for `peers.py`, as many for every query tile: at random, NATTEN's window, and
our own window of the same size.

Shape legend: H heads, N video tokens in tile order, T tiles, D head_dim.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from freqformer.config import Band, FreqFormerConfig
from freqformer.grid import TILE_SLOTS, Grid
from freqformer.ops.block_sparse.records import AttentionBuffers, MidLists, RowBands
from freqformer.ops.block_sparse.tables import launch_tables
from freqformer.plan import AttentionPlan, build_plan
from peers_work import Block, Size, Work, tile_tokens


class Window(NamedTuple):
    """A window as NATTEN takes it, in tokens along (time, height, width)."""

    size: tuple[int, int, int]
    stride: tuple[int, int, int]
    """Queries of a group see the same keys."""


@dataclass(frozen=True, eq=False)
class Lists(Work):
    """As many key tiles for every query tile; tiles are full."""

    grid: Grid
    tile: tuple[int, int, int]
    lists: Tensor
    """int32 (H, T, kept), ascending."""
    window: Window | None = None
    """Which window the lists are, if one."""

    @property
    def density(self) -> float:
        """Kept blocks of all."""
        return self.lists.shape[2] / self.lists.shape[1]

    @property
    def dense(self) -> bool:
        """Whether every query sees every key."""
        return self.lists.shape[2] == self.lists.shape[1]

    @property
    def flops(self) -> float:
        return 4.0 * self.lists.numel() * TILE_SLOTS**2 * self.query.shape[2]

    @property
    def samples(self) -> list[tuple[int, int]]:
        heads, tiles, _ = self.lists.shape
        return [(0, 0), (heads - 1, tiles // 2), (heads - 1, tiles - 1)]

    def block(self, row: int, index: int) -> Block:
        keys = tile_tokens(self.lists[row, index])
        bias = self.key.new_zeros(len(keys), dtype=torch.float64)
        return Block(slice(index * TILE_SLOTS, (index + 1) * TILE_SLOTS), keys, bias)

    def listing(self, row: int, tile: int) -> list[int]:
        return (self.lists[row] == tile).any(-1).nonzero().squeeze(1).tolist()

    def written(self, x: Tensor) -> Tensor:
        return x[:, : self.grid.num_tokens]

    @cached_property
    def halves(self) -> Tensor:
        """The same lists for blocks of 64 tokens: int32 (H, 2 T, 2 kept)."""
        both = torch.stack([2 * self.lists, 2 * self.lists + 1], -1).flatten(2)
        return both.repeat_interleave(2, 1).contiguous()

    @cached_property
    def turned(self) -> tuple[Tensor, Tensor]:
        """Which query tiles list a key tile: how many, int32 (H, T), and they first, ascending,
        int32 (H, T, T)."""
        heads, tiles, _ = self.lists.shape
        listed = torch.zeros(heads, tiles, tiles, dtype=torch.bool, device=self.lists.device)
        listed.scatter_(2, self.lists.long(), True)
        turned = listed.transpose(1, 2)
        order = turned.int().argsort(dim=2, descending=True, stable=True)
        return turned.sum(2, dtype=torch.int32), order.int().contiguous()

    @cached_property
    def plan(self) -> AttentionPlan:
        """A plan whose MID heads see as many tiles."""
        heads, _, kept = self.lists.shape
        config = FreqFormerConfig(tile=self.tile, mid_tiles=kept, summary_tokens=0)
        return build_plan(self.grid, config, num_heads=heads, head_dim=self.query.shape[2])

    @property
    def arguments(self) -> dict[str, Any]:
        """What our launches take, in tile order."""
        device, plan = self.query.device, self.plan
        tables = launch_tables(plan, device)
        heads, tiles, kept = self.lists.shape
        low = (0, 0, 0, plan.num_low_tokens)
        tail = (0, 0, 0, tables.keys.rows - plan.layout.grid.num_tokens)
        bands = torch.full((heads,), Band.MID.value, dtype=torch.int32, device=device)
        order = torch.arange(heads, dtype=torch.int32, device=device)
        return {
            "buffers": AttentionBuffers(
                pad(self.query, low), pad(self.key, tail), pad(self.value, tail)
            ),
            "rows": RowBands(bands, order, any_low=False),
            "tables": tables,
            "mid": MidLists(self.lists, None, None) if kept < tiles else None,
            "summary_offsets": None,
            "text_mask": None,
            "token_order": "tile",
        }

    def raster(self, x: Tensor) -> Tensor:
        """(H, N, D) -> (1, N, H, D) in raster order."""
        place = self.plan.layout.raster_to_tile.to(x.device)
        return torch.empty_like(x).index_copy_(1, place, x).transpose(0, 1)[None].contiguous()

    def tiled(self, x: Tensor) -> Tensor:
        """The reverse of `raster`."""
        return x[0].index_select(0, self.plan.layout.raster_to_tile.to(x.device)).transpose(0, 1)


def lists_work(size: Size, told: dict[str, Any]) -> Lists:
    """The lists that a record of `peers.py` tells of: its `kind` is `random`, `window` (NATTEN's)
    or `own window`."""
    draw = size.draw
    query, key, value, grad_out = (size.normal(draw, size.grid.num_tokens) for _ in range(4))
    tile, window = triple(told["tile"]), None
    if told["kind"] == "random":
        tiles = size.grid.num_tokens // TILE_SLOTS
        lists = random_lists(size, draw, max(1, round(told["density"] * tiles)))
    else:
        window = Window(triple(told["window"]), triple(told["stride"]))
        made = window_lists if told["kind"] == "window" else own_window_lists
        lists = made(size.grid, tile, window).to(size.device)
        lists = lists.expand(size.heads, -1, -1).contiguous()
    return Lists(query, key, value, grad_out, size.grid, tile, lists, window)


def random_lists(size: Size, draw: torch.Generator, kept: int) -> Tensor:
    """A query tile's own tile and others at random, int32 (H, T, kept)."""
    tiles = size.grid.num_tokens // TILE_SLOTS
    scores = torch.rand(size.heads, tiles, tiles, generator=draw, device=size.device)
    scores.diagonal(dim1=1, dim2=2).fill_(2.0)
    return scores.topk(kept).indices.sort().values.int()


def window_lists(grid: Grid, tile: tuple[int, int, int], window: Window) -> Tensor:
    """The tiles that hold the keys of NATTEN's window, int32 (T, kept); ValueError for a window
    that cuts tiles.

    A group of `stride` queries sees the window around its middle one, moved inside the grid.
    """
    by_axis = [
        [_reach(place * side, length, size, stride) for place in range(length // side)]
        for length, side, size, stride in zip(
            grid.shape, tile, window.size, window.stride, strict=True
        )
    ]
    cut = any(
        edge % side
        for ranges, side in zip(by_axis, tile, strict=True)
        for reach in ranges
        for edge in (reach.start, reach.stop)
    ) or any(stride % side for stride, side in zip(window.stride, tile, strict=True))
    if cut:
        raise ValueError(
            f"window is {window}; windows that cut no tile of {tile} are allowed: choose sizes and "
            "strides in whole tiles"
        )
    ranges = [
        [range(reach.start // side, reach.stop // side) for reach in reaches]
        for reaches, side in zip(by_axis, tile, strict=True)
    ]
    return _boxes(ranges)


def own_window_lists(grid: Grid, tile: tuple[int, int, int], window: Window) -> Tensor:
    """The tiles of a window of as many tokens around every tile, as HIGH heads see it: int32 (T,
    kept)."""
    config = own_window_config(tile, window)
    return build_plan(grid, config, num_heads=1, head_dim=16).high_lists.int()


def own_window_config(tile: tuple[int, int, int], window: Window) -> FreqFormerConfig:
    """HIGH heads with a window of as many tokens, and nothing else."""
    sides = [size // side for size, side in zip(window.size, tile, strict=True)]
    return FreqFormerConfig(
        tile=tile, window=triple(sides), summary_tokens=0, routing="fixed", low_branch=False
    )


def _reach(query: int, length: int, size: int, stride: int) -> range:
    middle = min(query // stride * stride + stride // 2, length - 1)
    start = min(max(middle - size // 2, 0), length - size)
    return range(start, start + size)


def _boxes(ranges: list[list[range]]) -> Tensor:
    shape = [len(reaches) for reaches in ranges]
    return torch.tensor(
        [
            [(t * shape[1] + h) * shape[2] + w for t, h, w in product(*reaches)]
            for reaches in product(*ranges)
        ],
        dtype=torch.int32,
    )


def triple(values: Any) -> tuple[int, int, int]:
    """Three whole numbers, which JSON gives as a list."""
    first, second, third = values
    return int(first), int(second), int(third)
