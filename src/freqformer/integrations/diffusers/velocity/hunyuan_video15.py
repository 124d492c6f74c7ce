"""HunyuanVideo 1.5: text by Qwen2.5-VL and by ByT5, and of text to video nothing where a first
frame and its view would be."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from freqformer.integrations.diffusers.velocity.call import (
    VelocityCall,
    VelocityFamily,
    VelocitySettings,
)

NAME = "HunyuanVideo15Transformer3DModel"
IMAGE_TOKENS = 729
"""`vision_num_semantic_tokens` of its pipeline."""


def _velocity(transformer: Any, call: VelocityCall, _settings: VelocitySettings) -> Tensor:
    call.refuse_images(NAME)
    call.refuse_pooled(NAME)
    if call.glyph_embeds is None or call.glyph_mask is None:
        raise ValueError(
            f"glyph_embeds and glyph_mask are missing, and a {NAME} is told the text by two"
            f" encoders; (B, tokens, {transformer.config.text_embed_2_dim}) and (B, tokens) are"
            " allowed: make the cache with --text-encoder and the whole pipeline's folder"
        )
    latents, embeds, mask = call.latents, call.prompt_embeds, call.prompt_attention_mask
    batch, channels, *size = latents.shape
    return transformer(
        hidden_states=torch.cat([latents, latents.new_zeros(batch, channels + 1, *size)], 1),
        timestep=call.timestep.to(latents),
        encoder_hidden_states=embeds,
        encoder_attention_mask=embeds.new_ones(embeds.shape[:2])
        if mask is None
        else mask.to(embeds),
        encoder_hidden_states_2=call.glyph_embeds,
        encoder_attention_mask_2=call.glyph_mask,
        image_embeds=embeds.new_zeros(batch, IMAGE_TOKENS, transformer.config.image_embed_dim),
        return_dict=False,
    )[0]


def _unsupported(transformer: Any, _settings: VelocitySettings) -> str | None:
    config = transformer.config
    if config.task_type != "t2v":
        return (
            f"its task_type is {config.task_type!r}, and no cache holds a first frame as it takes"
            " it: take HunyuanVideo 1.5's text-to-video model"
        )
    if config.use_meanflow:
        return "it learned steps of two noise levels (use_meanflow): take the model without"
    return None


FAMILY = VelocityFamily(
    _velocity,
    _unsupported,
    latent_channels=lambda transformer: transformer.config.out_channels,
    text_channels=lambda transformer: transformer.config.text_embed_dim,
    patch_size=lambda transformer: (
        transformer.config.patch_size_t,
        transformer.config.patch_size,
        transformer.config.patch_size,
    ),
    takes_glyphs=True,
)
