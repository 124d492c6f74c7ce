"""HunyuanVideo: text by Llama, token by token, and by CLIP, as a whole; guidance that was distilled
into the model is told to it as a number."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from freqformer.integrations.diffusers.velocity.call import (
    VelocityCall,
    VelocityFamily,
    VelocitySettings,
)

NAME = "HunyuanVideoTransformer3DModel"
GUIDANCE_UNIT = 1000
"""Of which the transformer takes a guidance scale in, as its pipeline gives it."""


def _velocity(transformer: Any, call: VelocityCall, settings: VelocitySettings) -> Tensor:
    call.refuse_images(NAME)
    if call.pooled_embeds is None:
        raise ValueError(
            f"pooled_embeds is missing, and a {NAME} is told the text by two encoders; (B,"
            f" {transformer.config.pooled_projection_dim}) is allowed: make the cache with"
            " --text-encoder and the whole pipeline's folder"
        )
    embeds = call.prompt_embeds
    mask = call.prompt_attention_mask
    guidance = None
    if transformer.config.guidance_embeds:
        scale = GUIDANCE_UNIT * settings.guidance_scale
        guidance = embeds.new_full((len(embeds),), scale)
    return transformer(
        hidden_states=call.latents,
        timestep=call.timestep,
        encoder_hidden_states=embeds,
        encoder_attention_mask=embeds.new_ones(embeds.shape[:2])
        if mask is None
        else mask.to(embeds),
        pooled_projections=call.pooled_embeds,
        guidance=guidance,
        return_dict=False,
    )[0]


def _unsupported(transformer: Any, _settings: VelocitySettings) -> str | None:
    config = transformer.config
    if config.in_channels != config.out_channels or config.image_condition_type is not None:
        return (
            "it is an image-to-video model, whose first frame no cache holds as it takes it: take"
            " HunyuanVideo's text-to-video model"
        )
    return None


FAMILY = VelocityFamily(
    _velocity,
    _unsupported,
    text_channels=lambda transformer: transformer.config.text_embed_dim,
    patch_size=lambda transformer: (
        transformer.config.patch_size_t,
        transformer.config.patch_size,
        transformer.config.patch_size,
    ),
)
