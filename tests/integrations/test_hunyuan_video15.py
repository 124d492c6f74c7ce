"""Frequency attention in a small random HunyuanVideo 1.5 model: exact where it should be, and taken
back without a trace."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from tests.support.enabled_models import EVERY, LOW, MID, SIZE, Call, every_check, uniform
from tests.support.tiny_transformers import hunyuan_video15

from freqformer.integrations.diffusers import enable_frequency_attention

WORDS, GLYPHS, PICTURE = 6, 4, 3
"""Tokens of the two text encoders and of the image."""


@pytest.fixture
def model() -> Any:
    return hunyuan_video15()


def call(
    model: Any,
    timestep: Sequence[float] = (500.0,),
    size: tuple[int, int, int] = SIZE,
    lengths: Sequence[int] | None = None,
    image: bool = False,
) -> torch.Tensor:
    """Lengths of the text by sample, 4 of its 6 tokens by default; an image that is 0 is hidden."""
    draw = torch.Generator().manual_seed(1)
    samples = len(timestep)
    shapes = {
        "hidden_states": (4, *size),
        "encoder_hidden_states": (WORDS, 16),
        "encoder_hidden_states_2": (GLYPHS, 8),
        "image_embeds": (PICTURE, 12),
    }
    drawn = {name: torch.randn(1, *shape, generator=draw) for name, shape in shapes.items()}
    drawn["image_embeds"] *= image
    seen = torch.arange(WORDS) < torch.tensor(lengths or [4] * samples)[:, None]
    glyphs = torch.arange(GLYPHS) < torch.tensor([[2]] * samples)
    return model(
        timestep=torch.tensor(timestep),
        encoder_attention_mask=seen.long(),
        encoder_attention_mask_2=glyphs.long(),
        **{name: x.expand(samples, *x.shape[1:]) for name, x in drawn.items()},
    ).sample


@every_check
def test_as_every_family(model: Any, check: Call) -> None:
    check(model, call)


@pytest.mark.parametrize("image", [False, True])
def test_hidden_text_is_as_unseen_as_in_the_model(model: Any, image: bool) -> None:
    given: dict[str, Any] = {
        "timestep": (500.0, 20.0, 900.0),
        "lengths": (3, WORDS, 1),
        "image": image,
    }
    before = call(model, **given)
    with enable_frequency_attention(model, uniform(model, [MID, MID], EVERY)):
        after = call(model, **given)
        assert not torch.allclose(call(model, given["timestep"], image=image), after, atol=1e-3)
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-5)


def test_the_refiner_of_text_is_left_alone(model: Any) -> None:
    refiner = [
        block.attn.processor for block in model.context_embedder.token_refiner.refiner_blocks
    ]
    with enable_frequency_attention(model, uniform(model, [LOW, LOW])) as handle:
        assert [
            block.attn.processor for block in model.context_embedder.token_refiner.refiner_blocks
        ] == refiner
        assert handle.layer_names == [f"transformer_blocks.{place}.attn" for place in range(3)]
