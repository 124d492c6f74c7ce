"""Which key tiles a query tile sees: window, axial, radial and top-k; and the cells that summaries
stand for.

A pattern is a list of key tiles per query tile: int64 (query tiles, longest list), ascending, -1
behind the end.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from itertools import product

import torch
from torch import Tensor

from freqformer.config import FreqFormerConfig
from freqformer.grid import Extents, TileLayout

SCORE_CHUNK = 1 << 24
"""Most tile scores held at once while the top-k tiles are chosen (64 MiB of float32)."""


def window_tiles(layout: TileLayout, window: Extents) -> Tensor:
    """The box of `window` tiles around every tile, moved inwards at the borders so that all lists
    are equally long.

    An even side has one more tile behind the middle than before it.
    """
    place = layout.coordinates()
    lists = torch.zeros(layout.num_tiles, 1, dtype=torch.int64)
    for axis, (total, width) in enumerate(zip(layout.tiles, window, strict=True)):
        width = min(width, total)
        start = (place[:, axis] - (width - 1) // 2).clamp(0, total - width)
        steps = start[:, None] + torch.arange(width)
        lists = (lists[:, :, None] * total + steps[:, None, :]).flatten(1)
    return lists


def axial_tiles(layout: TileLayout, window: Extents) -> Tensor:
    """A tile's own place at all times, and its own time within the window's height and width."""
    place, near = layout.coordinates(), window_tiles(layout, (1, *window[1:]))

    def seen(queries: Tensor) -> Tensor:
        same_place = (place[queries, None, 1:] == place[None, :, 1:]).all(-1)
        return same_place.scatter_(1, near[queries], True)

    return _lists(layout.num_tiles, seen)


def radial_tiles(layout: TileLayout, radius: int) -> Tensor:
    """Tiles no farther than `radius` / 2^floor(log2(dt + 1)) in height and in width at time
    distance dt.

    The reach halves as the distance in time doubles.
    """
    place = layout.coordinates()
    # A reach beyond every tile is that of all tiles; a number of any size must not reach PyTorch.
    radius = min(radius, layout.num_tiles**2)

    def seen(queries: Tensor) -> Tensor:
        distance = (place[queries, None] - place[None]).abs()
        # frexp: m * 2^e with m in [1/2, 1), so e - 1 is floor(log2) without rounding.
        halvings = torch.frexp(distance[..., 0] + 1.0).exponent - 1
        return distance[..., 1:].amax(-1) * torch.exp2(halvings.double()) <= radius

    return _lists(layout.num_tiles, seen)


@dataclass(frozen=True)
class FixedPattern:
    """A pattern of MID heads whose lists follow from the grid alone."""

    lists: Callable[[TileLayout, FreqFormerConfig], Tensor]
    """As of `axial_tiles`."""
    most: Callable[[TileLayout, FreqFormerConfig], int]
    """Tiles of the longest list at most, without making one."""
    reads: str
    """The field of the config that says how far it reaches."""


def _most_axial(layout: TileLayout, config: FreqFormerConfig) -> int:
    (frames, rows, columns), (_, height, width) = layout.tiles, config.window
    return frames + min(rows, height) * min(columns, width)


def _most_radial(layout: TileLayout, config: FreqFormerConfig) -> int:
    frames, rows, columns = layout.tiles
    reach = 2 * config.radial_radius + 1
    return frames * min(rows, reach) * min(columns, reach)


FIXED_PATTERNS = {
    "axial": FixedPattern(
        lists=lambda layout, config: axial_tiles(layout, config.window),
        most=_most_axial,
        reads="window",
    ),
    "radial": FixedPattern(
        lists=lambda layout, config: radial_tiles(layout, config.radial_radius),
        most=_most_radial,
        reads="radial_radius",
    ),
}
"""All but top-k, by what `mid_pattern` calls them."""


def _lists(num_tiles: int, seen: Callable[[Tensor], Tensor]) -> Tensor:
    """Ascending lists padded with -1, from `seen`: query tiles (q,) -> bool (q, key tiles)."""
    # Some queries at once: the full tile-by-tile matrix of a long video would be large.
    chunks = torch.arange(num_tiles).split(max(1, SCORE_CHUNK // (8 * num_tiles)))
    pairs = torch.cat(
        [seen(queries).nonzero() + queries.new_tensor([int(queries[0]), 0]) for queries in chunks]
    )
    query, key = pairs.unbind(-1)
    lengths = query.bincount(minlength=num_tiles)
    place = torch.arange(len(query)) - (lengths.cumsum(0) - lengths)[query]
    lists = torch.full((num_tiles, int(lengths.max())), -1)
    lists[query, place] = key
    return lists


@torch.no_grad()
def topk_tiles(query_means: Tensor, key_means: Tensor, count: int) -> Tensor:
    """The `count` best key tiles of every query tile by mean query . mean key, the tile itself
    always among them.

    Args:
        query_means, key_means: (rows, tiles, head_dim), float32 or float64.
        count: tiles to keep, at most the number of tiles.

    Returns:
        int64 (rows, tiles, count), ascending; the tile itself is among them, and of equal scores
        the lower tile. No gradient passes the choice.
    """
    rows, tiles, _ = query_means.shape
    if count >= tiles:
        return torch.arange(tiles, device=query_means.device).expand(rows, tiles, tiles)
    chosen = []
    own = torch.arange(tiles, device=query_means.device)[:, None]
    step = max(1, SCORE_CHUNK // (rows * tiles))
    for start in range(0, tiles, step):
        scores = query_means[:, start : start + step] @ key_means.transpose(1, 2)
        scores.scatter_(2, own[start : start + step].expand(rows, -1, 1), torch.inf)
        chosen.append(_largest(scores, count))
    return torch.cat(chosen, 1)


def _largest(scores: Tensor, count: int) -> Tensor:
    """Places of the `count` largest along the last axis, ascending; of equal ones the lower places.

    There are more than `count`.
    """
    values, places = scores.topk(count + 1, dim=-1)
    least, next_value = values[..., count - 1 : count], values[..., count:]
    if bool((least > next_value).all()):
        return places[..., :count].sort(-1).values
    # Of equal scores topk takes any. What comes of NaN is NaN in any case; like topk this takes it
    # for the largest.
    scores = scores.nan_to_num(nan=torch.inf, posinf=torch.inf, neginf=-torch.inf)
    least = scores.topk(count, dim=-1).values[..., -1:]
    above, level = scores > least, scores == least
    wanted = count - above.sum(-1, keepdim=True)
    taken = above | (level & (level.cumsum(-1) <= wanted))
    return taken.nonzero()[:, -1].view(*scores.shape[:-1], count)


@dataclass(frozen=True, eq=False)
class SummaryCells:
    """The boxes of whole tiles that summary tokens stand for, in raster order of cells."""

    cell_of_tile: Tensor
    """int64 (tiles,)."""
    counts: Tensor
    """Video tokens of every cell, int64 (cells,)."""

    @property
    def num_cells(self) -> int:
        """Number of cells; 0 when summaries are off."""
        return self.counts.shape[0]


def summary_cells(layout: TileLayout, most: int) -> SummaryCells:
    """Cut the tile grid into at most `most` cells: as many as fit, then the box nearest a cube of
    tokens.

    Nearest is the least ratio of longest to shortest side; ties take the first box in order of
    (time, height, width).
    """
    tiles = layout.tiles
    if most == 0:
        return SummaryCells(
            torch.zeros(layout.num_tiles, dtype=torch.int64), torch.zeros(0, dtype=torch.int64)
        )
    box = _cell_box(tiles, layout.tile, most)
    cells = [-(-total // side) for total, side in zip(tiles, box, strict=True)]
    place = layout.coordinates() // torch.tensor(box)
    cell = (place[:, 0] * cells[1] + place[:, 1]) * cells[2] + place[:, 2]
    counts = torch.zeros(math.prod(cells), dtype=torch.int64).index_add_(0, cell, layout.counts)
    return SummaryCells(cell, counts)


@lru_cache(maxsize=256)
def _cell_box(tiles: Extents, tile: Extents, most: int) -> Extents:
    best: tuple | None = None
    for box in product(*(range(1, total + 1) for total in tiles)):
        cells = math.prod(-(-total // side) for total, side in zip(tiles, box, strict=True))
        if cells > most:
            continue
        sides = [side * extent for side, extent in zip(box, tile, strict=True)]
        rank = (-cells, max(sides) / min(sides), box)
        best = rank if best is None or rank < best else best
    assert best is not None  # one cell over the whole grid always fits
    return best[2]
