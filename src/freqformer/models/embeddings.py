"""Between videos and tokens: patches, and the embeddings of a token's place in time, height and
width.

Shape legend: B batch, C channels, F frames, H rows, W columns of the video; N tokens, P values of a
patch, D head_dim.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional

from freqformer.grid import Extents, Grid, tile_layout
from freqformer.ops.tokens import reorder


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


@torch.inference_mode(False)  # what `_axis_turns` keeps must also serve training
def rotary_tables(
    grid: Grid, tile: Extents | None, head_dim: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """cos and sin of the 3-D rotary embedding, each float32 (N, D / 2).

    A third of the channel pairs turn with the row, a third with the column, the rest with the
    frame; angular frequencies fall from 1 by a factor of 10,000 along each axis (Su et al., arXiv
    2104.09864).

    Args:
        grid: the token grid.
        tile: the tile whose order the tokens are in; None for raster order.
        head_dim: even, from 6 up.
        device: where the tables live.
    """
    spatial = head_dim // 2 // 3
    pairs = (head_dim // 2 - 2 * spatial, spatial, spatial)
    turns = [
        _axis_turns(extent, count, device) for extent, count in zip(grid.shape, pairs, strict=True)
    ]
    cosines = [cosine for cosine, _ in turns]
    sines = [sine for _, sine in turns]
    return _over_grid(cosines, grid, tile), _over_grid(sines, grid, tile)


@torch.inference_mode(False)
def place_waves(
    grid: Grid, tile: Extents | None, dim: int, device: torch.device, *, time: bool = True
) -> Tensor:
    """Fixed embedding of a token's place in the whole video, float32 (N, dim).

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
    waves = [_axis_waves(extent, dim // 6, device) for extent in grid.shape]
    if not time:
        waves[0] = torch.zeros_like(waves[0])
    table = _over_grid(waves, grid, tile)
    return functional.pad(table, (0, dim - table.shape[1]))


# What a device is told of an axis is small and kept: training takes clips of many sizes by turns,
# and copying there would wait for the device at every step. Tables of whole grids are not kept.
@lru_cache(maxsize=1024)
def _axis_turns(extent: int, count: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """cos and sin along an axis, each float32 (extent, count)."""
    from diffusers.models.embeddings import get_1d_rotary_pos_embed

    turn = get_1d_rotary_pos_embed(2 * count, extent, freqs_dtype=torch.float64)
    assert isinstance(turn, Tensor)
    return turn.real.float().to(device), turn.imag.float().to(device)


@lru_cache(maxsize=1024)
def _axis_waves(extent: int, count: int, device: torch.device) -> Tensor:
    """Sines and cosines of the place along an axis, float32 (extent, 2 count)."""
    frequencies = torch.logspace(0, 4, count, base=2, dtype=torch.float64) * math.pi / 4
    place = (2 * torch.arange(extent, dtype=torch.float64) + 1) / extent - 1
    angles = place[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], -1).float().to(device)


def _over_grid(axes: Sequence[Tensor], grid: Grid, tile: Extents | None) -> Tensor:
    """(N, channels) of all axes, in the order of tiles, or in raster order for None, from
    (extent, channels) of each."""
    wide = []
    for axis, values in enumerate(axes):
        shape = [extent if axis == other else 1 for other, extent in enumerate(grid.shape)]
        count = values.shape[1]
        wide.append(values.view(*shape, count).expand(*grid.shape, count))
    table = torch.cat(wide, -1).flatten(0, 2)
    if tile is None:
        return table
    return reorder(table[None], tile_layout(grid, tile), "raster", "tile")[0]
