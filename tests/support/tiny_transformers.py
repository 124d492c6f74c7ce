"""Settings of small transformers of diffusers, and what Wan's kin are called with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers.models.transformers.transformer_hunyuan_video15 import (
    HunyuanVideo15Transformer3DModel,
)
from torch import Tensor

WAN: dict[str, Any] = {
    "num_attention_heads": 2,
    "attention_head_dim": 24,
    "in_channels": 4,
    "out_channels": 4,
    "text_dim": 16,
    "freq_dim": 32,
    "ffn_dim": 64,
    "num_layers": 3,
    "rope_max_seq_len": 32,
}
"""Of Wan and of models made from it."""
ANIMATED: dict[str, Any] = {
    "motion_encoder_channel_sizes": {"4": 8, "8": 8, "16": 8},
    "motion_encoder_size": 16,
    "motion_style_dim": 8,
    "motion_dim": 4,
    "motion_encoder_dim": 16,
    "face_encoder_hidden_dim": 16,
    "face_encoder_num_heads": 2,
    "inject_face_latents_blocks": 2,
}
"""What Wan Animate has besides."""
LTX: dict[str, Any] = {
    "in_channels": 4,
    "out_channels": 4,
    "num_attention_heads": 2,
    "attention_head_dim": 24,
    "cross_attention_dim": 48,
    "num_layers": 2,
    "caption_channels": 16,
}
"""Of LTX-Video."""


def wan_inputs(timestep: Sequence[float] | Tensor, size: tuple[int, int, int]) -> dict[str, Any]:
    """The same random video and text for every sample, a timestep each.

    Args:
        timestep: of every sample.
        size: frames, height and width in tokens.
    """
    draw = torch.Generator().manual_seed(1)
    frames, height, width = size
    samples = len(timestep)
    video = torch.randn(1, 4, frames, 2 * height, 2 * width, generator=draw)
    text = torch.randn(1, 7, 16, generator=draw)
    return {
        "hidden_states": video.expand(samples, -1, -1, -1, -1),
        "timestep": torch.as_tensor(timestep),
        "encoder_hidden_states": text.expand(samples, -1, -1),
    }


def hunyuan_video15() -> HunyuanVideo15Transformer3DModel:
    """Random weights of seed 0."""
    torch.manual_seed(0)
    return HunyuanVideo15Transformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=3,
        num_refiner_layers=1,
        text_embed_dim=16,
        text_embed_2_dim=8,
        image_embed_dim=12,
        rope_axes_dim=(4, 6, 6),
        target_size=16,
    ).eval()


def processors_of(model: Any) -> dict[str, Any]:
    """Of all attention layers, self-attention and others, by name."""
    layers = model.named_modules()
    return {name: layer.processor for name, layer in layers if hasattr(layer, "processor")}
