"""Frequency attention in a small random Wan VACE model: exact where it should be, and taken back
without a trace."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from diffusers.models.transformers.transformer_wan_vace import WanVACETransformer3DModel
from tests.support.enabled_models import HIGH, LOW, SIZE, Call, every_check, uniform
from tests.support.tiny_transformers import WAN, wan_inputs

from freqformer.integrations.diffusers import enable_frequency_attention


@pytest.fixture
def model() -> Any:
    torch.manual_seed(0)
    return WanVACETransformer3DModel(**WAN, vace_layers=[0, 2], vace_in_channels=6).eval()


def call(
    model: Any, timestep: Sequence[float] = (500.0,), size: tuple[int, int, int] = SIZE
) -> torch.Tensor:
    frames, height, width = size
    draw = torch.Generator().manual_seed(2)
    control = torch.randn(1, 6, frames, 2 * height, 2 * width, generator=draw)
    return model(
        **wan_inputs(timestep, size),
        control_hidden_states=control.expand(len(timestep), -1, -1, -1, -1),
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
