"""Wan's velocity is what its own pipelines give their schedulers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.support.tiny_pipelines import tiny_wan_pipeline
from tests.support.tiny_video_pipelines import PipelineStep, steps_of, tiny_image_pipeline

from freqformer.integrations.diffusers.velocity import VelocityModel, VelocitySettings
from freqformer.models.text import TextModel

PROMPT = "a lighthouse in the storm"
OTHER = "cat"
SETTINGS = VelocitySettings(text_length=16)


def texts(pipe: Any, *prompts: str) -> tuple[torch.Tensor, torch.Tensor]:
    """As a cache holds them, padded to the longest alone."""
    return TextModel(pipe.tokenizer, pipe.text_encoder).encode_batch(prompts, 16)


def close(found: torch.Tensor, step: PipelineStep) -> None:
    torch.testing.assert_close(found, step.velocity, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_text_to_video() -> None:
    """Texts of two lengths in one batch, with zeros behind them as the pipeline has them."""
    pipe = tiny_wan_pipeline()
    first = steps_of(pipe, prompt=PROMPT)
    second = steps_of(tiny_wan_pipeline(), prompt=OTHER)
    model = VelocityModel(pipe.transformer, SETTINGS)
    embeds, mask = texts(pipe, PROMPT, OTHER)
    for one, other in zip(first, second, strict=True):
        (found,) = model(
            torch.cat([one.latents, other.latents]),
            torch.stack([one.timestep, other.timestep]),
            embeds + 7 * ~mask[..., None],  # what is hidden does not count
            mask,
        )
        close(found[:1], one)
        close(found[1:], other)


@torch.no_grad()
def test_it_is_noise_less_clip() -> None:
    """From one noise level to the next along it, as `objective` has them: x_t grows by the velocity
    times t."""
    pipe = tiny_wan_pipeline()
    step = steps_of(pipe, prompt=PROMPT)[1]
    model = VelocityModel(pipe.transformer, SETTINGS)
    before, after = step.sigmas
    assert float(step.timestep) == pytest.approx(1000 * before)
    (velocity,) = model(step.latents, step.timestep[None], *texts(pipe, PROMPT))
    torch.testing.assert_close(step.latents + (after - before) * velocity, step.after)


@torch.no_grad()
@pytest.mark.parametrize("image_dim", [None, 12])
def test_image_to_video(image_dim: int | None) -> None:
    pipe: Any = tiny_image_pipeline(image_dim=image_dim)
    image_embeds = torch.randn(1, 257, image_dim) if image_dim else None
    pipe.encode_image = lambda _image, _device: image_embeds
    made = pipe.prepare_latents
    conditions: list[torch.Tensor] = []

    def prepare(*given: Any) -> Any:
        latents, condition = made(*given)
        conditions.append(condition)
        return latents, condition

    pipe.prepare_latents = prepare
    model = VelocityModel(pipe.transformer, SETTINGS)
    image = torch.rand(1, 3, 32, 48)
    steps = steps_of(pipe, prompt=PROMPT, image=image)
    for step in steps:
        given = {"condition": conditions[0], "image_embeds": image_embeds}
        (found,) = model(step.latents, step.timestep[None], *texts(pipe, PROMPT), **given)
        close(found, step)
    with pytest.raises(
        ValueError,
        match="from a cache: it is an image-to-video model, and",
    ):
        model.check_trainable_from_cache()
    call = (steps[0].latents, steps[0].timestep[None], *texts(pipe, PROMPT))
    with pytest.raises(ValueError, match="condition has 0 channels; this transformer takes 20"):
        model(*call, image_embeds=image_embeds)
    given = {"condition": conditions[0]}
    if image_dim is None:
        given["image_embeds"] = torch.zeros(1, 4, 8)
    with pytest.raises(ValueError, match=r"image_embeds is (missing|given), and image_dim"):
        model(*call, **given)


@torch.no_grad()
def test_a_first_frame_by_timesteps_of_tokens() -> None:
    """As Wan 2.2 TI2V has it: a clip that has a first frame, beside one that has none."""
    pipe: Any = tiny_image_pipeline(expand_timesteps=True)
    made = pipe.prepare_latents
    prepared: list[Any] = []

    def prepare(*given: Any) -> Any:
        prepared.append(made(*given))
        return prepared[0]

    pipe.prepare_latents = prepare
    settings = VelocitySettings(text_length=16, expand_timesteps=True)
    model = VelocityModel(pipe.transformer, settings)
    model.check_trainable_from_cache()
    step = steps_of(pipe, prompt=PROMPT, image=torch.rand(1, 3, 32, 48))[1]
    _, condition, noisy = prepared[0]
    latents = torch.where(noisy.bool(), step.latents, condition)
    embeds, mask = texts(pipe, PROMPT, PROMPT)
    (found,) = model(
        torch.cat([latents, latents]),
        step.timestep.expand(2),
        embeds,
        mask,
        keeps_first=torch.tensor([True, False]),
    )
    close(found[:1], step)
    assert not torch.allclose(found[1:], step.velocity, atol=1e-3)
    (alone,) = VelocityModel(pipe.transformer, SETTINGS)(
        latents, step.timestep[None], embeds[:1], mask[:1]
    )
    torch.testing.assert_close(found[1:], alone, rtol=1e-4, atol=1e-5)


def test_a_first_frame_needs_timesteps_of_tokens() -> None:
    pipe = tiny_wan_pipeline()
    model = VelocityModel(pipe.transformer, SETTINGS)
    latents = torch.zeros(1, 16, 2, 4, 4)
    kept = torch.tensor([True])
    with pytest.raises(ValueError, match=r"keeps_first is given, .* set data\.first_frame=0"):
        model(latents, torch.ones(1), torch.zeros(1, 3, 16), keeps_first=kept)


def test_texts_longer_than_the_pipelines_are_refused() -> None:
    model = VelocityModel(tiny_wan_pipeline().transformer, VelocitySettings(text_length=2))
    with pytest.raises(ValueError, match=r"3 tokens, .* gives it 2; .* --text-tokens 2"):
        model(torch.zeros(1, 16, 2, 4, 4), torch.ones(1), torch.zeros(1, 3, 16))
