"""Videos of fixed prompts and seeds by a transformer of diffusers, as a run trains it.

They are made as the run trains: from what a cache holds of a prompt, by Euler steps along the
velocity. So every transformer that can be trained can be looked at.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from freqformer._optional import needs
from freqformer.media import from_unit
from freqformer.models.latents import decode
from freqformer.training.cache.prompts.family import PromptEmbeds
from freqformer.training.cache.reading import LatentCache
from freqformer.training.cache.texts import find_captioning
from freqformer.training.cache.vae import VideoVae
from freqformer.training.seeding import derive_generator
from freqformer.training.validation.settings import ValidationConfig

CPU = torch.device("cpu")


@dataclass(frozen=True)
class _Told:
    """What the transformer is told besides noise."""

    prompt: PromptEmbeds
    empty: PromptEmbeds
    """Of no prompt, which guidance leads away from."""
    conditions: dict[str, Tensor]


class PipelineVideos:
    """Makes one video of each prompt, in the size of most clips of a cache.

    Where the transformer goes on from a first frame, that is the one of the cache's first clip of
    this size. The text encoder is loaded once, for the prompts, and dropped.

    Args:
        settings: prompts, steps, guidance and seed.
        cache: that is trained on.
        shift: of the timesteps.
        folder: of the pipeline.
        dtype: that the text encoder computes in.
    """

    def __init__(
        self,
        settings: ValidationConfig,
        cache: LatentCache,
        shift: float,
        folder: Path,
        dtype: torch.dtype,
    ) -> None:
        self._settings, self._cache, self._shift = settings, cache, shift
        index = cache.index
        bucket = index.buckets.index(index.most_common_bucket())
        first = next(number for number, clip in enumerate(index.clips) if clip.bucket == bucket)
        conditions = cache.clip(first, derive_generator(settings.seed)).conditions
        self._shape = (1, index.channels, *index.latent_size(bucket))
        encoder = find_captioning(folder).load(dtype, CPU)
        most = int(index.recipe["text_tokens"])
        empty = encoder.embed("", most)
        self._told = [
            _Told(encoder.embed(prompt, most), empty, conditions) for prompt in settings.prompts
        ]

    @torch.no_grad()
    def make(self, model: Any, device: torch.device) -> list[Tensor]:
        """The videos, each uint8 (F, H, W, 3) on the CPU.

        Args:
            model: a `VelocityModel`.
            device: of the model.
        """
        vae = VideoVae.load(self._cache.vae_folder, torch.float32, tiling=False).vae.to(device)
        videos = []
        for told in self._told:
            pixels = decode(self._sampled(model, told, device), vae)[0]
            videos.append(from_unit(pixels.float()).cpu())
        return videos

    def _sampled(self, model: Any, told: _Told, device: torch.device) -> Tensor:
        """Latents of a video, (1, C, F, H, W)."""
        with needs("train"):
            from diffusers.schedulers.scheduling_flow_match_euler_discrete import (
                FlowMatchEulerDiscreteScheduler,
            )

        scheduler: Any = FlowMatchEulerDiscreteScheduler(shift=self._shift)
        scheduler.set_timesteps(self._settings.num_inference_steps, device=device)
        generator = torch.Generator().manual_seed(self._settings.seed)
        latents = torch.randn(self._shape, generator=generator).to(device)
        scale = self._settings.guidance_scale
        prompt = _arguments(told.prompt, told.conditions, device)
        empty = _arguments(told.empty, told.conditions, device)
        for timestep in scheduler.timesteps:
            at = timestep.float().view(1)
            velocity = model(latents, at, **prompt)[0]
            if scale != 1:
                plain = model(latents, at, **empty)[0]
                velocity = plain + scale * (velocity - plain)
            latents = scheduler.step(velocity, timestep, latents, return_dict=False)[0]
        return latents


def _arguments(
    text: PromptEmbeds, conditions: dict[str, Tensor], device: torch.device
) -> dict[str, Tensor]:
    """Of a `VelocityModel`, beside latents and timestep."""
    given = {"encoder_hidden_states": text.tokens, **text.others, **conditions}
    return {name: x.float()[None].to(device) for name, x in given.items()}
