"""Wan: text padded by zeros that the model reads; a first frame by timesteps of tokens (2.2 TI2V)
or by channels behind the latents (2.1 and 2.2 I2V)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from freqformer.integrations.diffusers.velocity.call import (
    VelocityCall,
    VelocityFamily,
    VelocitySettings,
)

TEXT_LENGTH = 512
"""`max_sequence_length` of `WanPipeline`."""


def _velocity(transformer: Any, call: VelocityCall, settings: VelocitySettings) -> Tensor:
    _check_image(transformer, call)
    call.refuse_pooled("WanTransformer3DModel")
    condition = call.condition
    return transformer(
        hidden_states=call.latents
        if condition is None
        else torch.cat([call.latents, condition], 1),
        timestep=_token_timesteps(transformer, call)
        if settings.expand_timesteps
        else call.timestep,
        encoder_hidden_states=call.embeds_padded_to(settings.text_length or TEXT_LENGTH),
        encoder_hidden_states_image=call.image_embeds,
        return_dict=False,
    )[0]


def _token_timesteps(transformer: Any, call: VelocityCall) -> Tensor:
    """(B, tokens): that of the sample, and 0 in a first frame that is given."""
    frames, height, width = (
        side // patch
        for side, patch in zip(call.latents.shape[2:], transformer.config.patch_size, strict=True)
    )
    steps = call.timestep[:, None, None].expand(-1, frames, height * width)
    if call.keeps_first is not None:
        first = torch.arange(frames, device=steps.device) == 0
        steps = steps.masked_fill((call.keeps_first[:, None] & first)[..., None], 0)
    return steps.flatten(1)


def _check_image(transformer: Any, call: VelocityCall) -> None:
    config = transformer.config
    behind = 0 if call.condition is None else call.condition.shape[1]
    if behind != config.in_channels - config.out_channels:
        raise ValueError(
            f"condition has {behind} channels; this transformer takes"
            f" {config.in_channels - config.out_channels} behind the latents: pass what its"
            " pipeline's prepare_latents makes of the first frame"
        )
    if (call.image_embeds is None) != (config.image_dim is None):
        raise ValueError(
            f"image_embeds is {'missing' if call.image_embeds is None else 'given'}, and image_dim"
            f" of this transformer is {config.image_dim}; both or none is allowed: pass what its"
            " pipeline's encode_image makes of the first frame, or leave it out"
        )


def _unsupported(transformer: Any, settings: VelocitySettings) -> str | None:
    """What of a call no cache holds."""
    config = transformer.config
    needed = {
        "condition": config.in_channels != config.out_channels,
        "image_embeds": config.image_dim is not None,
    }
    missing = [name for name, is_needed in needed.items() if is_needed]
    if missing := [name for name in missing if name not in settings.conditions]:
        return (
            f"it is an image-to-video model, and the cache has no {' and '.join(missing)} of first"
            " frames: make the cache with --vae and the folder of its whole pipeline"
        )
    return None


FAMILY = VelocityFamily(
    _velocity,
    _unsupported,
    latent_channels=lambda transformer: transformer.config.out_channels,
    takes_first_frame=lambda settings: settings.expand_timesteps,
)
