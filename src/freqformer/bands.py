"""Frequency bands of video features: an orthonormal block DCT per tile, compression to low tokens,
and the way back.

Every operator here is separable: one small matrix per tile and axis, over the tile's true extent.
So ragged tiles and prime grids are exact. Derivation: docs/bands.md; source: arXiv 2604.22808 for
the bands, Rao & Yip (1990) for the DCT.

Shape legend: `...` any leading axes, N tokens in raster order, M low tokens in raster order of the
low grid, C channels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import product

import torch
from torch import Tensor

from freqformer.config import FreqFormerConfig
from freqformer.grid import TILE_SLOTS, Extents, Grid, TileLayout, tile_layout

Matrix = Callable[[int, int], Tensor]
"""(tile extent n, low samples m) -> the float64 matrix that acts on one tile along one axis."""


@lru_cache(maxsize=256)
@torch.inference_mode(False)  # what it caches must also serve training
def dct_matrix(n: int) -> Tensor:
    """The orthonormal DCT-II of length `n`: float64 (n, n), rows are frequencies."""
    k, i = torch.meshgrid(torch.arange(n), torch.arange(n), indexing="ij")
    matrix = torch.cos(math.pi / n * (i.double() + 0.5) * k.double()) * math.sqrt(2 / n)
    matrix[0] /= math.sqrt(2)
    return matrix


def analysis_matrix(n: int, m: int) -> Tensor:
    """One axis of A, (m, n): the m lowest coefficients as m samples, a constant kept."""
    return dct_matrix(m).T @ dct_matrix(n)[:m] * math.sqrt(m / n)


def synthesis_matrix(n: int, m: int) -> Tensor:
    """One axis of S, (n, m): A @ S = identity, S @ A the projector on the low band."""
    return dct_matrix(n)[:m].T @ dct_matrix(m) * math.sqrt(n / m)


@lru_cache(maxsize=64)
def low_box(tile: Extents, compression: float) -> Extents:
    """Low samples of a full tile along (time, height, width).

    The product is the largest that fits in round(128 / compression); among those, the spacings in
    tokens are the most equal (least ratio of longest to shortest). Ties have the fewest samples in
    time, where videos are smoothest, then the least longest side, then the fewest in height.
    """
    budget = round(TILE_SLOTS / compression)
    t, h, w = (range(1, side + 1) for side in tile)
    boxes = [box for box in product(t, h, w) if math.prod(box) <= budget]

    def preference(box: Extents) -> tuple[float | Extents, ...]:
        spacing = [side / samples for side, samples in zip(tile, box, strict=True)]
        return (-math.prod(box), max(spacing) / min(spacing), box[0], max(box), box)

    return min(boxes, key=preference)


def low_samples(layout: TileLayout, config: FreqFormerConfig, axis: int) -> list[int]:
    """Low samples of every tile along one axis: the box's side, clipped to a short tile."""
    # A pinned tile that a small grid clips keeps its own box, so that the bands mean the same at
    # every length.
    side = low_box(config.tile or layout.tile, config.compression)[axis]
    return [min(side, extent) for extent in layout.extents(axis)]


def low_grid(layout: TileLayout, config: FreqFormerConfig) -> Extents:
    """Low tokens along (time, height, width); M is the product."""
    time, height, width = (sum(low_samples(layout, config, axis)) for axis in range(3))
    return (time, height, width)


def low_weights(layout: TileLayout, config: FreqFormerConfig) -> Tensor:
    """Tokens that every low token stands for, n/m of its tile: float64 (M,)."""
    weights = torch.ones((), dtype=torch.float64)
    for axis in range(3):
        pairs = zip(layout.extents(axis), low_samples(layout, config, axis), strict=True)
        ratio = torch.cat([torch.full((m,), n / m, dtype=torch.float64) for n, m in pairs])
        weights = weights[..., None] * ratio
    return weights.flatten()


def _compute_dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _per_tile(x: Tensor, axis: int, matrices: Sequence[Tensor]) -> Tensor:
    """Apply one matrix per tile along `axis` of x; all tiles but a short last one share the first
    matrix."""
    full = sum(matrix.shape == matrices[0].shape for matrix in matrices)
    side = matrices[0].shape[1]
    head, tail = x.split([full * side, x.shape[axis] - full * side], dim=axis)
    parts = [
        _matmul_along(head.unflatten(axis, (full, side)), axis + 1, matrices[0]).flatten(
            axis, axis + 1
        )
    ]
    if tail.shape[axis]:
        parts.append(_matmul_along(tail, axis, matrices[-1]))
    return torch.cat(parts, dim=axis) if len(parts) > 1 else parts[0]


def _matmul_along(x: Tensor, axis: int, matrix: Tensor) -> Tensor:
    """matrix (out, in) times x along `axis`."""
    rest = x.shape[axis + 1 :]
    return (matrix.to(x) @ x.flatten(axis + 1)).unflatten(-1, rest)


def _separable(
    x: Tensor, layout: TileLayout, config: FreqFormerConfig, matrix: Matrix, shape: Extents
) -> Tensor:
    """Apply `matrix` per tile along the three axes of x (..., tokens of `shape`, C); returns (...,
    tokens, C)."""
    lead = x.shape[:-2]
    y = x.reshape(-1, *shape, x.shape[-1])
    for axis in (3, 2, 1):
        extents, samples = layout.extents(axis - 1), low_samples(layout, config, axis - 1)
        matrices = [matrix(n, m) for n, m in zip(extents, samples, strict=True)]
        y = _per_tile(y, axis, matrices)
    return y.reshape(*lead, -1, x.shape[-1])


@lru_cache(maxsize=64)
@torch.inference_mode(False)  # what it caches must also serve training
def band_masks(layout_key: tuple[Grid, Extents], config: FreqFormerConfig) -> Tensor:
    """Which DCT coefficient belongs to LOW, MID and HIGH: bool (3, N), coefficients in their tile's
    raster places."""
    layout = tile_layout(*layout_key)
    low = torch.ones((), dtype=torch.bool)
    radius = torch.zeros((), dtype=torch.float64)
    counted = torch.zeros((), dtype=torch.float64)
    for axis in range(3):
        extents, samples = layout.extents(axis), low_samples(layout, config, axis)
        k = torch.cat([torch.arange(n) for n in extents])
        n = torch.cat([torch.full((extent,), extent) for extent in extents])
        m = torch.cat([torch.full((n_,), m_) for n_, m_ in zip(extents, samples, strict=True)])
        low = low[..., None] & (k < m)
        radius = radius[..., None] + (k / n).double() ** 2
        counted = counted[..., None] + (n > 1)
    # An axis of extent 1 holds no frequency; it is left out of the mean, and a single token is all
    # low.
    radius = (radius / counted.clamp_min(1)).sqrt()
    mid = ~low & (radius < config.mid_cutoff)
    return torch.stack([low, mid, ~low & ~mid]).flatten(1)


def dct(
    x: Tensor, layout: TileLayout, config: FreqFormerConfig, *, inverse: bool = False
) -> Tensor:
    """The block DCT of x (..., N, C) or its inverse; same shape and dtype."""
    matrix: Matrix = (lambda n, m: dct_matrix(n).T) if inverse else (lambda n, m: dct_matrix(n))
    return _separable(x, layout, config, matrix, layout.grid.shape)


def band_pass(x: Tensor, gains: Tensor, layout: TileLayout, config: FreqFormerConfig) -> Tensor:
    """Weight the bands of x: g_low * low + g_mid * mid + g_high * high.

    Args:
        x: (..., N, C) in raster order, any float dtype.
        gains: (..., 3) for LOW, MID, HIGH, broadcast against the leading axes of x.

    Returns: (..., N, C) in x's dtype; computed in float32 at least.
    """
    masks = band_masks((layout.grid, layout.tile), config).to(x.device)
    wide = x.to(_compute_dtype(x))
    weight = gains.to(wide) @ masks.to(wide)
    return dct(dct(wide, layout, config) * weight[..., None], layout, config, inverse=True).to(
        x.dtype
    )


def compress(x: Tensor, layout: TileLayout, config: FreqFormerConfig) -> Tensor:
    """Low tokens A @ x: (..., N, C) in raster order -> (..., M, C), same dtype. A constant keeps
    its value."""
    return _separable(
        x.to(_compute_dtype(x)), layout, config, analysis_matrix, layout.grid.shape
    ).to(x.dtype)


def synthesize(low: Tensor, layout: TileLayout, config: FreqFormerConfig) -> Tensor:
    """S @ low: (..., M, C) -> (..., N, C), the inverse of `compress` on the low band; it steps at
    tile borders."""
    return _separable(
        low.to(_compute_dtype(low)), layout, config, synthesis_matrix, low_grid(layout, config)
    ).to(low.dtype)


def interpolate(low: Tensor, layout: TileLayout, config: FreqFormerConfig) -> Tensor:
    """Linear interpolation between low-token centres across tiles: (..., M, C) -> (..., N, C).
    Constants are kept."""
    lead, channels = low.shape[:-2], low.shape[-1]
    y = low.to(_compute_dtype(low)).reshape(-1, *low_grid(layout, config), channels)
    for axis in (1, 2, 3):
        y = _matmul_along(y, axis, interpolation_matrix(layout, config, axis - 1))
    return y.reshape(*lead, -1, channels).to(low.dtype)


def interpolation_matrix(layout: TileLayout, config: FreqFormerConfig, axis: int) -> Tensor:
    """Weights (extent, low extent) along one axis; beyond the outermost centres the nearest one is
    held."""
    centres, start = [], 0
    for n, m in zip(layout.extents(axis), low_samples(layout, config, axis), strict=True):
        centres += [start + (j + 0.5) * n / m - 0.5 for j in range(m)]
        start += n
    centre = torch.tensor(centres, dtype=torch.float64)
    place = torch.arange(start, dtype=torch.float64).clamp(centre[0], centre[-1])
    right = (
        torch.searchsorted(centre, place)
        .clamp(1, max(len(centres) - 1, 1))
        .clamp_max(len(centres) - 1)
    )
    left = (right - 1).clamp_min(0)
    gap = (centre[right] - centre[left]).clamp_min(1e-30)
    share = torch.where(right > left, (place - centre[left]) / gap, torch.ones_like(place))
    rows = torch.arange(start)
    matrix = torch.zeros(start, len(centres), dtype=torch.float64)
    matrix[rows, left] += 1 - share
    matrix[rows, right] += share
    return matrix


def split_bands(x: Tensor, grid: Grid, config: FreqFormerConfig) -> tuple[Tensor, Tensor, Tensor]:
    """Split features into their low, mid and high frequency bands.

    The bands are orthogonal, add up to x and their energies add up to x's (Parseval), to rounding.

    Args:
        x: (batch, tokens, channels) in raster order, any float dtype.
        grid: the token grid; its number of tokens is that of x.
        config: compression, mid_cutoff and tile.

    Returns:
        low, mid, high, each of the shape and dtype of x; computed in float32 at least. A band with
        no coefficient is zero.

    Raises:
        ValueError: for a wrong rank, a token count that is not the grid's, or a dtype that is no
            float.
    """
    check_features(x, grid, rank=3)
    layout = tile_layout(grid, config.tile)
    masks = band_masks((grid, layout.tile), config).to(x.device)
    wide = x.to(_compute_dtype(x))
    coefficients = dct(wide, layout, config)
    low, mid, high = (
        dct(coefficients * mask[:, None], layout, config, inverse=True).to(x.dtype)
        for mask in masks
    )
    return low, mid, high


def band_energies(x: Tensor, grid: Grid, config: FreqFormerConfig) -> Tensor:
    """Energy (sum of squares) of the low, mid and high band: (..., N, C) in raster order -> (...,
    3), float32 at least."""
    check_features(x, grid)
    layout = tile_layout(grid, config.tile)
    masks = band_masks((grid, layout.tile), config).to(x.device)
    power = dct(x.to(_compute_dtype(x)), layout, config).square().sum(-1)
    return power @ masks.to(power).T


def check_features(x: Tensor, grid: Grid, *, rank: int | None = None, name: str = "x") -> None:
    """Raise ValueError unless x (..., N, C) is a float tensor over the tokens of `grid`."""
    if not x.is_floating_point():
        raise ValueError(
            f"{name} has dtype {x.dtype}; float64, float32, float16 and bfloat16 are allowed: "
            "convert it"
        )
    if x.ndim < 2 or (rank is not None and x.ndim != rank):
        expected = "(batch, tokens, channels)" if rank == 3 else "(..., tokens, channels)"
        raise ValueError(f"{name} has shape {tuple(x.shape)}; {expected} is allowed: reshape it")
    if x.shape[-2] != grid.num_tokens:
        raise ValueError(
            f"{name} has {x.shape[-2]} tokens; {grid} has {grid.num_tokens}: pass the grid of "
            "these tokens, or drop text"
        )
