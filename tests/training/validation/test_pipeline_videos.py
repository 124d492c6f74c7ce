"""Validation videos of a pipeline that is trained are those of the pipeline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.schedulers.scheduling_flow_match_euler_discrete import (
    FlowMatchEulerDiscreteScheduler,
)
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tests.support.tiny_finetuning import lora_config, make_pipeline_and_cache
from tests.support.tiny_training import changed

from freqformer.media import probe_video
from freqformer.models.text import TextModel
from freqformer.training.cache.reading import LatentCache
from freqformer.training.finetuning.model import finetuned_model
from freqformer.training.loop import train
from freqformer.training.validation.pipeline_videos import PipelineVideos
from freqformer.training.validation.settings import ValidationConfig

SIZE = (32, 48)
PROMPTS = ("a cat", "a lighthouse in the storm")
SHIFT = 3.0
CPU = torch.device("cpu")


def made_by(pipe: Any, settings: ValidationConfig, shape: tuple[int, ...]) -> torch.Tensor:
    """The first prompt's video by the pipeline itself, with the same noise: (F, H, W, 3)."""
    pipe.scheduler = FlowMatchEulerDiscreteScheduler(shift=SHIFT)
    pipe.set_progress_bar_config(disable=True)
    height, width = SIZE
    # The tiny tokenizer makes nothing of an empty prompt, of which training makes one token.
    empty = TextModel(pipe.tokenizer, pipe.text_encoder).encode("", 512)
    frames = pipe(
        PROMPTS[0],
        negative_prompt_embeds=torch.nn.functional.pad(empty, (0, 0, 0, 512 - len(empty)))[None],
        height=height,
        width=width,
        num_frames=17,
        num_inference_steps=settings.num_inference_steps,
        guidance_scale=settings.guidance_scale,
        latents=torch.randn(shape, generator=torch.Generator().manual_seed(settings.seed)),
        output_type="np",
    ).frames[0]
    return torch.as_tensor(255 * frames).round()


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_a_pipeline_makes_the_same(guidance: float, tmp_path: Path) -> None:
    make_pipeline_and_cache(tmp_path, size=SIZE)
    settings = ValidationConfig(
        prompts=PROMPTS, num_inference_steps=2, guidance_scale=guidance, seed=3
    )
    cache = LatentCache(tmp_path / "cache")
    model = finetuned_model(lora_config(tmp_path, tmp_path / "run", density=1.0)).eval()
    videos = PipelineVideos(settings, cache, SHIFT, tmp_path / "pipe", torch.float32)
    first, second = videos.make(model, CPU)
    assert first.dtype == torch.uint8
    assert not torch.equal(first, second)
    pipe = DiffusionPipeline.from_pretrained(tmp_path / "pipe")
    expected = made_by(pipe, settings, (1, 16, 5, 4, 6))
    torch.testing.assert_close(first.float(), expected.float(), rtol=0, atol=1.01)


@pytest.mark.parametrize("kind", ["hunyuan", "wan-2.1-i2v"])
def test_a_run_shows_its_averaged_additions(kind: str, tmp_path: Path) -> None:
    make_pipeline_and_cache(tmp_path, kind, size=SIZE)
    config = changed(
        lora_config(tmp_path, tmp_path / "run", density=1.0),
        "validation",
        prompts=PROMPTS,
        every_steps=2,
        num_inference_steps=1,
        guidance_scale=2.0,
    )
    train(config)
    for step in (2, 3):
        folder = tmp_path / "run" / "validation" / f"step-{step:08d}"
        for place in range(len(PROMPTS)):
            info = probe_video(folder / f"{place}.mp4")
            assert (info.num_frames, info.height, info.width) == (17, *SIZE)
            assert (folder / f"{place}.png").is_file()
    events = EventAccumulator(str(tmp_path / "run" / "logs"), {"images": 0}).Reload()
    assert [event.step for event in events.Images("videos/0")] == [2, 3]
