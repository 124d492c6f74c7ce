"""Frequency attention in small random LTX-2 models: exact where it should be, and taken back
without a trace."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from diffusers.models.transformers.transformer_ltx2 import (
    AudioVisualModelOutput,
    LTX2VideoTransformer3DModel,
)
from tests.support.enabled_models import (
    EVERY,
    HIGH,
    LOW,
    MID,
    SIZE,
    Call,
    differs,
    every_check,
    uniform,
)

from freqformer.integrations.diffusers import enable_frequency_attention

SOUND = 9
VARIANTS: dict[str, dict[str, Any]] = {
    "2.0": {},
    "2.3": {"rope_type": "split", "gated_attn": True, "perturbed_attn": True},
}


@pytest.fixture(params=VARIANTS)
def model(request: pytest.FixtureRequest) -> Any:
    torch.manual_seed(0)
    return make_model(VARIANTS[request.param])


def make_model(variant: dict[str, Any]) -> Any:
    model = LTX2VideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=16,
        cross_attention_dim=32,
        audio_in_channels=4,
        audio_out_channels=4,
        audio_num_attention_heads=2,
        audio_attention_head_dim=8,
        audio_cross_attention_dim=16,
        num_layers=3,
        caption_channels=16,
        rope_double_precision=False,
        **variant,
    )
    return model.eval()


def run(
    model: Any,
    timestep: Sequence[float] = (500.0,),
    size: tuple[int, int, int] = SIZE,
    keyframe: int = 0,
    **more: Any,
) -> Any:
    """Video and audio, as pipelines ask for them; `keyframe` tokens are appended to the video's."""
    draw = torch.Generator().manual_seed(1)
    frames, height, width = size
    samples, tokens = len(timestep), frames * height * width
    shapes = {
        "hidden_states": (tokens + keyframe, 4),
        "audio_hidden_states": (SOUND, 4),
        "encoder_hidden_states": (7, 16),
        "audio_encoder_hidden_states": (7, 16),
    }
    drawn = {name: torch.randn(1, *shape, generator=draw) for name, shape in shapes.items()}
    coords = model.rope.prepare_video_coords(samples, frames, height, width, torch.device("cpu"))
    sample, audio_sample = model(
        return_dict=False,
        timestep=torch.tensor(timestep),
        num_frames=frames,
        height=height,
        width=width,
        audio_num_frames=SOUND,
        video_coords=torch.cat([coords, coords[:, :, :keyframe]], 2),
        **{name: x.expand(samples, *x.shape[1:]) for name, x in drawn.items()},
        **more,
    )
    return AudioVisualModelOutput(sample, audio_sample)


def call(
    model: Any, timestep: Sequence[float] = (500.0,), size: tuple[int, int, int] = SIZE
) -> torch.Tensor:
    return run(model, timestep, size).sample


@every_check
def test_as_every_family(model: Any, check: Call) -> None:
    check(model, call)


def test_attention_of_audio_and_across_is_left_alone(model: Any) -> None:
    before = {
        name: processor
        for name, processor in model.attn_processors.items()
        if ".attn1." not in name or "audio" in name
    }
    with enable_frequency_attention(model, uniform(model, [LOW, HIGH])) as handle:
        assert handle.layer_names == [f"transformer_blocks.{place}.attn1" for place in range(3)]
        assert before.items() <= model.attn_processors.items()


def test_audio_is_exact_where_the_video_is(model: Any) -> None:
    before = run(model)
    with enable_frequency_attention(model, uniform(model, [MID, MID], EVERY)):
        after = run(model)
    torch.testing.assert_close(after.audio_sample, before.audio_sample, rtol=1e-4, atol=1e-5)


def test_keyframes_behind_the_video_are_exact(model: Any) -> None:
    before = run(model, keyframe=54)
    with enable_frequency_attention(model, uniform(model, [MID, MID], EVERY)):
        after = run(model, keyframe=54)
    torch.testing.assert_close(after.sample, before.sample, rtol=1e-4, atol=1e-5)
    with enable_frequency_attention(model, uniform(model, [LOW, HIGH])) as handle:
        assert differs(run(model, keyframe=54).sample, before.sample)
        with_keyframe = handle.density
        run(model)
        assert handle.density != with_keyframe


@pytest.mark.parametrize("mask", [None, (0.0, 1.0), (0.0, 0.0)])
def test_guidance_that_perturbs_some_blocks_is_as_in_the_model(mask: Any) -> None:
    torch.manual_seed(0)
    model = make_model(VARIANTS["2.3"])
    options = {
        "spatio_temporal_guidance_blocks": [1],
        "perturbation_mask": None if mask is None else torch.tensor(mask),
    }
    steps = (500.0, 500.0)
    before = run(model, steps, **options)
    with enable_frequency_attention(model, uniform(model, [MID, MID], EVERY)):
        after = run(model, steps, **options)
    torch.testing.assert_close(after.sample, before.sample, rtol=1e-4, atol=1e-5)


def test_masks_over_the_video_are_refused_at_the_call(model: Any) -> None:
    tokens = SIZE[0] * SIZE[1] * SIZE[2]
    with (
        enable_frequency_attention(model, uniform(model, [LOW, HIGH])),
        pytest.raises(ValueError, match="given attention_mask, and none is allowed"),
    ):
        run(model, video_self_attention_mask=torch.ones(1, tokens, tokens))
