"""LTX-Video's velocity is what its own pipeline gives its scheduler."""

from __future__ import annotations

import pytest
import torch
from diffusers.pipelines.ltx.pipeline_ltx import LTXPipeline
from tests.support.tiny_video_pipelines import steps_of, tiny_ltx_pipeline

from freqformer.integrations.diffusers.velocity import VelocityModel, VelocitySettings

PROMPT = "a red ball"


@torch.no_grad()
@pytest.mark.parametrize("fps", [25.0, 8.0])
def test_text_to_video(fps: float) -> None:
    pipe = tiny_ltx_pipeline()
    embeds, mask, _, _ = pipe.encode_prompt(
        PROMPT, do_classifier_free_guidance=False, max_sequence_length=16
    )
    assert mask is not None
    assert not mask.all()
    model = VelocityModel(pipe.transformer, VelocitySettings(fps=fps, compression=(4, 4)))
    for step in steps_of(pipe, prompt=PROMPT, width=64, frame_rate=fps):
        latents, expected = (
            LTXPipeline._unpack_latents(packed, 3, 8, 16)
            for packed in (step.latents, step.velocity)
        )
        (found,) = model(latents, step.timestep[None], embeds, mask)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        before, after = step.sigmas
        moved = LTXPipeline._pack_latents(latents + (after - before) * found)
        torch.testing.assert_close(moved, step.after)


@torch.no_grad()
def test_the_rate_of_frames_and_the_mask_count() -> None:
    pipe = tiny_ltx_pipeline()
    draw = torch.Generator().manual_seed(0)
    latents = torch.randn(1, 4, 3, 8, 12, generator=draw)
    embeds = torch.randn(1, 6, 16, generator=draw)
    given = (latents, torch.tensor([500.0]), embeds)
    mask = torch.arange(6)[None] < 4
    model = VelocityModel(pipe.transformer, VelocitySettings(compression=(4, 4)))
    (whole,) = model(*given)
    assert torch.equal(model(*given, torch.ones_like(mask))[0], whole)
    assert not torch.allclose(model(*given, mask)[0], whole, atol=1e-4)
    slow = VelocityModel(pipe.transformer, VelocitySettings(fps=4.0, compression=(4, 4)))
    assert not torch.allclose(slow(*given)[0], whole, atol=1e-4)


def test_images_are_refused() -> None:
    model = VelocityModel(tiny_ltx_pipeline().transformer, VelocitySettings())
    with pytest.raises(ValueError, match="condition is given, which a LTXVideo"):
        model(
            torch.zeros(1, 4, 2, 4, 4),
            torch.ones(1),
            torch.zeros(1, 3, 16),
            condition=torch.zeros(1, 4, 2, 4, 4),
        )
