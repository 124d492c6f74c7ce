"""What a run takes from the cache that it trains on: the model's channels, and the size of a
clip."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from freqformer._validate import shown
from freqformer.training.cache.index import CacheIndex
from freqformer.training.config import DataConfig, TrainConfig

PATCH_SIZE = (1, 2, 2)
"""Of latents, where the model's arguments name none: as published video models have it."""


def with_cache(config: TrainConfig) -> TrainConfig:
    """The config with what the cache decides; itself where it names no cache.

    The model gets the channels of latents and text, and `data` the size, in pixels, and the rate of
    the bucket with most clips.

    Raises:
        ValueError: for a cache that is not done, and arguments that are not the cache's.
    """
    if config.data.cache is None:
        return config
    index = CacheIndex.read(Path(config.data.cache))
    channels = {"in_channels": index.channels, "cross_attention_dim": index.text_channels}
    for name, value in channels.items():
        if name in config.model and config.model[name] != value:
            raise ValueError(
                f"model.{name} is {shown(config.model[name])} and {config.data.cache} has {value};"
                " the same is allowed: leave it out, or make another cache"
            )
    bucket = index.most_common_bucket()
    size: dict[str, Any] = {
        "num_frames": bucket.frames,
        "height": bucket.height,
        "width": bucket.width,
        "fps": index.recipe["fps"],
    }
    usual = {field.name: field.default for field in fields(DataConfig)}
    for name, value in size.items():
        given = getattr(config.data, name)
        if given not in (usual[name], value):
            raise ValueError(
                f"data.{name} is {given!r}, and the sizes of clips are those of {config.data.cache}"
                f" ({value!r} in most): leave it out"
            )
    made_for = index.text_pipeline or index.image_pipeline or index.sound_pipeline
    if config.pipeline.folder is None and made_for is not None:
        raise ValueError(
            f"data.cache is {config.data.cache}, made in the way of a {made_for}; such a pipeline"
            " alone is allowed: train with --pipeline, or cache with the folders of its VAE and of"
            " a text encoder"
        )
    if config.pipeline.folder is not None:
        return replace(config, data=replace(config.data, **size))
    patch = {} if config.run.init_from is not None else {"patch_size": list(PATCH_SIZE)}
    return replace(
        config,
        model={**patch, **channels, **config.model},
        data=replace(config.data, **size),
    )
