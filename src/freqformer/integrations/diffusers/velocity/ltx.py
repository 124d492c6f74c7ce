"""LTX-Video: latents packed into tokens, and positions in seconds and pixels."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from freqformer.integrations.diffusers.velocity.call import (
    VelocityCall,
    VelocityFamily,
    VelocitySettings,
)


def _velocity(transformer: Any, call: VelocityCall, settings: VelocitySettings) -> Tensor:
    call.refuse_images("LTXVideoTransformer3DModel")
    call.refuse_pooled("LTXVideoTransformer3DModel")
    frames, height, width = call.latents.shape[2:]
    time, space = settings.compression
    mask = call.prompt_attention_mask
    packed = transformer(
        hidden_states=call.latents.flatten(2).transpose(1, 2),
        encoder_hidden_states=call.prompt_embeds,
        timestep=call.timestep,
        encoder_attention_mask=call.prompt_embeds.new_ones(call.prompt_embeds.shape[:2]).bool()
        if mask is None
        else mask,
        num_frames=frames,
        height=height,
        width=width,
        rope_interpolation_scale=(time / settings.fps, space, space),
        return_dict=False,
    )[0]
    return packed.transpose(1, 2).unflatten(2, (frames, height, width))


FAMILY = VelocityFamily(
    _velocity,
    text_channels=lambda transformer: transformer.config.caption_channels,
    patch_size=lambda _transformer: (1, 1, 1),
)
