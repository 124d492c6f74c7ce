"""Frequency attention in a small random Wan Animate model: exact where it should be, and taken back
without a trace."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from diffusers.models.transformers.transformer_wan_animate import WanAnimateTransformer3DModel
from tests.support.enabled_models import HIGH, LOW, SIZE, Call, every_check, uniform
from tests.support.tiny_transformers import ANIMATED

from freqformer.integrations.diffusers import enable_frequency_attention


@pytest.fixture
def model() -> Any:
    torch.manual_seed(0)
    model = WanAnimateTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=24,
        in_channels=12,
        latent_channels=4,
        out_channels=4,
        text_dim=16,
        freq_dim=32,
        ffn_dim=32,
        num_layers=2,
        rope_max_seq_len=32,
        **ANIMATED,
    )
    return model.eval()


def call(
    model: Any, timestep: Sequence[float] = (500.0,), size: tuple[int, int, int] = SIZE
) -> torch.Tensor:
    """The first frame is the picture of reference."""
    draw = torch.Generator().manual_seed(1)
    frames, height, width = size
    samples, moving = len(timestep), frames - 1
    shapes = {
        "hidden_states": (12, frames, 2 * height, 2 * width),
        "pose_hidden_states": (4, moving, 2 * height, 2 * width),
        "face_pixel_values": (3, 4 * moving - 3, 16, 16),
        "encoder_hidden_states": (7, 16),
    }
    drawn = {name: torch.randn(1, *shape, generator=draw) for name, shape in shapes.items()}
    return model(
        timestep=torch.tensor(timestep),
        **{name: x.expand(samples, *x.shape[1:]) for name, x in drawn.items()},
    ).sample


@every_check
def test_as_every_family(model: Any, check: Call) -> None:
    check(model, call)


def test_attention_to_the_face_is_left_alone(model: Any) -> None:
    own = [block.processor for block in model.face_adapter]
    with enable_frequency_attention(model, uniform(model, [LOW, HIGH])) as handle:
        assert handle.layer_names == ["blocks.0.attn1", "blocks.1.attn1"]
        assert [block.processor for block in model.face_adapter] == own
