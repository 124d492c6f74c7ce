"""Wan 2.1 and 2.2 image to video: the first frame is coded with gray frames behind it, and goes
behind the latents with a mask of the frames that are known."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from freqformer.models.latents import compression_ratios, encode
from freqformer.training.cache.first_frames.family import FirstFrameFamily

FRAMES_OF_A_LATENT = 4
"""So many channels has the mask: the frames that one latent stands for."""


def _takes(index: dict[str, Any]) -> bool:
    # Wan 2.2 TI2V is told by timesteps of tokens.
    return not index.get("expand_timesteps")


def _condition(clip: Tensor, vae: Any) -> Tensor:
    time, _ = compression_ratios(vae)
    gray = torch.zeros_like(clip)
    gray[:, 0] = clip[:, 0]
    latents = encode(gray[None], vae).mean[0]
    mask = latents.new_zeros(time, *latents.shape[1:])
    # The first latent stands for the first frame alone.
    mask[:, 0] = 1
    return torch.cat([mask, latents])


FAMILY = FirstFrameFamily(_takes, _condition, lambda channels: channels + FRAMES_OF_A_LATENT)
