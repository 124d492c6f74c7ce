"""Frames as tensors: uint8 (F, H, W, 3) for files and eyes, float (3, F, H, W) in [-1, 1] for
models."""

from __future__ import annotations

import torch
from torch import Tensor


def enlarge(frames: Tensor, scale: int) -> Tensor:
    """Repeat every pixel `scale` times along both axes: uint8 (F, H, W, 3) -> (F, H * scale, W *
    scale, 3)."""
    return frames.repeat_interleave(scale, 1).repeat_interleave(scale, 2)


def to_unit(frames: Tensor) -> Tensor:
    """uint8 (F, H, W, 3) -> float32 (3, F, H, W) in [-1, 1], as models take clips.

    Raises ValueError for frames of another shape or dtype.
    """
    check_frames(frames)
    return frames.permute(3, 0, 1, 2).float() / 127.5 - 1


def from_unit(clip: Tensor) -> Tensor:
    """Float (3, F, H, W) in [-1, 1] -> uint8 (F, H, W, 3), rounded; values outside are clipped.

    Raises ValueError for a clip of another shape, of no float dtype, or with NaN.
    """
    if clip.ndim != 4 or clip.shape[0] != 3 or not clip.is_floating_point():
        raise ValueError(
            f"clip is {clip.dtype} {tuple(clip.shape)}; float (3, frames, height, width) is allowed"
        )
    if clip.isnan().any():
        raise ValueError(
            "clip holds NaN; finite values in [-1, 1] are allowed: look where the model's output "
            "broke"
        )
    scaled = (clip.float().clamp(-1, 1) + 1) * 127.5
    return scaled.round().to(torch.uint8).permute(1, 2, 3, 0).contiguous()


def check_frames(frames: Tensor) -> None:
    """Raise ValueError unless frames are uint8 (F, H, W, 3), at least one."""
    shaped = frames.ndim == 4 and frames.shape[3] == 3 and frames.numel() > 0
    if not shaped or frames.dtype != torch.uint8:
        raise ValueError(
            f"frames is {frames.dtype} {tuple(frames.shape)}; uint8 (frames, height, width, 3) "
            "with "
            "at least one frame is allowed: convert a clip with from_unit"
        )
