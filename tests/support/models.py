"""A small transformer and its inputs."""

from __future__ import annotations

import torch

from freqformer import FreqFormerTransformer3DModel

FREQUENCY = {
    "tile": [2, 2, 3],
    "compression": 16,
    "window": [1, 1, 1],
    "mid_tiles": 2,
    "summary_tokens": 6,
}
SIZE = {"in_channels": 2, "patch_size": (1, 2, 2), "num_layers": 2, "num_heads": 3, "head_dim": 8}
TIMESTEP = torch.tensor([200.0, 900.0])


def settings_of(attention: str | None) -> dict:
    """Settings of a small model; dense attention takes no routing."""
    routing = {} if attention == "dense" else {"routing": "learned"}
    return {**SIZE, "frequency": FREQUENCY, **routing}


def make_model(**options) -> FreqFormerTransformer3DModel:
    """A small model. All weights are random: a new model starts as the identity, which would hide
    mistakes."""
    torch.manual_seed(0)
    model = FreqFormerTransformer3DModel(**settings_of(options.get("attention")) | options)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "router" not in name:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def make_video(frames: int = 5, height: int = 8, width: int = 12) -> torch.Tensor:
    return torch.randn(2, 2, frames, height, width, generator=torch.Generator().manual_seed(1))
