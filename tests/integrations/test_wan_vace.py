"""Frequency attention in a small random Wan VACE model: exact where it should be, and taken back
without a trace."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from diffusers.models.transformers.transformer_wan_vace import WanVACETransformer3DModel
from tests.support.enabled_models import HIGH, LOW, SIZE, Call, every_check, uniform

from freqformer.integrations.diffusers import enable_frequency_attention


@pytest.fixture
def model() -> Any:
    torch.manual_seed(0)
    model = WanVACETransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=24,
        in_channels=4,
        out_channels=4,
        text_dim=16,
        freq_dim=32,
        ffn_dim=64,
        num_layers=3,
        rope_max_seq_len=32,
        vace_layers=[0, 2],
        vace_in_channels=6,
    )
    return model.eval()


def call(
    model: Any, timestep: Sequence[float] = (500.0,), size: tuple[int, int, int] = SIZE
) -> torch.Tensor:
    draw = torch.Generator().manual_seed(1)
    frames, height, width = size
    samples, sides = len(timestep), (frames, 2 * height, 2 * width)
    return model(
        hidden_states=torch.randn(1, 4, *sides, generator=draw).expand(samples, -1, -1, -1, -1),
        timestep=torch.tensor(timestep),
        encoder_hidden_states=torch.randn(1, 7, 16, generator=draw).expand(samples, -1, -1),
        control_hidden_states=torch.randn(1, 6, *sides, generator=draw).expand(
            samples, -1, -1, -1, -1
        ),
    ).sample


@every_check
def test_as_every_family(model: Any, check: Call) -> None:
    check(model, call)


def test_layers_of_the_control_come_behind_the_ones_they_help(model: Any) -> None:
    with enable_frequency_attention(model, uniform(model, [LOW, HIGH])) as handle:
        assert handle.layer_names == [
            "blocks.0.attn1",
            "vace_blocks.0.attn1",
            "blocks.1.attn1",
            "blocks.2.attn1",
            "vace_blocks.1.attn1",
        ]
