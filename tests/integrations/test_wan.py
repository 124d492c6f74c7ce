"""Frequency attention in a small random Wan model: exact where it should be, and taken back without a trace."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
from tests.support.enabled_models import (
    DENSE,
    HEADS,
    HIGH,
    LOW,
    NUM_TOKENS,
    SIZE,
    Call,
    differs,
    every_check,
    make_table,
    uniform,
)

from freqformer.integrations.diffusers import enable_frequency_attention

LAYERS = 3


@pytest.fixture
def model() -> Any:
    torch.manual_seed(0)
    model = WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=HEADS,
        attention_head_dim=24,
        in_channels=4,
        out_channels=4,
        text_dim=16,
        freq_dim=32,
        ffn_dim=64,
        num_layers=LAYERS,
        rope_max_seq_len=32,
    )
    return model.eval()


def call(
    model: Any, timestep: Sequence[float] | torch.Tensor = (500.0,), size: tuple[int, int, int] = SIZE
) -> torch.Tensor:
    draw = torch.Generator().manual_seed(1)
    frames, height, width = size
    video = torch.randn(1, 4, frames, 2 * height, 2 * width, generator=draw).expand(len(timestep), -1, -1, -1, -1)
    text = torch.randn(1, 7, 16, generator=draw).expand(len(timestep), -1, -1)
    return model(hidden_states=video, timestep=torch.as_tensor(timestep), encoder_hidden_states=text).sample


@every_check
def test_as_every_family(model: Any, check: Call) -> None:
    check(model, call)


def test_timesteps_by_token_count_as_the_largest(model: Any) -> None:
    by_token = torch.full((1, NUM_TOKENS), 900.0)
    by_token[:, :54] = 0.0
    table = make_table([[[DENSE] * HEADS] * LAYERS, [[LOW, LOW]] * LAYERS])
    before = call(model, by_token)
    with enable_frequency_attention(model, table):
        assert differs(call(model, by_token), before)


def test_other_models_are_refused(model: Any) -> None:
    with pytest.raises(ValueError, match=r"transformer is a Linear; WanTransformer3DModel, .* are allowed"):
        enable_frequency_attention(torch.nn.Linear(1, 1), uniform(model, [LOW, HIGH]))


def test_fused_projections_are_refused_at_the_call(model: Any) -> None:
    with enable_frequency_attention(model, uniform(model, [LOW, HIGH])):
        model.blocks[0].attn1.fused_projections = True
        with pytest.raises(ValueError, match="given fused projections, and none is allowed: call unfuse"):
            call(model)
