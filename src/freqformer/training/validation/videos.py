"""Videos of fixed prompts and seeds, as a run goes on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from freqformer._optional import needs
from freqformer.models.pipeline import FreqFormerPipeline, FreqFormerPipelineOutput
from freqformer.models.text import TextModel, padded
from freqformer.training.cache.reading import LatentCache
from freqformer.training.cache.vae import VideoVae
from freqformer.training.validation.settings import ValidationConfig

if TYPE_CHECKING:
    from freqformer.models.transformer import FreqFormerTransformer3DModel


class ValidationVideos:
    """Makes one video of each prompt, in the size of most clips of a cache.

    The text encoder is loaded once, for the prompts, and dropped; the VAE whenever videos are made.

    Args:
        settings: prompts, steps, guidance and seed.
        cache: with the encoders.
        shift: of the scheduler's timesteps.
    """

    def __init__(self, settings: ValidationConfig, cache: LatentCache, shift: float) -> None:
        self._settings, self._cache, self._shift = settings, cache, shift
        self._text = _embedded(settings, cache)

    def make(self, model: FreqFormerTransformer3DModel, device: torch.device) -> list[Tensor]:
        """The videos, each uint8 (F, H, W, 3) on the CPU.

        Args:
            model: that predicts.
            device: of the model.
        """
        with needs("train"):
            from diffusers.schedulers.scheduling_flow_match_euler_discrete import (
                FlowMatchEulerDiscreteScheduler,
            )

        vae = VideoVae.load(self._cache.vae_folder, torch.float32, tiling=False).vae.to(device)
        scheduler = FlowMatchEulerDiscreteScheduler(shift=self._shift)
        pipeline = FreqFormerPipeline(model, scheduler, vae)
        pipeline.set_progress_bar_config(disable=True)
        frames, height, width = self._cache.index.most_common_bucket().size
        videos = []
        for text in self._text:
            made = pipeline(
                frames,
                height,
                width,
                num_inference_steps=self._settings.num_inference_steps,
                generator=torch.Generator().manual_seed(self._settings.seed),
                output_type="uint8",
                **text,
            )
            videos.append(made.frames[0].cpu())
        return videos


def write_videos(videos: list[Tensor], folder: Path, fps: float) -> None:
    """Write videos as 0.mp4, 1.mp4, ..., each with a contact sheet beside it.

    Raises:
        ValueError: where they can't be written.
    """
    for place, video in enumerate(videos):
        FreqFormerPipelineOutput(frames=video[None]).save(folder / f"{place}.mp4", fps)


def filmstrip(video: Tensor) -> Tensor:
    """All frames side by side: uint8 (F, H, W, 3) -> (H, F * W, 3)."""
    return video.transpose(0, 1).flatten(1, 2)


def _embedded(settings: ValidationConfig, cache: LatentCache) -> list[dict[str, Any]]:
    """The pipeline's arguments for the text of every prompt."""
    if cache.text_folders is None:
        return [{} for _ in settings.prompts]
    model = TextModel.load(cache.text_folders)
    most = int(cache.index.recipe["text_tokens"])
    negative = padded([model.encode("", most)])
    made = []
    for prompt in settings.prompts:
        embeds, mask = padded([model.encode(prompt, most)])
        made.append(
            {
                "prompt_embeds": embeds,
                "prompt_attention_mask": mask,
                "negative_prompt_embeds": negative[0],
                "negative_prompt_attention_mask": negative[1],
                "guidance_scale": settings.guidance_scale,
            }
        )
    return made
