"""Static tables of the router's launches: a sample of tiles, as the kernel reads it.

Shape legend: S sampled tiles, K kinds of tiles, SLOTS the side of the kernel's block.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional

from freqformer.grid import TokenOrder
from freqformer.ops.tile_matrices import power_of_two
from freqformer.routing.statistics import TileSample


@dataclass(frozen=True, eq=False)
class SampleTables:
    """A `TileSample` on one device; made by `sample_tables`."""

    places: Tensor
    """Place of every token of every sampled tile, -1 behind a tile's last: int32 (S, SLOTS)."""
    kind: Tensor
    """int32 (S,)."""
    weights: Tensor
    """Weights of a tile's power as in `TileSample`, float32 (K, 6, SLOTS)."""


@lru_cache(maxsize=64)
@torch.inference_mode(False)  # what it caches must also serve training
def sample_tables(sample: TileSample, token_order: TokenOrder, device: torch.device) -> SampleTables:
    """The tables of a sample, cached."""
    behind = _missing(sample)
    return SampleTables(
        places=functional.pad(sample.places(token_order), (0, behind), value=-1).to(device, torch.int32),
        kind=sample.kind.to(device, torch.int32),
        weights=functional.pad(sample.weights, (0, behind)).to(device, torch.float32),
    )


@lru_cache(maxsize=64)
@torch.inference_mode(False)  # what it caches must also serve training
def transform_table(sample: TileSample, device: torch.device, dtype: torch.dtype) -> Tensor:
    """The DCT of every kind of tile, rounded to the dtype of the tokens that it multiplies: (K, SLOTS, SLOTS)."""
    behind = _missing(sample)
    return functional.pad(sample.transform, (0, behind, 0, behind)).to(device, dtype)


def _missing(sample: TileSample) -> int:
    """Slots behind the largest tile's."""
    tokens = sample.raster.shape[1]
    return power_of_two(tokens) - tokens
