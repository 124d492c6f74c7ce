"""Frequency attention in a small random LTX-Video model: exact where it should be, and taken back
without a trace."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from diffusers.models.transformers.transformer_ltx import LTXVideoTransformer3DModel
from tests.support.enabled_models import (
    DENSE,
    EVERY,
    HEADS,
    HIGH,
    LOW,
    MID,
    NUM_TOKENS,
    SIZE,
    Call,
    differs,
    every_check,
    make_table,
    uniform,
)

from freqformer.grid import Grid
from freqformer.integrations.diffusers import enable_frequency_attention

LAYERS = 3


@pytest.fixture
def model() -> Any:
    torch.manual_seed(0)
    model = LTXVideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=HEADS,
        attention_head_dim=24,
        cross_attention_dim=48,
        num_layers=LAYERS,
        caption_channels=16,
    )
    return model.eval()


def call(
    model: Any,
    timestep: Sequence[float] | torch.Tensor = (500.0,),
    size: tuple[int, int, int] = SIZE,
    **changed: Any,
) -> torch.Tensor:
    draw = torch.Generator().manual_seed(1)
    frames, height, width = size
    arguments = {
        "hidden_states": torch.randn(1, frames * height * width, 4, generator=draw).expand(
            len(timestep), -1, -1
        ),
        "encoder_hidden_states": torch.randn(1, 7, 16, generator=draw).expand(
            len(timestep), -1, -1
        ),
        "timestep": torch.as_tensor(timestep),
        "encoder_attention_mask": torch.ones(len(timestep), 7),
        "num_frames": frames,
        "height": height,
        "width": width,
    }
    return model(**arguments | changed).sample


@every_check
def test_as_every_family(model: Any, check: Call) -> None:
    check(model, call)


def test_timesteps_by_token_count_as_the_largest(model: Any) -> None:
    """As in image to video, whose first frame is given."""
    by_token = torch.full((1, NUM_TOKENS), 900.0)
    by_token[:, :54] = 0.0
    table = make_table([[[DENSE] * HEADS] * LAYERS, [[LOW, LOW]] * LAYERS])
    before = call(model, by_token)
    with enable_frequency_attention(model, table):
        assert differs(call(model, by_token), before)


def test_arguments_by_place_are_read_as_those_by_name(model: Any) -> None:
    draw = torch.Generator().manual_seed(1)
    video, text = (
        torch.randn(1, NUM_TOKENS, 4, generator=draw),
        torch.randn(1, 7, 16, generator=draw),
    )
    with enable_frequency_attention(model, uniform(model, [LOW, HIGH])):
        assert torch.equal(
            model(video, text, torch.tensor([500.0]), torch.ones(1, 7), *SIZE).sample, call(model)
        )


def test_calls_without_a_grid_of_all_tokens_are_refused(model: Any) -> None:
    with enable_frequency_attention(model, uniform(model, [LOW, HIGH])):
        with pytest.raises(
            ValueError, match=r"num_frames, height, width of the transformer's call is None"
        ):
            call(model, num_frames=None, height=None, width=None)
        with pytest.raises(ValueError, match=f"query has {NUM_TOKENS} tokens"):
            call(model, num_frames=SIZE[0] - 1, video_coords=torch.zeros(1, 3, NUM_TOKENS))


@pytest.mark.parametrize("keyframes", [0, 1, 2])
def test_the_grid_is_found_behind_keyframes(model: Any, keyframes: int) -> None:
    """`LTXConditionPipeline` passes coordinates alone, of keyframes and then of the video; the
    first frame's time is 0, and the keyframes' are in its middle."""
    frames, height, width = SIZE
    times = (8 * torch.arange(frames) - 7).clamp(0)
    places = 32 * torch.cartesian_prod(torch.arange(height), torch.arange(width))
    rows = [
        torch.cat([torch.full((len(places), 1), int(time)), places], 1)
        for time in (*times[[2] * keyframes], *times)
    ]
    draw = torch.Generator().manual_seed(2)
    given = {
        "hidden_states": torch.randn(1, sum(map(len, rows)), 4, generator=draw),
        "video_coords": torch.cat(rows).T[None].float(),
        "num_frames": None,
        "height": None,
        "width": None,
    }
    before = call(model, **given)
    with enable_frequency_attention(model, uniform(model, [MID, MID], EVERY)) as handle:
        torch.testing.assert_close(call(model, **given), before, rtol=1e-4, atol=1e-5)
        assert handle.density == pytest.approx(1.0)
    with enable_frequency_attention(model, uniform(model, [LOW, HIGH])):
        assert differs(call(model, **given), before)
        seen = model.transformer_blocks[0].attn1.processor.current.banded
    assert seen == (Grid(*SIZE), keyframes * len(places))


def test_fused_projections_are_refused_at_the_call(model: Any) -> None:
    model.fuse_qkv_projections()
    with enable_frequency_attention(model, uniform(model, [LOW, HIGH])):
        with pytest.raises(
            ValueError, match="given fused projections, and none is allowed: call unfuse"
        ):
            call(model)
        model.unfuse_qkv_projections()
        call(model)
