"""The token grid of a video, and the tiles that kernels read it in."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from typing import Any, Literal

import torch

from freqformer.tracing import PlainFields, constant_result

TILE_SLOTS = 128
SMALL_BLOCK = 64
"""Most tokens that one tile holds: the block size of the attention kernels."""

Extents = tuple[int, int, int]
TokenOrder = Literal["raster", "tile"]
"""Of video tokens: as the grid counts them, or tile by tile."""


@dataclass(frozen=True)
class Grid(PlainFields):
    """The video token grid after patchify: `num_frames` x `height` x `width` tokens, in raster
    order.

    Raises ValueError when an extent is not a positive integer.
    """

    num_frames: int
    height: int
    width: int

    def __post_init__(self) -> None:
        for name, extent in zip(("num_frames", "height", "width"), self.shape, strict=True):
            if isinstance(extent, bool) or not isinstance(extent, int) or extent < 1:
                raise ValueError(
                    f"{name} is {extent!r}; Grid takes whole numbers of tokens from 1 up: "
                    "divide the video's (or latent's) size by the patch size"
                )

    @property
    def shape(self) -> Extents:
        """(num_frames, height, width)."""
        return (self.num_frames, self.height, self.width)

    @property
    def num_tokens(self) -> int:
        """Tokens in the video: the product of the extents."""
        return math.prod(self.shape)


def check_grid(grid: Any) -> None:
    """Raise ValueError unless grid is a `Grid`, saying how to make one of the numbers that came."""
    if not isinstance(grid, Grid):
        made = (
            f"Grid{tuple(grid)}"
            if isinstance(grid, tuple | list) and len(grid) == 3
            else "Grid(num_frames, height, width)"
        )
        raise ValueError(f"grid is {grid!r}; a Grid is allowed: pass {made}")


@dataclass(frozen=True, eq=False)
class TileLayout:
    """How a grid is cut into tiles; made by `tile_layout`.

    Tiles are in raster order of the tile grid, and the tokens of a tile in raster order inside it.
    Tile order is compact: edge tiles hold fewer tokens and no padding slot exists. `counts` and
    `offsets` say where a tile begins.
    """

    grid: Grid
    tile: Extents
    tiles: Extents
    counts: torch.Tensor
    """Tokens of every tile, int64 (num_tiles,)."""
    offsets: torch.Tensor
    """First token of every tile in tile order, and N at the end, int64 (num_tiles + 1,)."""
    raster_to_tile: torch.Tensor
    """int64 (N,): `tile_order = raster[:, raster_to_tile]`."""
    tile_to_raster: torch.Tensor
    """int64 (N,): `raster = tile_order[:, tile_to_raster]`."""

    @property
    def num_tiles(self) -> int:
        """Number of tiles, edge tiles included."""
        return math.prod(self.tiles)

    @property
    def padding(self) -> float:
        """Share of kernel slots beyond the tokens: tiles * block / N - 1."""
        return self.num_tiles * self.block / self.grid.num_tokens - 1

    @property
    def slots(self) -> int:
        """Tokens of the largest tile."""
        return math.prod(self.tile)

    @property
    def block(self) -> int:
        """Slots that kernels give a tile: 64 where no tile holds more, else 128."""
        return SMALL_BLOCK if self.slots <= SMALL_BLOCK else TILE_SLOTS

    @property
    def ragged(self) -> bool:
        """Whether some tile holds fewer tokens than the largest."""
        return self.num_tiles * self.slots != self.grid.num_tokens

    def extents(self, axis: int) -> list[int]:
        """True extents of the tiles along one axis (0 time, 1 height, 2 width); only the last can
        be short."""
        total, step = self.grid.shape[axis], self.tile[axis]
        return [min(step, total - start) for start in range(0, total, step)]

    def coordinates(self) -> torch.Tensor:
        """Place of every tile in the tile grid, int64 (num_tiles, 3)."""
        axes = torch.meshgrid(*(torch.arange(n) for n in self.tiles), indexing="ij")
        return torch.stack([axis.flatten() for axis in axes], -1)

    def padded_index(self) -> torch.Tensor:
        """Tile-order token of every (tile, slot), int64 (num_tiles, slots); empty slots repeat the
        tile's last token."""
        slot = torch.arange(self.slots)
        return self.offsets[:-1, None] + torch.minimum(slot[None], self.counts[:, None] - 1)


def choose_tile(grid: Grid) -> Extents:
    """The box of at most 128 tokens that a grid is cut into.

    Among boxes of aspect at most 4, the least padding; of equals the least aspect, then the least
    ratio of longest to shortest side, then the first in order of (time, height, width). Where its
    padding is above 9%, the same among boxes of aspect at most 9. The aspect is the longest side
    over the shortest of those that the grid is longer than.
    """
    candidates = _boxes(grid.shape)
    strict = [box for box in candidates if _aspect(box, grid.shape) <= 4]
    best = min(strict, key=lambda box: _preference(box, grid.shape))
    if _preference(best, grid.shape)[0] > 0.09:
        loose = [box for box in candidates if _aspect(box, grid.shape) <= 9]
        best = min(loose, key=lambda box: _preference(box, grid.shape))
    return best


def _boxes(shape: Extents) -> list[Extents]:
    """Every box of at most 128 tokens inside the grid."""
    boxes: list[Extents] = []
    for t, h in product(
        range(1, min(shape[0], TILE_SLOTS) + 1), range(1, min(shape[1], TILE_SLOTS) + 1)
    ):
        widest = min(TILE_SLOTS // (t * h), shape[2])
        boxes += [(t, h, w) for w in range(1, widest + 1)]
    return boxes


def _aspect(box: Extents, shape: Extents) -> float:
    """Longest side over the shortest of those on which the grid is longer than the box.

    A side that spans a short axis (one frame) can't be longer and counts as no flaw; a long one
    still counts.
    """
    cut = [side for side, extent in zip(box, shape, strict=True) if extent > side]
    return max(box) / min(cut) if cut else 1.0


def _preference(box: Extents, shape: Extents) -> tuple:
    num_tiles = math.prod(-(-extent // side) for side, extent in zip(box, shape, strict=True))
    padding = num_tiles * TILE_SLOTS / math.prod(shape) - 1
    return (padding, _aspect(box, shape), max(box) / min(box), box)


@constant_result
def tile_layout(grid: Grid, tile: Extents | None = None) -> TileLayout:
    """The tile layout of a grid, cached.

    Args:
        grid: the token grid.
        tile: (frames, rows, columns) of a tile to pin it, at most 128 tokens; None chooses by
            `choose_tile`. A pinned tile is clipped to a smaller grid.

    Raises:
        ValueError: for a pinned tile that is no box, or holds more than 128 tokens or none.
    """
    return _cached_layout(grid, tile)


@lru_cache(maxsize=64)
@torch.inference_mode(False)  # what it caches must also serve training
def _cached_layout(grid: Grid, tile: Extents | None) -> TileLayout:
    if tile is None:
        # One layout for both ways to ask for it: that of a long video holds two numbers a token.
        return _cached_layout(grid, choose_tile(grid))
    whole = len(tile) == 3 and all(isinstance(side, int) and side >= 1 for side in tile)
    if not whole or math.prod(tile) > TILE_SLOTS:
        raise ValueError(
            f"tile is {tile}; three whole sides and at most {TILE_SLOTS} tokens in all are "
            "allowed, like (4, 4, 8)"
        )
    clipped = _by_axis(min(side, extent) for side, extent in zip(tile, grid.shape, strict=True))
    tiles = _by_axis(-(-extent // side) for side, extent in zip(clipped, grid.shape, strict=True))
    owner = torch.zeros((), dtype=torch.int64)
    for axis, extent in enumerate(grid.shape):
        owner = owner[..., None] * tiles[axis] + torch.arange(extent) // clipped[axis]
    owner = owner.flatten()
    raster_to_tile = owner.argsort(stable=True)
    counts = owner.bincount(minlength=math.prod(tiles))
    offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    tile_to_raster = torch.empty_like(raster_to_tile)
    tile_to_raster[raster_to_tile] = torch.arange(grid.num_tokens)
    return TileLayout(grid, clipped, tiles, counts, offsets, raster_to_tile, tile_to_raster)


def _by_axis(values: Iterable[int]) -> Extents:
    time, height, width = values
    return (time, height, width)
