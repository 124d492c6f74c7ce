"""Which transformers have a velocity, and what is said of the others."""

from __future__ import annotations

import pytest
import torch
from tests.support.tiny_pipelines import tiny_wan_transformer

from freqformer.integrations.diffusers.families import FAMILIES
from freqformer.integrations.diffusers.velocity import (
    VELOCITIES,
    VelocityModel,
    VelocitySettings,
    velocity_family_of,
)
from freqformer.integrations.diffusers.velocity.families import REFUSED, velocity_family_named


def test_every_known_transformer_is_trained_or_refused_by_name() -> None:
    assert VELOCITIES.keys() | REFUSED.keys() == FAMILIES.keys()
    assert not VELOCITIES.keys() & REFUSED.keys()


def test_others_are_refused_with_the_reason() -> None:
    known = "WanTransformer3DModel, .* are allowed: train one of Wan"
    with pytest.raises(ValueError, match=f"LTX2.*, and it needs sound beside .*{known}"):
        velocity_family_named("LTX2VideoTransformer3DModel")
    with pytest.raises(ValueError, match=f"transformer is a Linear; {known}"):
        velocity_family_of(torch.nn.Linear(1, 1))


def test_channels_of_another_model_are_refused() -> None:
    model = VelocityModel(tiny_wan_transformer(), VelocitySettings())
    for latents, text in ((4, 16), (16, 8)):
        with pytest.raises(ValueError, match=f"latents have {latents} channels and text {text};"):
            model(torch.zeros(1, latents, 2, 4, 4), torch.ones(1), torch.zeros(1, 3, text))
    for name, message in (
        ("depth", r"depth is given; condition, .* are allowed"),
        ("glyph_mask", r"glyph_mask is given, which a Wan.* doesn't take"),
        ("sound", r"sound is given, which a Wan.* doesn't take; None is allowed"),
    ):
        with pytest.raises(ValueError, match=message):
            model(
                torch.zeros(1, 16, 2, 4, 4),
                torch.ones(1),
                torch.zeros(1, 3, 16),
                **{name: torch.zeros(1)},
            )
    with pytest.raises(ValueError, match="return_dict is True"):
        model(torch.zeros(1, 16, 2, 4, 4), torch.ones(1), torch.zeros(1, 3, 16), return_dict=True)


def test_sixteen_bits_and_gradients() -> None:
    """Latents keep their dtype outside of the transformer, and gradients reach its weights."""
    model = VelocityModel(tiny_wan_transformer(), VelocitySettings()).to(torch.bfloat16)
    latents = torch.randn(1, 16, 2, 4, 4)
    (velocity,) = model(latents, torch.tensor([500.0]), torch.randn(1, 3, 16))
    assert velocity.dtype == torch.float32
    velocity.square().mean().backward()
    grads = [weight.grad for weight in model.parameters()]
    assert sum(grad is not None and bool(grad.any()) for grad in grads) > len(grads) // 2


def test_settings_out_of_range_are_refused() -> None:
    for wrong in (
        {"fps": 0},
        {"compression": (0, 8)},
        {"text_length": 0},
    ):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            VelocitySettings(**wrong)  # type: ignore[arg-type]
