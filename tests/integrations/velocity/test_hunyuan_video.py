"""HunyuanVideo's velocity is what its own pipeline gives its scheduler."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.support.tiny_video_pipelines import steps_of, tiny_hunyuan_pipeline

from freqformer.integrations.diffusers.velocity import VelocityModel, VelocitySettings
from freqformer.models.text import padded
from freqformer.training.cache.prompts.hunyuan_video import FAMILY

PROMPTS = ("a red ball flies left", "a blue ball")


@torch.no_grad()
@pytest.mark.parametrize("distilled", [True, False])
def test_text_to_video(distilled: bool) -> None:
    """Texts of two lengths in one batch, as a cache holds them: without the pipeline's padding."""
    pipe: Any = tiny_hunyuan_pipeline(guidance_embeds=distilled)
    model = VelocityModel(pipe.transformer, VelocitySettings(guidance_scale=3.0))
    embedded = [FAMILY.embed(pipe, prompt, 256) for prompt in PROMPTS]
    embeds, mask = padded([one.tokens for one in embedded])
    assert len({len(one.tokens) for one in embedded}) == 2
    pooled = torch.stack([one.others["pooled_embeds"] for one in embedded])
    given = {"guidance_scale": 3.0, "max_sequence_length": 256}
    first, second = (
        steps_of(tiny_hunyuan_pipeline(guidance_embeds=distilled), prompt=prompt, **given)
        for prompt in PROMPTS
    )
    for one, other in zip(first, second, strict=True):
        (found,) = model(
            torch.cat([one.latents, other.latents]),
            torch.stack([one.timestep, other.timestep]),
            embeds,
            mask,
            pooled_embeds=pooled,
        )
        expected = torch.cat([one.velocity, other.velocity])
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        before, after = one.sigmas
        torch.testing.assert_close(one.latents + (after - before) * found[:1], one.after)
    one = first[-1]
    settings = VelocitySettings(guidance_scale=5.0)
    call = (one.latents, one.timestep[None], embeds[:1], mask[:1])
    (more,) = VelocityModel(pipe.transformer, settings)(*call, pooled_embeds=pooled[:1])
    assert torch.allclose(more, one.velocity, atol=1e-5) == (not distilled)


def test_what_it_lacks_or_does_not_take_is_refused() -> None:
    model = VelocityModel(tiny_hunyuan_pipeline().transformer, VelocitySettings())
    call = (torch.zeros(1, 4, 2, 4, 4), torch.ones(1), torch.zeros(1, 3, 16))
    with pytest.raises(
        ValueError, match=r"pooled_embeds is missing, .* \(B, 16\) is allowed: make"
    ):
        model(*call)
    with pytest.raises(ValueError, match="image_embeds is given, which a HunyuanVideo"):
        model(*call, pooled_embeds=torch.zeros(1, 16), image_embeds=torch.zeros(1, 2, 3))
    model.transformer.register_to_config(image_condition_type="token_replace")  # type: ignore[operator]
    with pytest.raises(ValueError, match="can't be trained from a cache: it is an image-to-video"):
        model.check_trainable_from_cache()
