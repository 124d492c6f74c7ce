"""Frequency attention in a small random SkyReels V2 model: exact where it should be, and taken back
without a trace."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from diffusers.models.transformers.transformer_skyreels_v2 import SkyReelsV2Transformer3DModel
from tests.support.enabled_models import HIGH, LOW, SIZE, Call, differs, every_check, uniform
from tests.support.tiny_transformers import WAN, wan_inputs

from freqformer.integrations.diffusers import enable_frequency_attention


@pytest.fixture
def model() -> Any:
    torch.manual_seed(0)
    return SkyReelsV2Transformer3DModel(**WAN).eval()


def call(
    model: Any,
    timestep: Sequence[float] | torch.Tensor = (500.0,),
    size: tuple[int, int, int] = SIZE,
    **more: Any,
) -> torch.Tensor:
    return model(**wan_inputs(timestep, size), **more).sample


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
