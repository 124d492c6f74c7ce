"""A transformer of a pipeline as a run trains it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from freqformer.grid import Grid
from freqformer.integrations.diffusers import enable_frequency_attention
from freqformer.integrations.diffusers.families import blocks_of
from freqformer.integrations.diffusers.handle import FrequencyAttentionHandle
from freqformer.integrations.diffusers.velocity import VelocityModel, VelocitySettings
from freqformer.training.cache.reading import LatentCache
from freqformer.training.config import TrainConfig
from freqformer.training.finetuning.folder import PipelineFolder
from freqformer.training.finetuning.lora import add_lora
from freqformer.training.finetuning.offload import OffloadedBlocks
from freqformer.training.weights import TrainedWeights


class FineTuned(VelocityModel):
    """A transformer of diffusers with the settings that a run asks a model for.

    Args:
        transformer: whose trained parameters have gradients.
        settings: of its calls.
        levels: noise levels that it is trained at.
        base: fingerprint of the weights that training begins with.
    """

    def __init__(
        self,
        transformer: Any,
        settings: VelocitySettings,
        levels: tuple[float, float],
        base: str,
    ) -> None:
        super().__init__(transformer, settings)
        self.check_trainable_from_cache()
        self.levels = levels
        self.base = base
        self.offloaded: OffloadedBlocks | None = None
        self.attention: FrequencyAttentionHandle | None = None

    keeps_dtypes = True
    """Told to who shares the weights among ranks: frozen ones may be in half precision, with norms
    and additions in float32, and are gathered as they are."""

    @property
    def _no_split_modules(self) -> list[str]:
        """Classes of the blocks, by which weights are shared among ranks."""
        return sorted({type(block).__name__ for block in blocks_of(self.transformer)})

    @property
    def weights(self) -> TrainedWeights:
        """What is trained."""
        return TrainedWeights(self)

    @property
    def config(self) -> dict[str, Any]:
        """Channels of latents and text, by the words of this library's own model."""
        return {
            "in_channels": self.family.latent_channels(self.transformer),
            "cross_attention_dim": self.family.text_channels(self.transformer),
        }

    def knowing_timesteps(self, timesteps: Tensor) -> AbstractContextManager[None]:
        """Around a forward pass whose timesteps (B,), from 0 to 1000, the host knows: frequency
        attention need not wait for the device to tell them."""
        # A transformer that is called for each sample with timesteps of its own counting tells
        # them itself.
        if self.attention is None or self.family.takes_sound:
            return nullcontext()
        return self.attention.knowing_timesteps(timesteps)

    @property
    def attentions(self) -> tuple[Any, ...]:
        """Layers whose routers learn: none."""
        return ()

    def grid_for(self, shape: Sequence[int]) -> Grid:
        """The token grid of latents whose last three extents are (F, H, W).

        Raises:
            ValueError: where the patch does not divide it.
        """
        patch = self.family.patch_size(self.transformer)
        sides = tuple(int(side) for side in shape[-3:])
        if any(side % part for side, part in zip(sides, patch, strict=True)):
            raise ValueError(
                f"the cache has latents of {sides} frames, rows and columns; multiples of the"
                f" transformer's patch {patch} are allowed: make the cache without --multiple"
            )
        frames, height, width = (side // part for side, part in zip(sides, patch, strict=True))
        return Grid(frames, height, width)


def finetuned_model(config: TrainConfig) -> FineTuned:
    """The transformer of a run's pipeline, with its additions and frequency attention on.

    Args:
        config: whose `pipeline.folder` and `data.cache` are folders.

    Raises:
        ValueError: for a pipeline that can't be trained on the cache, and settings that its
            transformer doesn't take.
    """
    settings = config.pipeline
    folder = PipelineFolder(Path(str(settings.folder)))
    cache = LatentCache(Path(str(config.data.cache)))
    folder.kind()
    folder.check_cache(cache)
    lora = settings.weights == "lora"
    half = lora and config.run.precision == "bf16"
    transformer = folder.transformer(settings.part, torch.bfloat16 if half else torch.float32)
    model = FineTuned(
        transformer,
        VelocitySettings(
            fps=float(cache.index.recipe["fps"]),
            compression=cache.index.compression,
            expand_timesteps=bool(folder.index.get("expand_timesteps")),
            guidance_scale=settings.guidance_scale,
            conditions=cache.index.conditions,
            flow_shifts=folder.flow_shifts(),
        ),
        folder.levels(settings.part),
        folder.weights_fingerprint(settings.part),
    )
    _check_levels(config, model.levels)
    transformer.requires_grad_(True)
    if lora:
        add_lora(transformer, settings)
    if settings.offload_blocks:
        model.offloaded = OffloadedBlocks(_last_blocks(transformer, settings.offload_blocks))
    if settings.density < 1:
        model.attention = enable_frequency_attention(
            transformer,
            density=settings.density,
            start_percent=0,
            dense_blocks=settings.dense_blocks,
            min_tokens=settings.min_tokens,
        )
    return model


def _check_levels(config: TrainConfig, levels: tuple[float, float]) -> None:
    """Raise ValueError where held-out loss is asked at levels that the transformer never sees."""
    low, high = levels
    outside = [level for level in config.validation.levels if not low <= level <= high]
    if config.validation.held_out and outside:
        raise ValueError(
            f"validation.levels has {outside}, and the pipeline calls its {config.pipeline.part} at"
            f" noise levels from {low:g} to {high:g} alone; these are allowed: set"
            " validation.levels"
        )


def _last_blocks(transformer: Any, count: int) -> list[nn.Module]:
    """The last blocks of a transformer, in order.

    Raises:
        ValueError: for more than it has.
    """
    blocks = blocks_of(transformer)
    if count > len(blocks):
        raise ValueError(
            f"pipeline.offload_blocks is {count} and the transformer has {len(blocks)} blocks; at"
            " most so many are allowed"
        )
    return blocks[-count:]
