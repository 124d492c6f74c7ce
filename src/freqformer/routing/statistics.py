"""What a router knows of a layer: band energies of queries and keys and the roughness of the input,
over a sample of tiles.

All of it is read off the power of tiles' DCT coefficients. A band's energy is the power of its
coefficients; and since the DCT diagonalises differences of neighbours along an axis of n tokens
(Strang, SIAM Review 41, 1999), with eigenvalues 2 - 2 cos(pi k / n), their squares too are a
weighted sum of power.

Shape legend: B batch, N video tokens, H heads, D head_dim, C channels, S sampled tiles, L tokens of
the largest tile, K kinds of tiles by extents.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from freqformer.bands import band_masks, check_features, dct_matrix
from freqformer.config import FreqFormerConfig
from freqformer.grid import TILE_SLOTS, Extents, Grid, TileLayout, TokenOrder, tile_layout
from freqformer.tracing import constant_result

NUM_STATISTICS = 8
"""Log energies of 3 bands for queries and for keys, and the input's roughness in time and in
space."""
STATISTIC_TILES = 32
"""Most tiles that statistics are taken over: 4,096 tokens at most, twice that where differences are
read across tiles."""
FLOOR = 1e-6
"""Added to energies before the logarithm, and to the variance that roughness is relative to."""
GOLDEN = (math.sqrt(5) - 1) / 2
ROWS = 6
"""Weighted sums of a tile's power."""
TIME_ROW, SPACE_ROW = 3, 4
"""Of them, squared differences of neighbours in time and in space."""

SampleOrder = Literal["raster", "tile", "sample"]
"""Of the tokens that statistics are read from: all in one of the two orders, or those of the sample
alone, tile after tile as `TileSample` has them."""
Item = tuple[Extents, int | None]
"""What is sampled: a tile, or a box of which one weighted sum alone is taken."""


@dataclass(frozen=True, eq=False)
class TileSample:
    """The tiles that statistics are taken over, and what is computed of each; made by
    `tile_sample`.

    Where tiles are one frame deep, or one token high and wide, boxes of several tiles come behind
    them, for differences in time or in space.
    """

    raster: Tensor
    """Raster place of every token of every sampled tile or box, -1 behind its last: int64 (S,
    L)."""
    tile: Tensor
    """The same, places in tile order."""
    kind: Tensor
    """int64 (S,)."""
    transform: Tensor
    """The DCT of a tile of every kind, zero behind its extent: float64 (K, L, L)."""
    weights: Tensor
    """Weights of a tile's power, float64 (K, 6, L), so that sums over the sample are means: energy
    per token of the low, mid and high band; squared difference per pair of neighbours in time, and
    in space; variance about the tile's mean."""

    def places(self, order: SampleOrder) -> Tensor:
        """Places of the sampled tokens, int64 (S, L)."""
        if order == "sample":
            slots = torch.arange(self.tile.numel()).view_as(self.tile)
            return slots.masked_fill(self.tile < 0, -1)
        return self.raster if order == "raster" else self.tile


@lru_cache(maxsize=64)
@torch.inference_mode(False)  # what it caches must also serve training
def tile_sample(grid: Grid, config: FreqFormerConfig) -> TileSample:
    """The sample of a grid's tiles: all, or one of each of `STATISTIC_TILES` runs of neighbouring
    tiles; cached."""
    layout = tile_layout(grid, config.tile)
    chosen = torch.tensor(_spread(layout.num_tiles))
    coordinates = layout.coordinates()[chosen].tolist()
    extents = [_extents(layout, place) for place in coordinates]
    first = {box: int(chosen[extents.index(box)]) for box in dict.fromkeys(extents)}
    masks = band_masks((grid, layout.tile), config)[:, layout.raster_to_tile]
    bands = {
        box: masks[:, layout.offsets[tile] : layout.offsets[tile + 1]].double()
        for box, tile in first.items()
    }
    weighed: dict[Item, Tensor] = {
        (box, None): torch.cat([bands[box], _curvature(box)]) for box in first
    }
    counted = torch.tensor([_counted(box) for box in extents])
    slot = torch.arange(layout.slots)
    places = (layout.offsets[chosen, None] + slot).masked_fill(
        slot >= layout.counts[chosen, None], -1
    )
    raster = [torch.where(places < 0, -1, layout.raster_to_tile[places])]
    items: list[Item] = [(box, None) for box in extents]
    origins = [
        tuple(step * side for step, side in zip(place, layout.tile, strict=True))
        for place in coordinates
    ]
    for row, axes in ((TIME_ROW, (0,)), (SPACE_ROW, (1, 2))):
        box = _box_across(layout, axes)
        if int(counted[:, row].sum()) or box is None:
            continue
        # No tile has neighbours along these axes, so boxes of several tiles are read for that
        # difference alone.
        only = (torch.arange(ROWS) == row).long()
        weighed[box, row] = (
            torch.cat([torch.zeros(3, math.prod(box)).double(), _curvature(box)]) * only[:, None]
        )
        counted = torch.cat([counted, torch.tensor([_counted(box)] * len(origins)) * only])
        raster.append(torch.stack([_box_places(grid, box, origin) for origin in origins]))
        items += [(box, row)] * len(origins)
    longest = max(rows.shape[1] for rows in raster)
    joined = torch.cat(
        [functional.pad(rows, (0, longest - rows.shape[1]), value=-1) for rows in raster]
    )
    kinds = list(weighed)
    weights = torch.stack([_padded(weighed[kind], ROWS, longest) for kind in kinds])
    return TileSample(
        raster=joined,
        tile=torch.where(joined < 0, -1, layout.tile_to_raster[joined]),
        kind=torch.tensor([kinds.index(item) for item in items]),
        transform=torch.stack([_padded(_transform(box), longest, longest) for box, _ in kinds]),
        # Where no pair of neighbours is, there is no difference to divide.
        weights=weights / counted.sum(0).clamp_min(1)[:, None],
    )


def _box_across(layout: TileLayout, axes: tuple[int, ...]) -> Extents | None:
    """A tile stretched to neighbours along the axes, of no more tokens than a tile may hold; None
    where there are none."""
    box = [min(side, total) for side, total in zip(layout.tile, layout.grid.shape, strict=True)]
    for axis in axes:
        box[axis] = min(2, layout.grid.shape[axis])
    if all(box[axis] == 1 for axis in axes):
        return None
    while math.prod(box) > TILE_SLOTS:
        widest = max((axis for axis in range(len(box)) if axis not in axes), key=box.__getitem__)
        box[widest] -= box[widest] // 2
    return (box[0], box[1], box[2])


def _box_places(grid: Grid, box: Extents, origin: Sequence[int]) -> Tensor:
    """Raster places of a box's tokens, moved inwards at the borders: int64 (tokens,)."""
    sides = zip(origin, box, grid.shape, strict=True)
    axes = [torch.arange(side) + min(start, total - side) for start, side, total in sides]
    time, height, width = torch.meshgrid(*axes, indexing="ij")
    return ((time * grid.height + height) * grid.width + width).flatten()


def _spread(num_tiles: int) -> list[int]:
    """One tile of each run. Its place within the run moves by the golden ratio: a fixed one would
    stay in few columns."""
    runs = min(num_tiles, STATISTIC_TILES)
    bounds = [run * num_tiles // runs for run in range(runs + 1)]
    return [
        bounds[run] + int(run * GOLDEN % 1 * (bounds[run + 1] - bounds[run])) for run in range(runs)
    ]


def _extents(layout: TileLayout, place: list[int]) -> Extents:
    time, height, width = (layout.extents(axis)[i] for axis, i in enumerate(place))
    return (time, height, width)


def _padded(matrix: Tensor, rows: int, columns: int) -> Tensor:
    return functional.pad(matrix, (0, columns - matrix.shape[1], 0, rows - matrix.shape[0]))


def _transform(extents: Extents) -> Tensor:
    """The DCT of one tile, over its tokens in raster order."""
    time, height, width = (dct_matrix(n) for n in extents)
    return torch.kron(torch.kron(time, height), width)


def _curvature(extents: Extents) -> Tensor:
    """What power counts for in squared differences in time, in space, and in the variance: float64
    (3, tokens)."""
    along = [2 - 2 * torch.cos(math.pi / n * torch.arange(n).double()) for n in extents]
    time, height, width = torch.meshgrid(*along, indexing="ij")
    space = height + width
    return torch.stack([time, space, ((time + space) > 0).double()]).flatten(1)


def _counted(extents: Extents) -> list[int]:
    """What a tile's six weighted sums are means over: tokens, thrice; pairs in time, in space;
    degrees of freedom."""
    tokens = math.prod(extents)
    pairs = [tokens // n * (n - 1) for n in extents]
    return [tokens, tokens, tokens, pairs[0], pairs[1] + pairs[2], tokens - 1]


@torch.no_grad()
def routing_statistics(
    query: Tensor,
    key: Tensor,
    hidden_states: Tensor,
    grid: Grid,
    config: FreqFormerConfig,
    token_order: TokenOrder = "raster",
) -> Tensor:
    """What a router knows of a layer's input; no gradient flows through it.

    Args:
        query, key: (B, N, H, D), normalised, before the rotary embedding.
        hidden_states: (B, N, C), the layer's input.
        grid, config: the token grid and the bands' definition.
        token_order: of all three.

    Returns:
        (B, H, 8) float32, over the tiles of `tile_sample`. Log mean energy of the low, mid and high
        band of queries, then of keys, then the roughness of the input in time and in space, the
        same for every head. Roughness is the mean squared difference of neighbours in a tile over
        the variance about the tile's mean (0 where all is constant, 2 for white noise).

    Raises:
        ValueError: for tokens that are not the grid's.
    """
    check_features(hidden_states, grid, rank=3, name="hidden_states")
    check_features(query.transpose(1, 2), grid, name="query")
    check_features(key.transpose(1, 2), grid, name="key")
    query, key, hidden_states = (
        read_sample(x, grid, config, token_order) for x in (query, key, hidden_states)
    )
    return sample_statistics(query, key, hidden_states, grid, config)


def read_sample(
    x: Tensor, grid: Grid, config: FreqFormerConfig, token_order: SampleOrder
) -> Tensor:
    """The sampled tiles of x: (B, N, ...) -> (B, S, L, ...), zero behind a tile's last token."""
    index, empty = _index(grid, config, token_order, x.device)
    tokens = x.index_select(1, index.flatten()).unflatten(1, index.shape)
    return tokens.masked_fill(empty.reshape(*empty.shape, *(1 for _ in tokens.shape[3:])), 0)


def sample_statistics(
    query: Tensor, key: Tensor, hidden_states: Tensor, grid: Grid, config: FreqFormerConfig
) -> Tensor:
    """`routing_statistics` of tokens from `read_sample`: (B, S, L, H, D) twice and (B, S, L, C) ->
    (B, H, 8)."""
    query_means, key_means = (_weighted_power(x, grid, config)[..., :3] for x in (query, key))
    rough = _weighted_power(hidden_states[..., None, :], grid, config)[:, 0, 3:]
    return statistics_of_means(query_means, key_means, rough)


def statistics_of_means(query: Tensor, key: Tensor, hidden_states: Tensor) -> Tensor:
    """Statistics (B, H, 8), float32, from mean energies of queries and keys (B, H, 3) and what
    roughness is made of.

    Args:
        hidden_states: (B, 3), mean squared difference of neighbours in time, in space, and
            variance.
    """
    rough = hidden_states[:, :2] / (hidden_states[:, 2:] + FLOOR)
    logs = [(energy + FLOOR).log() for energy in (query, key)]
    return torch.cat([*logs, rough[:, None].expand(-1, query.shape[1], -1)], -1).float()


def _weighted_power(x: Tensor, grid: Grid, config: FreqFormerConfig) -> Tensor:
    """(B, S, L, H, D) -> (B, H, 6): weighted sums over tiles and coefficients of the mean power
    over channels."""
    transform, weights = _matrices(grid, config, x.device, x.dtype)
    power = (transform @ x.to(transform).flatten(3)).unflatten(3, x.shape[3:]).square().mean(-1)
    return torch.einsum("bslh,sjl->bhj", power, weights)


@constant_result
def _index(
    grid: Grid, config: FreqFormerConfig, token_order: SampleOrder, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Places to read, and which of them are empty; on the device, because copying them there would
    wait for it."""
    return _cached_index(grid, config, token_order, device)


@lru_cache(maxsize=64)
@torch.inference_mode(False)  # what it caches must also serve training
def _cached_index(
    grid: Grid, config: FreqFormerConfig, token_order: SampleOrder, device: torch.device
) -> tuple[Tensor, Tensor]:
    places = tile_sample(grid, config).places(token_order)
    return places.clamp_min(0).to(device), (places < 0).to(device)


@constant_result
def _matrices(
    grid: Grid, config: FreqFormerConfig, device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """`transform` and `weights` of every sampled tile, (S, L, L) and (S, 6, L), float32 at least.

    The DCT is rounded to the dtype of what it multiplies, so that tensor cores take one product.
    """
    return _cached_matrices(grid, config, device, dtype)


@lru_cache(maxsize=64)
@torch.inference_mode(False)  # what it caches must also serve training
def _cached_matrices(
    grid: Grid, config: FreqFormerConfig, device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    sample, wide = (
        tile_sample(grid, config),
        torch.float64 if dtype == torch.float64 else torch.float32,
    )
    transform = sample.transform.to(dtype).to(wide)
    return transform[sample.kind].to(device), sample.weights[sample.kind].to(device, wide)
