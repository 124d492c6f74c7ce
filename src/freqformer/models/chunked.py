"""VAEs that code a video in chunks of frames, as MiniMax-H3's does, and how they take pixels."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from torch import Tensor

CHUNKED = "AutoencoderKLMiniMaxH3"
PIXEL_MEAN = (0.485, 0.456, 0.406)
PIXEL_STD = (0.229, 0.224, 0.225)
"""ImageNet's, of pixels in [0, 1], as MiniMax-H3's pipeline takes them."""


class Chunks(NamedTuple):
    """How such a VAE codes more than one frame."""

    frames: int
    """Of a chunk."""
    latents: int
    """Of a chunk."""
    dropped: int
    """Latents that are left out at the end of a video."""

    def coded(self, frames: int) -> int | None:
        """Latents of so many frames; None where the pipeline takes no such length.

        A length is one frame, or `frames` * k + `latents`.
        """
        if frames == 1:
            return 1
        if frames < 1 or frames % self.frames != self.latents:
            return None
        return math.ceil(frames / self.frames) * self.latents - self.dropped

    @property
    def allowed(self) -> str:
        """The lengths in words."""
        return f"1 or {self.frames} * k + {self.latents}"


def chunks_of(vae: Any) -> Chunks | None:
    """The chunks of a VAE; None for one that codes the first frame alone and the others evenly."""
    if type(vae).__name__ != CHUNKED:
        return None
    frames, dropped = int(vae.config.clip_length), int(vae.config.token_drop)
    return Chunks(frames, int(vae.tokens_chunk_size), dropped)


def latent_frames(frames: int, time: int, chunks: Chunks | None) -> int | None:
    """Latents of a number of frames; None for one that the VAE can't code.

    Args:
        frames: of the video.
        time: frames that a latent stands for.
        chunks: of the VAE.
    """
    if chunks is not None:
        return chunks.coded(frames)
    return None if frames < 1 or (frames - 1) % time else (frames - 1) // time + 1


def allowed_frames(time: int, chunks: Chunks | None) -> str:
    """The numbers of frames that a VAE codes, in words."""
    return f"{time} * k + 1" if chunks is None else chunks.allowed


def as_vae_takes(video: Tensor, vae: Any) -> Tensor:
    """Pixels (B, 3, F, H, W) in [-1, 1] as the VAE takes them, in the dtype of its encoder."""
    if type(vae).__name__ != CHUNKED:
        return video.to(vae.dtype)
    video = video.float()  # the encoder is kept in float32 where the rest isn't
    mean, std = _statistics(video)
    return ((video + 1) / 2 - mean) / std


def as_shown(video: Tensor, vae: Any) -> Tensor:
    """The inverse of `as_vae_takes`."""
    if type(vae).__name__ != CHUNKED:
        return video
    mean, std = _statistics(video)
    return 2 * (video * std + mean) - 1


def _statistics(video: Tensor) -> tuple[Tensor, Tensor]:
    shape = (1, -1, 1, 1, 1)
    return video.new_tensor(PIXEL_MEAN).view(shape), video.new_tensor(PIXEL_STD).view(shape)
