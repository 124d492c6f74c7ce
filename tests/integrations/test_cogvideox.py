"""Frequency attention in small random CogVideoX models: exact where it should be, and taken back
without a trace."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from diffusers.models.embeddings import get_3d_rotary_pos_embed
from diffusers.models.transformers.cogvideox_transformer_3d import CogVideoXTransformer3DModel
from tests.support.enabled_models import HEADS, HIGH, LOW, SIZE, Call, every_check, uniform

from freqformer.integrations.diffusers import enable_frequency_attention

VARIANTS = {
    "1.0, 2B": {},
    "1.0, 5B": {"use_rotary_positional_embeddings": True},
    "1.5": {"use_rotary_positional_embeddings": True, "patch_size_t": 2, "patch_bias": False},
}
HEAD_DIM = 16


def make(variant: str) -> Any:
    torch.manual_seed(0)
    model = CogVideoXTransformer3DModel(
        num_attention_heads=HEADS,
        attention_head_dim=HEAD_DIM,
        in_channels=4,
        out_channels=4,
        time_embed_dim=32,
        text_embed_dim=16,
        num_layers=3,
        sample_width=18,
        sample_height=12,
        sample_frames=17,
        max_text_seq_length=7,
        **VARIANTS[variant],
    )
    return model.eval()


@pytest.fixture(params=VARIANTS)
def model(request: pytest.FixtureRequest) -> Any:
    return make(request.param)


def call(
    model: Any,
    timestep: Sequence[float] = (500.0,),
    size: tuple[int, int, int] = SIZE,
    **changed: Any,
) -> torch.Tensor:
    draw = torch.Generator().manual_seed(1)
    frames, height, width = size
    latents = torch.randn(
        1, frames * (model.config.patch_size_t or 1), 4, 2 * height, 2 * width, generator=draw
    )
    rotary = None
    if model.config.use_rotary_positional_embeddings:
        rotary = get_3d_rotary_pos_embed(
            HEAD_DIM, ((0, 0), (height, width)), (height, width), frames
        )
    arguments = {
        "hidden_states": latents.expand(len(timestep), -1, -1, -1, -1),
        "encoder_hidden_states": torch.randn(1, 7, 16, generator=draw).expand(
            len(timestep), -1, -1
        ),
        "timestep": torch.tensor(timestep),
        "image_rotary_emb": rotary,
    }
    return model(**arguments | changed).sample


@every_check
def test_as_every_family(model: Any, check: Call) -> None:
    check(model, call)


def test_attention_masks_are_refused_at_the_call() -> None:
    model = make("1.0, 2B")
    with (
        enable_frequency_attention(model, uniform(model, [LOW, HIGH])),
        pytest.raises(ValueError, match="given attention_mask, and none is allowed: pass none"),
    ):
        call(model, attention_kwargs={"attention_mask": torch.zeros(1, 1, 277)})


def test_fused_projections_are_refused_before_and_after() -> None:
    model = make("1.0, 2B")
    with enable_frequency_attention(model, uniform(model, [LOW, HIGH])):
        model.fuse_qkv_projections()
        with pytest.raises(
            ValueError, match="was given a FusedCogVideoXAttnProcessor2_0 after frequency attention"
        ):
            call(model)
        model.unfuse_qkv_projections()
        call(model)
    model.fuse_qkv_projections()
    with pytest.raises(
        ValueError,
        match="has a FusedCogVideoXAttnProcessor2_0; CogVideoXAttnProcessor2_0 is allowed",
    ):
        enable_frequency_attention(model, uniform(model, [LOW, HIGH]))
