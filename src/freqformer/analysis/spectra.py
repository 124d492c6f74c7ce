"""What the bands of a clip hold: their energies over time, and each band as a video.

Tokens are patches of pixels, as the model cuts a clip, with the clip's mean colour taken off. Shape
legend: F frames, H rows, W columns of pixels, T steps of tiles in time.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from freqformer.bands import low_grid, split_bands
from freqformer.config import FreqFormerConfig
from freqformer.grid import Grid, TileLayout, tile_layout
from freqformer.media import from_unit

Patch = tuple[int, int, int]
BAND_NAMES = ("low", "mid", "high")


@dataclass(frozen=True)
class Spectrum:
    """The bands of a clip; made by `clip_spectrum`."""

    bands: Tensor
    """float32 (3, 3, F, H, W): low, mid and high. Their sum is the clip without its mean colour."""
    mean: Tensor
    """The clip's mean colour, (3, 1, 1, 1)."""
    energies: Tensor
    """Sum of squares of every band per step of tiles in time, float64 (T, 3). They add up to the
    clip's."""
    first_frames: list[int]
    """First frame of every step of tiles, and F at the end: T + 1 numbers."""
    layout: TileLayout
    num_low_tokens: int
    """Tokens that would hold the low band."""

    @property
    def shares(self) -> Tensor:
        """Share of the energy that each band holds per step of tiles, (T, 3); zero where there is
        no energy."""
        return self.energies / self.energies.sum(-1, keepdim=True).clamp_min(1e-300)

    @property
    def total_shares(self) -> tuple[float, float, float]:
        """Share of the whole clip's energy that low, mid and high hold."""
        total = self.energies.sum(0)
        low, mid, high = (total / total.sum().clamp_min(1e-300)).tolist()
        return (low, mid, high)


def clip_spectrum(clip: Tensor, config: FreqFormerConfig, patch: Patch = (1, 4, 4)) -> Spectrum:
    """Split a clip into its bands.

    Args:
        clip: float (3, F, H, W) in [-1, 1].
        config: compression, mid_cutoff and tile.
        patch: (frames, rows, columns) of pixels in a token; each divides the clip's extent.

    Raises:
        ValueError: for a clip of another shape, or an extent that the patch doesn't divide.
    """
    if clip.ndim != 4 or clip.shape[0] != 3 or not clip.is_floating_point():
        raise ValueError(
            f"clip is {clip.dtype} {tuple(clip.shape)}; float (3, frames, height, width) is allowed"
        )
    if any(extent % side for extent, side in zip(clip.shape[1:], patch, strict=True)):
        raise ValueError(
            f"clip has {tuple(clip.shape[1:])} frames, rows and columns; multiples of the patch "
            f"{patch} are allowed: crop "
            "it or choose another patch"
        )
    mean = clip.float().mean((1, 2, 3), keepdim=True)
    frames, height, width = (
        extent // side for extent, side in zip(clip.shape[1:], patch, strict=True)
    )
    grid = Grid(frames, height, width)
    bands = torch.stack(
        [
            _pixels(band[0], grid, patch)
            for band in split_bands(_tokens(clip.float() - mean, patch), grid, config)
        ]
    )
    layout = tile_layout(grid, config.tile)
    first = [step * layout.tile[0] * patch[0] for step in range(layout.tiles[0])] + [clip.shape[1]]
    power = bands.double().square().sum((1, 3, 4))
    energies = torch.stack([power[:, a:b].sum(1) for a, b in pairwise(first)])
    return Spectrum(bands, mean, energies, first, layout, math.prod(low_grid(layout, config)))


def _tokens(clip: Tensor, patch: Patch) -> Tensor:
    """(3, F, H, W) -> (1, N, channels): one token per patch, in raster order."""
    x = clip
    for axis, side in zip((3, 2, 1), patch[::-1], strict=True):
        x = x.unflatten(axis, (-1, side))
    return x.permute(1, 3, 5, 0, 2, 4, 6).flatten(3).flatten(0, 2)[None]


def _pixels(tokens: Tensor, grid: Grid, patch: Patch) -> Tensor:
    """(N, channels) -> (3, F, H, W), the inverse of `_tokens`."""
    x = tokens.view(*grid.shape, 3, *patch).permute(3, 0, 4, 1, 5, 2, 6)
    return x.flatten(5, 6).flatten(3, 4).flatten(1, 2)


def band_frames(spectrum: Spectrum) -> tuple[Tensor, tuple[float, float]]:
    """The clip and its bands as pictures: input, low (with the mean colour), mid and high
    (amplified around grey).

    Returns:
        uint8 (4, F, H, W, 3), and the factors by which mid and high were amplified (1% of the
        values are clipped).
    """
    low, mid, high = spectrum.bands
    factors = [_visible(mid), _visible(high)]
    clips = [
        spectrum.bands.sum(0) + spectrum.mean,
        low + spectrum.mean,
        mid * factors[0],
        high * factors[1],
    ]
    return torch.stack([from_unit(clip) for clip in clips]), (factors[0], factors[1])


def _visible(band: Tensor) -> float:
    """Factor that brings the 99th percentile of the absolute values to 1; 1 for a band that is
    zero."""
    values = band.abs().flatten()
    large = float(values.kthvalue(max(round(0.99 * values.numel()), 1)).values)
    return 1 / large if large > 1e-6 else 1.0
