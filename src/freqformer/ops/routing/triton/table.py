"""Bands of a table by timestep in one Triton launch.

Shape legend: B batch, H heads, T timestep buckets.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from freqformer.buffers import power_of_two


@triton.jit
def take_bands(timestep, step, table, out, buckets, heads, HEADS: tl.constexpr):
    """Each sample's row of a table; launched over B.

    Args:
        timestep: (B,), `step` apart.
        table: int64 (T, H).
        out: int64 (B, H), written.
        buckets, heads: T and H.
        HEADS: H, rounded up.
    """
    sample = tl.program_id(0)
    # In float64, as `timestep_bucket` does: in float32 a product may round up into the next bucket.
    place = (tl.load(timestep + sample * step).to(tl.float64) * buckets).to(tl.int64)
    # A timestep of 1 would be in bucket T, the first that doesn't exist.
    place = tl.minimum(tl.maximum(place, 0), buckets - 1)
    # The side of a block is a power of two, and H needn't be: the mask leaves other samples alone.
    head = tl.arange(0, HEADS)
    bands = tl.load(table + place * heads + head, mask=head < heads, other=0)
    tl.store(out + sample * heads + head, bands, mask=head < heads)


def look_up(bands: Tensor, timestep: Tensor) -> Tensor:
    """The bands of every timestep's bucket, as `routing.table.bands_at`.

    Args:
        bands: int64 (T, H), on the device of the timesteps.
        timestep: (B,), any float dtype and stride.

    Returns: int64 (B, H).
    """
    # The kernel takes rows as H numbers apart; one layer's slice of a whole table isn't stored so.
    bands = bands.contiguous()
    buckets, heads = bands.shape
    out = bands.new_empty(len(timestep), heads)
    constants: dict[str, Any] = {"HEADS": power_of_two(heads)}
    # A launch goes to the current device, which needn't be the tensors'.
    with torch.cuda.device_of(bands):
        take_bands[(len(timestep),)](
            timestep, timestep.stride(0), bands, out, buckets, heads, **constants
        )
    return out
