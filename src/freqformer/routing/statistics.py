"""What a router knows of a layer: band energies of queries and keys and the roughness of the input, over a sample of tiles.

All of it is read off the power of tiles' DCT coefficients. A band's energy is the power of its coefficients; and since the
DCT diagonalises differences of neighbours along an axis of n tokens (Strang, SIAM Review 41, 1999), with eigenvalues
2 - 2 cos(pi k / n), their squares too are a weighted sum of power.

Shape legend: B batch, N video tokens, H heads, D head_dim, C channels, S sampled tiles, L tokens of the largest tile,
K kinds of tiles by extents.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional

from freqformer.bands import band_masks, check_features, dct_matrix
from freqformer.config import FreqFormerConfig
from freqformer.grid import Extents, Grid, TileLayout, TokenOrder, tile_layout
from freqformer.tracing import constant_result

NUM_STATISTICS = 8
"""Log energies of 3 bands for queries and for keys, and the input's roughness in time and in space."""
STATISTIC_TILES = 32
"""Most tiles that statistics are taken over: 4,096 tokens at most."""
FLOOR = 1e-6
"""Added to energies before the logarithm, and to the variance that roughness is relative to."""
GOLDEN = (math.sqrt(5) - 1) / 2


@dataclass(frozen=True, eq=False)
class TileSample:
    """The tiles that statistics are taken over, and what is computed of each; made by `tile_sample`."""

    raster: Tensor
    """Raster place of every token of every sampled tile, -1 behind a tile's last: int64 (S, L)."""
    tile: Tensor
    """The same, places in tile order."""
    kind: Tensor
    """int64 (S,)."""
    transform: Tensor
    """The DCT of a tile of every kind, zero behind its extent: float64 (K, L, L)."""
    weights: Tensor
    """Weights of a tile's power, float64 (K, 6, L), so that sums over the sample are means: energy per token of the low,
    mid and high band; squared difference per pair of neighbours in time, and in space; variance about the tile's mean."""

    def places(self, token_order: TokenOrder) -> Tensor:
        """Places of the sampled tokens, int64 (S, L)."""
        return self.raster if token_order == "raster" else self.tile


@lru_cache(maxsize=64)
@torch.inference_mode(False)  # what it caches must also serve training
def tile_sample(grid: Grid, config: FreqFormerConfig) -> TileSample:
    """The sample of a grid's tiles: all, or one of each of `STATISTIC_TILES` runs of neighbouring tiles; cached."""
    layout = tile_layout(grid, config.tile)
    chosen = torch.tensor(_spread(layout.num_tiles))
    extents = [_extents(layout, place) for place in layout.coordinates()[chosen].tolist()]
    kinds = list(dict.fromkeys(extents))
    first = [int(chosen[extents.index(kind)]) for kind in kinds]
    masks = band_masks((grid, layout.tile), config)[:, layout.raster_to_tile]
    bands = [masks[:, layout.offsets[tile] : layout.offsets[tile + 1]].double() for tile in first]
    weights = [torch.cat([band, _curvature(kind)]) for band, kind in zip(bands, kinds, strict=True)]
    counted = torch.tensor([_counted(box) for box in extents]).sum(0)
    slot = torch.arange(layout.slots)
    places = (layout.offsets[chosen, None] + slot).masked_fill(slot >= layout.counts[chosen, None], -1)
    return TileSample(
        raster=torch.where(places < 0, -1, layout.raster_to_tile[places]),
        tile=places,
        kind=torch.tensor([kinds.index(box) for box in extents]),
        transform=torch.stack([_padded(_transform(kind), layout.slots, layout.slots) for kind in kinds]),
        # Where no pair of neighbours is, there is no difference to divide.
        weights=torch.stack([_padded(rows, 6, layout.slots) for rows in weights]) / counted.clamp_min(1)[:, None],
    )


def _spread(num_tiles: int) -> list[int]:
    """One tile of each run. Its place within the run moves by the golden ratio: a fixed one would stay in few columns."""
    runs = min(num_tiles, STATISTIC_TILES)
    bounds = [run * num_tiles // runs for run in range(runs + 1)]
    return [bounds[run] + int(run * GOLDEN % 1 * (bounds[run + 1] - bounds[run])) for run in range(runs)]


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
    """What power counts for in squared differences in time, in space, and in the variance: float64 (3, tokens)."""
    along = [2 - 2 * torch.cos(math.pi / n * torch.arange(n).double()) for n in extents]
    time, height, width = torch.meshgrid(*along, indexing="ij")
    space = height + width
    return torch.stack([time, space, ((time + space) > 0).double()]).flatten(1)


def _counted(extents: Extents) -> list[int]:
    """What a tile's six weighted sums are means over: tokens, thrice; pairs in time, in space; degrees of freedom."""
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

    Returns: (B, H, 8) float32, over the tiles of `tile_sample`: log mean energy of the low, mid and high band of queries,
        then of keys, then the roughness of the input in time and in space, the same for every head. Roughness is the mean
        squared difference of neighbours in a tile over the variance about the tile's mean: 0 where all is constant, 2 for
        white noise.

    Raises:
        ValueError: for tokens that are not the grid's.
    """
    check_features(hidden_states, grid, rank=3, name="hidden_states")
    check_features(query.transpose(1, 2), grid, name="query")
    check_features(key.transpose(1, 2), grid, name="key")
    query, key, hidden_states = (read_sample(x, grid, config, token_order) for x in (query, key, hidden_states))
    return sample_statistics(query, key, hidden_states, grid, config)


def read_sample(x: Tensor, grid: Grid, config: FreqFormerConfig, token_order: TokenOrder) -> Tensor:
    """The sampled tiles of x: (B, N, ...) -> (B, S, L, ...), zero behind a tile's last token."""
    index, empty = _index(grid, config, token_order, x.device)
    tokens = x.index_select(1, index.flatten()).unflatten(1, index.shape)
    return tokens.masked_fill(empty.reshape(*empty.shape, *(1 for _ in tokens.shape[3:])), 0)


def sample_statistics(query: Tensor, key: Tensor, hidden_states: Tensor, grid: Grid, config: FreqFormerConfig) -> Tensor:
    """`routing_statistics` of tokens from `read_sample`: (B, S, L, H, D) twice and (B, S, L, C) -> (B, H, 8)."""
    query_means, key_means = (_weighted_power(x, grid, config)[..., :3] for x in (query, key))
    rough = _weighted_power(hidden_states[..., None, :], grid, config)[:, 0, 3:]
    return statistics_of_means(query_means, key_means, rough)


def statistics_of_means(query: Tensor, key: Tensor, hidden_states: Tensor) -> Tensor:
    """Statistics (B, H, 8), float32, from mean energies of queries and keys (B, H, 3) and what roughness is made of.

    Args:
        hidden_states: (B, 3), mean squared difference of neighbours in time, in space, and variance.
    """
    rough = hidden_states[:, :2] / (hidden_states[:, 2:] + FLOOR)
    logs = [(energy + FLOOR).log() for energy in (query, key)]
    return torch.cat([*logs, rough[:, None].expand(-1, query.shape[1], -1)], -1).float()


def _weighted_power(x: Tensor, grid: Grid, config: FreqFormerConfig) -> Tensor:
    """(B, S, L, H, D) -> (B, H, 6): weighted sums over tiles and coefficients of the mean power over channels."""
    transform, weights = _matrices(grid, config, x.device, x.dtype)
    power = (transform @ x.to(transform).flatten(3)).unflatten(3, x.shape[3:]).square().mean(-1)
    return torch.einsum("bslh,sjl->bhj", power, weights)


@constant_result
def _index(grid: Grid, config: FreqFormerConfig, token_order: TokenOrder, device: torch.device) -> tuple[Tensor, Tensor]:
    """Places to read, and which of them are empty; on the device, because copying them there would wait for it."""
    return _cached_index(grid, config, token_order, device)


@lru_cache(maxsize=64)
@torch.inference_mode(False)  # what it caches must also serve training
def _cached_index(
    grid: Grid, config: FreqFormerConfig, token_order: TokenOrder, device: torch.device
) -> tuple[Tensor, Tensor]:
    places = tile_sample(grid, config).places(token_order)
    return places.clamp_min(0).to(device), (places < 0).to(device)


@constant_result
def _matrices(grid: Grid, config: FreqFormerConfig, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """`transform` and `weights` of every sampled tile, (S, L, L) and (S, 6, L), float32 at least.

    The DCT is rounded to the dtype of what it multiplies, so that tensor cores take one product.
    """
    return _cached_matrices(grid, config, device, dtype)


@lru_cache(maxsize=64)
@torch.inference_mode(False)  # what it caches must also serve training
def _cached_matrices(
    grid: Grid, config: FreqFormerConfig, device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    sample, wide = tile_sample(grid, config), torch.float64 if dtype == torch.float64 else torch.float32
    transform = sample.transform.to(dtype).to(wide)
    return transform[sample.kind].to(device), sample.weights[sample.kind].to(device, wide)
