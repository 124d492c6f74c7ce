"""Frequency attention in a small random FramePack model: past and text are exact."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from diffusers.models.transformers.transformer_hunyuan_video_framepack import (
    HunyuanVideoFramepackTransformer3DModel,
)
from tests.support.enabled_models import EVERY, HIGH, LOW, MID, SIZE, Call, every_check, uniform

from freqformer.grid import Grid
from freqformer.integrations.diffusers import enable_frequency_attention

WORDS = 7
SEEN_WORDS = 5
PICTURE = 3
PAST = {"latents_clean": 2, "latents_history_2x": 2, "latents_history_4x": 5}
"""Latent frames."""


@pytest.fixture
def model() -> Any:
    torch.manual_seed(0)
    model = HunyuanVideoFramepackTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=2,
        num_single_layers=2,
        num_refiner_layers=1,
        text_embed_dim=16,
        pooled_projection_dim=8,
        rope_axes_dim=(4, 6, 6),
        has_image_proj=True,
        image_proj_dim=8,
        has_clean_x_embedder=True,
    )
    return model.eval()


def call(
    model: Any, timestep: Sequence[float] = (500.0,), size: tuple[int, int, int] = SIZE
) -> torch.Tensor:
    """One sample has its padding cut off, several have it hidden."""
    frames, height, width = size
    samples = len(timestep)
    draw = torch.Generator().manual_seed(1)
    given: dict[str, torch.Tensor] = {
        "hidden_states": torch.randn(1, 4, frames, 2 * height, 2 * width, generator=draw),
        "encoder_hidden_states": torch.randn(1, WORDS, 16, generator=draw),
        "encoder_attention_mask": (torch.arange(WORDS)[None] < SEEN_WORDS).long(),
        "pooled_projections": torch.randn(1, 8, generator=draw),
        "image_embeds": torch.randn(1, PICTURE, 8, generator=draw),
        "guidance": torch.full((1,), 6000.0),
    }
    places: dict[str, torch.Tensor] = {}
    first = 0
    for name, length in PAST.items():
        given[name] = torch.randn(1, 4, length, 2 * height, 2 * width, generator=draw)
        places[f"indices_{name}"] = torch.arange(first, first + length)
        first += length
    places["indices_latents"] = torch.arange(first, first + frames)
    expanded = {name: x.expand(samples, *x.shape[1:]) for name, x in given.items()}
    return model(timestep=torch.tensor(timestep), **expanded | places).sample


@every_check
def test_as_every_family(model: Any, check: Call) -> None:
    check(model, call)


@pytest.mark.parametrize(("samples", "words"), [(1, SEEN_WORDS), (2, WORDS)])
def test_past_and_text_are_exact(model: Any, samples: int, words: int) -> None:
    _, height, width = SIZE
    past = 2 * height * width + -(-height // 2) * -(-width // 2)
    past += 2 * -(-height // 4) * -(-width // 4)
    timestep = [500.0] * samples
    before = call(model, timestep)
    with enable_frequency_attention(model, uniform(model, [MID, MID], EVERY)):
        torch.testing.assert_close(call(model, timestep), before, rtol=1e-4, atol=1e-5)
    with enable_frequency_attention(model, uniform(model, [LOW, HIGH])):
        call(model, timestep)
        current = model.transformer_blocks[0].attn.processor.current
        assert current.banded == (Grid(*SIZE), past + words + PICTURE)


def test_the_refiner_of_text_is_left_alone(model: Any) -> None:
    own = [block.attn.processor for block in model.context_embedder.token_refiner.refiner_blocks]
    with enable_frequency_attention(model, uniform(model, [LOW, HIGH])) as handle:
        assert handle.layer_names == [
            "transformer_blocks.0.attn",
            "transformer_blocks.1.attn",
            "single_transformer_blocks.0.attn",
            "single_transformer_blocks.1.attn",
        ]
        blocks = model.context_embedder.token_refiner.refiner_blocks
        assert [block.attn.processor for block in blocks] == own
