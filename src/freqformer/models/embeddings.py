"""Between videos and tokens: patches, and the embeddings of a token's place in time, height and
width.

Shape legend: B batch, C channels, F frames, H rows, W columns of the video; N tokens, P values of a
patch, D head_dim.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional

from freqformer.grid import Extents, Grid, tile_layout


def patchify(video: Tensor, patch_size: Extents) -> Tensor:
    """(B, C, F, H, W) -> (B, N, P) in raster order, P = C times the patch; the patch divides the
    video."""
    t, h, w = patch_size
    patches = video.unflatten(4, (-1, w)).unflatten(3, (-1, h)).unflatten(2, (-1, t))
    return patches.permute(0, 2, 4, 6, 1, 3, 5, 7).flatten(4).flatten(1, 3)


def unpatchify(tokens: Tensor, grid: Grid, patch_size: Extents) -> Tensor:
    """The inverse of `patchify`: (B, N, P) in raster order -> (B, C, F, H, W)."""
    video = tokens.unflatten(1, grid.shape).unflatten(4, (-1, *patch_size))
    return video.permute(0, 4, 1, 5, 2, 6, 3, 7).flatten(6).flatten(4, 5).flatten(2, 3)


@lru_cache(maxsize=2)
@torch.inference_mode(False)  # what it caches must also serve training
def rotary_tables(
    grid: Grid, tile: Extents | None, head_dim: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """cos and sin of the 3-D rotary embedding, each float32 (N, D / 2); two grids are kept.

    A third of the channel pairs turn with the row, a third with the column, the rest with the
    frame; angular frequencies fall from 1 by a factor of 10,000 along each axis (Su et al., arXiv
    2104.09864).

    Args:
        grid: the token grid.
        tile: the tile whose order the tokens are in; None for raster order.
        head_dim: even, from 6 up.
        device: where the tables live.
    """
    from diffusers.models.embeddings import get_1d_rotary_pos_embed

    spatial = head_dim // 2 // 3
    pairs = (head_dim // 2 - 2 * spatial, spatial, spatial)
    turns = []
    for axis, (extent, count) in enumerate(zip(grid.shape, pairs, strict=True)):
        turn = get_1d_rotary_pos_embed(2 * count, extent, freqs_dtype=torch.float64)
        assert isinstance(turn, Tensor)
        shape = [extent if axis == other else 1 for other in range(3)]
        turns.append(turn.reshape(*shape, count).expand(*grid.shape, count))
    table = torch.cat(turns, -1).flatten(0, 2)
    if tile is not None:
        table = table[tile_layout(grid, tile).raster_to_tile]
    return table.real.float().to(device), table.imag.float().to(device)


@lru_cache(maxsize=2)
def place_waves(
    grid: Grid, tile: Extents | None, dim: int, device: torch.device, *, time: bool = True
) -> Tensor:
    """Fixed embedding of a token's place in the whole video, float32 (N, dim); two grids are kept.

    The place runs from -1 to 1 along time, height and width, whatever the grid. Each axis has the
    sines and cosines of dim // 6 angular frequencies, from a quarter wave over the video to four
    waves; channels left over are zero.

    Args:
        grid: the token grid.
        tile: the tile whose order the tokens are in; None for raster order.
        dim: channels, from 6 up.
        device: where the table lives.
        time: whether the place in time is told; its channels are zero otherwise.
    """
    with torch.inference_mode(False):
        count, waves = dim // 6, []
        frequencies = torch.logspace(0, 4, count, base=2, dtype=torch.float64) * math.pi / 4
        for axis, extent in enumerate(grid.shape):
            place = (2 * torch.arange(extent, dtype=torch.float64) + 1) / extent - 1
            angles = place[:, None] * frequencies
            shape = [extent if axis == other else 1 for other in range(3)]
            wave = torch.cat([angles.sin(), angles.cos()], -1) * (time or axis > 0)
            waves.append(wave.reshape(*shape, 2 * count).expand(*grid.shape, 2 * count))
        table = functional.pad(torch.cat(waves, -1).flatten(0, 2), (0, dim - 6 * count))
        if tile is not None:
            table = table[tile_layout(grid, tile).raster_to_tile]
        return table.float().to(device)
