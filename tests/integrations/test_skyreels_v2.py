"""Frequency attention in a small random SkyReels V2 model: exact where it should be, and taken back
without a trace."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from diffusers.models.transformers.transformer_skyreels_v2 import SkyReelsV2Transformer3DModel
from tests.support.enabled_models import HIGH, LOW, SIZE, Call, differs, every_check, uniform

from freqformer.integrations.diffusers import enable_frequency_attention


@pytest.fixture
def model() -> Any:
    torch.manual_seed(0)
    model = SkyReelsV2Transformer3DModel(
        num_attention_heads=2,
        attention_head_dim=24,
        in_channels=4,
        out_channels=4,
        text_dim=16,
        freq_dim=32,
        ffn_dim=64,
        num_layers=3,
        rope_max_seq_len=32,
    )
    return model.eval()


def call(
    model: Any,
    timestep: Sequence[float] | torch.Tensor = (500.0,),
    size: tuple[int, int, int] = SIZE,
    **more: Any,
) -> torch.Tensor:
    draw = torch.Generator().manual_seed(1)
    frames, height, width = size
    samples = len(timestep)
    video = torch.randn(1, 4, frames, 2 * height, 2 * width, generator=draw)
    return model(
        hidden_states=video.expand(samples, -1, -1, -1, -1),
        timestep=torch.as_tensor(timestep),
        encoder_hidden_states=torch.randn(1, 7, 16, generator=draw).expand(samples, -1, -1),
        **more,
    ).sample


@every_check
def test_as_every_family(model: Any, check: Call) -> None:
    check(model, call)


def test_frames_of_different_noise_count_as_the_noisiest(model: Any) -> None:
    """As in diffusion forcing."""
    by_frame = torch.tensor([[0.0, 0.0, 300.0, 600.0, 900.0]])
    before = call(model, by_frame, enable_diffusion_forcing=True)
    with enable_frequency_attention(model, uniform(model, [LOW, HIGH])):
        assert differs(call(model, by_frame, enable_diffusion_forcing=True), before)
        noise = model.blocks[0].attn1.processor
        seen = []
        noise.run = lambda attn, given: seen.append(noise.current.call.noise_level) or given[0]
        call(model, by_frame, enable_diffusion_forcing=True)
    assert float(seen[0]) == pytest.approx(0.9)


def test_causal_blocks_are_refused_at_the_call(model: Any) -> None:
    model.register_to_config(num_frame_per_block=5)
    with (
        enable_frequency_attention(model, uniform(model, [LOW, HIGH])),
        pytest.raises(ValueError, match="given attention_mask, and none is allowed"),
    ):
        call(model)
