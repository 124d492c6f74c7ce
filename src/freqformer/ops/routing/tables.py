"""Static tables of the router's launches: a sample of tiles, as the kernel reads it.

Shape legend: S sampled tiles, K kinds of tiles, SLOTS the side of the kernel's block.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional

from freqformer.buffers import power_of_two
from freqformer.config import FreqFormerConfig
from freqformer.grid import Grid
from freqformer.routing.statistics import SampleOrder, TileSample, tile_sample
from freqformer.tracing import constant_result


@constant_result
def sample_tables(
    grid: Grid,
    config: FreqFormerConfig,
    token_order: SampleOrder,
    device: torch.device,
    dtypes: tuple[torch.dtype, ...],
) -> tuple[Tensor, ...]:
    """A grid's `TileSample` on one device, cached.

    Args:
        grid, config, token_order: of the tokens.
        device: of the tables.
        dtypes: of tokens that a transform multiplies.

    Returns:
        places: of every token of every sampled tile, int32 (S, SLOTS). Behind a tile's last token
        its first one follows,
            which counts nothing there: the transform is zero.
        kind: int32 (S,). weights: of a tile's power, float32 (K, 6, SLOTS). transforms: for each of
        `dtypes`, the DCT of every kind of tile, rounded to it: (K, SLOTS, SLOTS).
    """
    transforms = (_cached_transform(grid, config, device, dtype) for dtype in dtypes)
    return *_cached_tables(grid, config, token_order, device), *transforms


@lru_cache(maxsize=64)
@torch.inference_mode(False)  # what it caches must also serve training
def _cached_tables(
    grid: Grid, config: FreqFormerConfig, token_order: SampleOrder, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    sample = tile_sample(grid, config)
    behind = _missing(sample)
    places = functional.pad(sample.places(token_order), (0, behind), value=-1)
    places = torch.where(places < 0, places[:, :1], places)
    weights = functional.pad(sample.weights, (0, behind))
    return (
        places.to(device, torch.int32),
        sample.kind.to(device, torch.int32),
        weights.to(device, torch.float32),
    )


@lru_cache(maxsize=64)
@torch.inference_mode(False)  # what it caches must also serve training
def _cached_transform(
    grid: Grid, config: FreqFormerConfig, device: torch.device, dtype: torch.dtype
) -> Tensor:
    sample = tile_sample(grid, config)
    behind = _missing(sample)
    return functional.pad(sample.transform, (0, behind, 0, behind)).to(device, dtype)


def _missing(sample: TileSample) -> int:
    """Slots behind the largest tile's."""
    tokens = sample.raster.shape[1]
    return power_of_two(tokens) - tokens
