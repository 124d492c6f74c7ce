"""A run's pipeline with the VAE and the text encoder of its cache."""

from __future__ import annotations

from pathlib import Path

from freqformer._files import read_json, write_json
from freqformer.models.saved import INDEX_NAME
from freqformer.models.text import (
    ENCODER_FOLDER,
    TOKENIZER_FOLDER,
    encoder_class,
    load_tokenizer,
)
from freqformer.training.cache.errors import CacheError
from freqformer.training.cache.fingerprints import copy_encoder
from freqformer.training.cache.reading import LatentCache
from freqformer.training.cache.vae import VAE_FOLDER

_REMEDY = "run the command that made the cache again"


def add_encoders(pipeline: Path, cache: LatentCache) -> None:
    """Copy a cache's encoders into a saved pipeline, which then decodes latents and reads prompts.

    They are copied file by file: a text encoder of many gigabytes is never loaded.

    Args:
        pipeline: folder that `FreqFormerPipeline.save_pretrained` wrote, without either.
        cache: with its encoders.

    Raises:
        CacheError: for a cache that lacks them, or where they can't be written.
    """
    path = pipeline / INDEX_NAME
    index = read_json(path, remedy="save it again", error=CacheError)
    config = read_json(cache.vae_folder / "config.json", remedy=_REMEDY, error=CacheError)
    copy_encoder(cache.vae_folder, pipeline / VAE_FOLDER)
    index["vae"] = ["diffusers", config["_class_name"]]
    if (folders := cache.text_folders) is not None:
        copy_encoder(folders.encoder, pipeline / ENCODER_FOLDER)
        copy_encoder(folders.tokenizer, pipeline / TOKENIZER_FOLDER, weights=False)
        index["text_encoder"] = ["transformers", encoder_class(folders.encoder)]
        index["tokenizer"] = ["transformers", type(load_tokenizer(folders.tokenizer)).__name__]
    write_json(path, index, indent=2, error=CacheError)
