"""How near a video is to another: PSNR and SSIM.

Shape legend: B videos, F frames, C channels, H rows, W columns; values in [0, 1].
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

WINDOW, SIGMA = 11, 1.5
STABILITY = (0.01**2, 0.03**2)


def psnr(video: Tensor, reference: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB over all frames of a video: two (B, F, C, H, W) -> (B,)."""
    error = (video.double() - reference.double()).square().flatten(1).mean(1)
    return -10 * error.clamp_min(1e-20).log10()


def ssim(video: Tensor, reference: Tensor) -> Tensor:
    """Structural similarity, the mean over frames and channels: two (B, F, C, H, W) -> (B,), at
    most 1.

    Gaussian windows of 11 x 11 pixels inside the frame, population moments, constants 0.01 and 0.03
    (Wang et al., IEEE Transactions on Image Processing 13(4), 2004).
    """
    x, y = (frames.double().flatten(0, 2)[:, None] for frames in (video, reference))
    mean_x, mean_y = _blurred(x), _blurred(y)
    variance_x = _blurred(x * x) - mean_x.square()
    variance_y = _blurred(y * y) - mean_y.square()
    covariance = _blurred(x * y) - mean_x * mean_y
    first, second = STABILITY
    luminance = (2 * mean_x * mean_y + first) / (mean_x.square() + mean_y.square() + first)
    structure = (2 * covariance + second) / (variance_x + variance_y + second)
    return (luminance * structure).flatten(1).mean(1).unflatten(0, (len(video), -1)).mean(1)


def _blurred(x: Tensor) -> Tensor:
    place = torch.arange(WINDOW, dtype=x.dtype, device=x.device) - WINDOW // 2
    weights = (-place.square() / (2 * SIGMA**2)).exp()
    weights = weights / weights.sum()
    return functional.conv2d(
        functional.conv2d(x, weights.view(1, 1, -1, 1)), weights.view(1, 1, 1, -1)
    )


def lpips(video: Tensor, reference: Tensor) -> float | None:
    """Perceptual distance (Zhang et al., CVPR 2018), the mean over frames of two (B, F, 3, H, W),
    as the package `lpips` measures it; None where it isn't installed."""
    try:
        from lpips import LPIPS  # pyright: ignore[reportMissingImports]
    except ModuleNotFoundError:
        return None
    measure = LPIPS(net="alex", verbose=False)
    pairs = zip(video.flatten(0, 1), reference.flatten(0, 1), strict=True)
    with torch.no_grad():
        # It takes values from -1 to 1.
        found = [float(measure(2 * x[None] - 1, 2 * y[None] - 1)) for x, y in pairs]
    return sum(found) / len(found)
