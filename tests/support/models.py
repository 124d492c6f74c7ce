"""A small transformer and its inputs."""

from __future__ import annotations

from typing import Any

import torch
from tests.support.layers import record_fields

from freqformer import FreqFormerTransformer3DModel
from freqformer.config import LAYER_FIELDS

FREQUENCY = {
    "tile": [2, 2, 3],
    "compression": 16,
    "window": [1, 1, 1],
    "mid_tiles": 2,
    "summary_tokens": 6,
}
SIZE = {
    "in_channels": 2,
    "patch_size": (1, 2, 2),
    "num_layers": 2,
    "num_attention_heads": 3,
    "attention_head_dim": 8,
}
TIMESTEP = torch.tensor([200.0, 900.0])


def settings_of(**options: Any) -> dict[str, Any]:
    """Settings of a small model; its routers choose where nothing is said.

    Args:
        options: settings, and those fields of `frequency` that say who has which band.
    """
    layers = {name: options.pop(name) for name in LAYER_FIELDS if name in options}
    frequency = options.pop("frequency", FREQUENCY)
    if isinstance(frequency, dict):
        frequency = {**record_fields(layers), **frequency}
    return {**SIZE, "frequency": frequency, **options}


def make_model(**options: Any) -> FreqFormerTransformer3DModel:
    """A small model. All weights are random: a new model starts as the identity, which would hide
    mistakes."""
    torch.manual_seed(0)
    model = FreqFormerTransformer3DModel(**settings_of(**options))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "router" not in name:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def make_video(frames: int = 5, height: int = 8, width: int = 12) -> torch.Tensor:
    return torch.randn(2, 2, frames, height, width, generator=torch.Generator().manual_seed(1))
