"""Between videos and what the model sees: pixels as they are, or the latents of any diffusers video
VAE.

Shape legend: B batch, C channels, F frames, H rows, W columns.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from freqformer.grid import Extents
from freqformer.models.chunked import (
    allowed_frames,
    as_shown,
    as_vae_takes,
    chunks_of,
    latent_frames,
)

MOST_RATIO = 1024
"""Largest compression of an axis by a VAE."""


def compression_ratios(vae: Any) -> tuple[int, int]:
    """Frames and pixels (of one side) per latent step: (1, 1) without a VAE.

    Raises:
        ValueError: for a VAE that states no temporal compression, such as one for images.
    """
    if vae is None:
        return (1, 1)
    ratios = []
    for attribute, field in (
        ("temporal_compression_ratio", "scale_factor_temporal"),
        ("spatial_compression_ratio", "scale_factor_spatial"),
    ):
        ratio = vae.__dict__.get(attribute) or vae.config.get(attribute) or vae.config.get(field)
        if ratio is None and attribute.startswith("spatial") and "block_out_channels" in vae.config:
            # CogVideoX names no ratio: every block but the last halves the sides.
            ratio = 2 ** (len(vae.config["block_out_channels"]) - 1)
        if ratio is None:
            raise ValueError(
                f"vae is a {type(vae).__name__} without {attribute}; video VAEs of diffusers are "
                "allowed, like "
                "AutoencoderKLWan: an image VAE can't decode a video"
            )
        if isinstance(ratio, bool) or not isinstance(ratio, int) or not 1 <= ratio <= MOST_RATIO:
            raise ValueError(
                f"vae has {attribute}={ratio!r}; integers from 1 to {MOST_RATIO} are allowed"
            )
        ratios.append(ratio)
    return (ratios[0], ratios[1])


def check_latents(vae: Any, channels: int) -> None:
    """Refuse a VAE whose latents aren't what the transformer predicts.

    Args:
        vae: or None, for a model of pixels.
        channels: of the transformer's input and output.

    Raises:
        ValueError: for other channels, or statistics that are no numbers, one a channel.
    """
    if vae is None:
        return
    config = vae.config
    coded = config.get("z_dim", config.get("latent_channels", channels))
    if coded != channels:
        raise ValueError(
            f"vae has latents of {coded!r} channels and the transformer in_channels={channels}; "
            "the same number is "
            "allowed: take the VAE that the transformer was trained with"
        )
    buffers = dict(vae.named_buffers(recurse=False))
    for name, least in (("latents_mean", -math.inf), ("latents_std", 0.0)):
        values = buffers[name].flatten().tolist() if name in buffers else config.get(name)
        listed = values if isinstance(values, list | tuple) else [values]
        if values is not None and not (
            len(listed) == channels and all(_is_number(x, least) for x in listed)
        ):
            raise ValueError(
                f"vae has {name}={listed[:4]} of {len(listed)}; {channels} numbers are allowed, "
                "one a channel"
            )
    factor = config.get("scaling_factor")
    if factor is not None and not _is_number(factor, 0.0):
        raise ValueError(f"vae has scaling_factor={factor!r}; a number above 0 is allowed")


def _is_number(value: Any, above: float) -> bool:
    return (
        isinstance(value, int | float) and not isinstance(value, bool) and above < value < math.inf
    )


def latent_size(size: Extents, vae: Any) -> Extents:
    """Latent (F, H, W) of a video of `size`; video VAEs code the first frame alone, or chunks.

    Raises:
        ValueError: for a size that the VAE can't give.
    """
    time, space = compression_ratios(vae)
    frames, height, width = size
    chunks = chunks_of(vae)
    coded = latent_frames(frames, time, chunks)
    if coded is None or min(size) < 1 or height % space or width % space:
        raise ValueError(
            f"(num_frames, height, width) is {size}; num_frames = {allowed_frames(time, chunks)} "
            f"and multiples of {space} are allowed for "
            "this VAE: choose such a size"
        )
    return (coded, height // space, width // space)


class Posterior(NamedTuple):
    """The normal distribution of a video's latents, as the model sees them."""

    mean: Tensor
    """(B, C, F, H, W), float32."""
    logvar: Tensor
    """Logarithm of the variance, shaped like the mean."""


@torch.no_grad()
def encode(video: Tensor, vae: Any) -> Posterior:
    """Video (B, 3, F, H, W) in [-1, 1] -> the distribution of its latents; `decode` is its inverse.

    Args:
        video: of a size that `latent_size` allows, on the VAE's device.
        vae: of diffusers, for video, whose encoder gives a mean and a variance.

    Raises:
        ValueError: for a size that the VAE can't code, and a VAE that gives no distribution.
    """
    extents = (int(video.shape[2]), int(video.shape[3]), int(video.shape[4]))
    expected = latent_size(extents, vae)
    coded = vae.encode(as_vae_takes(video, vae))
    if not hasattr(coded, "latent_dist"):
        raise ValueError(
            f"vae, a {type(vae).__name__}, gives no distribution of latents; VAEs of diffusers with"
            " a mean and a variance are allowed, like AutoencoderKLWan"
        )
    mean = coded.latent_dist.mean.float()
    logvar = coded.latent_dist.logvar.float()
    if tuple(mean.shape[2:]) != expected:
        raise ValueError(
            f"vae, a {type(vae).__name__}, coded {extents} as {tuple(mean.shape[2:])} and its"
            f" config says {expected}: its config.json is damaged, save it again"
        )
    shift, scale = _statistics(vae, mean)
    return Posterior((mean - shift) * scale, logvar.expand_as(mean) + 2 * scale.log())


def _statistics(vae: Any, latents: Tensor) -> tuple[Tensor, Tensor]:
    """(shift, scale) of the model's latents (latent - shift) * scale, to broadcast over latents.

    VAEs normalise by a mean and a deviation per channel, a shift and a factor, each where they have
    it.
    """
    config, shape = vae.config, (1, -1, 1, 1, 1)
    # LTX keeps the statistics as buffers, the others in the config.
    buffers = _own_buffers(vae)
    std, mean = (buffers.get(name, config.get(name)) for name in ("latents_std", "latents_mean"))
    shift = torch.as_tensor(config.get("shift_factor") or 0.0 if mean is None else mean)
    scale = latents.new_tensor(config.get("scaling_factor") or 1.0)
    if std is not None:
        scale = scale / torch.as_tensor(std).to(latents).view(shape)
    return shift.to(latents).view(shape), scale


def decode(latents: Tensor, vae: Any) -> Tensor:
    """Latents as the model gives them -> video (B, 3, F, H, W), about [-1, 1]; the inverse of
    `encode`."""
    config = vae.config
    shift, scale = _statistics(vae, latents)
    latents = latents / scale + shift
    options = {}
    if config.get("timestep_conditioning"):
        # LTX's decoder can denoise; at timestep 0 it takes latents as clean.
        options["temb"] = latents.new_zeros(latents.shape[0], dtype=vae.dtype)
    try:
        video = vae.decode(latents.to(vae.dtype), return_dict=False, **options)[0]
    except torch.OutOfMemoryError:
        raise
    except (TypeError, RuntimeError) as error:
        raise ValueError(
            f"vae, a {type(vae).__name__}, can't decode latents of shape {tuple(latents.shape)} "
            f"({error}): its config.json "
            "says something else than its weights, or it is damaged; save it again"
        ) from error
    return as_shown(video, vae)


def _own_buffers(vae: Any) -> dict[str, Tensor]:
    """The buffers of the VAE itself; offloaded ones come as they do before its own forward pass."""
    buffers = dict(vae.named_buffers(recurse=False))
    if any(buffer.is_meta for buffer in buffers.values()) and hasattr(vae, "_hf_hook"):
        vae._hf_hook.pre_forward(vae)
        buffers = dict(vae.named_buffers(recurse=False))
    return buffers
