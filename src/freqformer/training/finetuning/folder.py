"""What a pipeline's folder says of the transformer to train, and whether a cache is of its
encoders."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from freqformer._files import read_json
from freqformer._optional import needs
from freqformer.integrations.diffusers.velocity import VelocitySettings
from freqformer.integrations.diffusers.velocity.families import velocity_family_named
from freqformer.models.loading import align_parameters
from freqformer.training.cache.fingerprints import CONFIG, fingerprint, own_files
from freqformer.training.cache.first_frames.source import find_first_frames
from freqformer.training.cache.index import SOUND_ENCODER
from freqformer.training.cache.pipeline_index import PIPELINE_INDEX, find_index
from freqformer.training.cache.reading import LatentCache
from freqformer.training.cache.sounds.source import find_sounds
from freqformer.training.cache.texts import find_captioning
from freqformer.training.cache.vae import VAE_FOLDER, find_vae

BY_TRANSFORMER = ("HunyuanVideo15Pipeline",)
"""Pipelines that load no LoRA themselves, while their transformer does."""
SCHEDULER_CONFIG = "scheduler_config.json"
SAMPLED = 2**20
"""Bytes of a file of weights that are read for its fingerprint, from its beginning and its end."""
_REMEDY = "give a folder that save_pretrained of a whole pipeline of diffusers wrote"


@dataclass(frozen=True)
class PipelineFolder:
    """A folder of a pipeline of diffusers.

    Args:
        path: with model_index.json, or modular_model_index.json.

    Raises:
        ValueError: for another folder.
    """

    path: Path

    def __post_init__(self) -> None:
        if find_index(self.path) is None:
            what = "has no " + PIPELINE_INDEX if self.path.is_dir() else "does not exist"
            raise ValueError(f"pipeline.folder is {self.path}, which {what}; {_REMEDY}")

    @property
    def index(self) -> dict[str, Any]:
        """The content of model_index.json, or of a modular pipeline's."""
        return read_json(self._index_file, remedy=_REMEDY)

    def kind(self) -> Any:
        """The pipeline's class.

        Raises:
            ValueError: for one that diffusers has not, or that loads no LoRA.
        """
        with needs("model"):
            import diffusers

        name = self.index.get("_class_name")
        kind = getattr(diffusers, name, None) if isinstance(name, str) else None
        loads = hasattr(kind, "save_lora_weights") or name in BY_TRANSFORMER
        if kind is None or not loads:
            raise ValueError(
                f"{self._index_file} has _class_name={name!r}; a pipeline of diffusers that loads"
                f" LoRA is allowed: {_REMEDY}"
            )
        return kind

    def transformer(self, part: str, dtype: torch.dtype) -> Any:
        """One of its transformers, on the CPU; nothing in the folder is run.

        Args:
            part: its name in the pipeline.
            dtype: of the weights, but for those that the model keeps in float32.

        Raises:
            ValueError: for a part that isn't there, another kind of transformer, and files that are
                missing or damaged.
        """
        place = self._part(part)
        name = str(read_json(place / CONFIG, remedy=_REMEDY).get("_class_name"))
        velocity_family_named(name)
        with needs("model"):
            import diffusers

        kind: Any = getattr(diffusers, name)
        try:
            transformer = kind.from_pretrained(
                str(place), torch_dtype=dtype, use_safetensors=True, local_files_only=True
            )
        except OSError as error:
            raise ValueError(f"{place} can't be loaded ({error}); {_REMEDY}") from error
        align_parameters(transformer)
        return transformer

    def levels(self, part: str) -> tuple[float, float]:
        """The noise levels at which the pipeline calls a transformer: all, or where two share them
        the upper or the lower ones."""
        boundary = self.index.get("boundary_ratio")
        if boundary is None:
            return (0.0, 1.0)
        return (float(boundary), 1.0) if part == "transformer" else (0.0, float(boundary))

    def flow_shifts(self) -> tuple[float, float]:
        """Of the noise levels of video and of sound, in a pipeline with a sampler of each; those of
        MiniMax-H3 where it has none."""
        usual = VelocitySettings().flow_shifts
        names = ("scheduler", "audio_scheduler")
        paths = [self.path / name / SCHEDULER_CONFIG for name in names]
        if not all(path.is_file() for path in paths):
            return usual
        video, sound = (
            float(read_json(path, remedy=_REMEDY).get("shift", shift))
            for path, shift in zip(paths, usual, strict=True)
        )
        return (video, sound)

    def weights_fingerprint(self, part: str) -> str:
        """A text that differs with the transformer's config and weights; of large files, both ends
        and the size."""
        digest = hashlib.sha256()
        for path in own_files(self._part(part)):
            size = path.stat().st_size
            digest.update(f"{path.name} {size}\0".encode())
            with path.open("rb") as file:
                digest.update(file.read(SAMPLED))
                file.seek(max(0, size - SAMPLED))
                digest.update(file.read(SAMPLED))
        return digest.hexdigest()[:32]

    def check_cache(self, cache: LatentCache) -> None:
        """Refuse a cache of another VAE or text encoder.

        Raises:
            ValueError: naming which, with the remedy; and for a cache without text.
        """
        recipe = cache.index.recipe
        if cache.index.text_channels is None:
            raise ValueError(
                f"data.cache is {cache.folder}, which has no text, and {self.path} reads it; make"
                f" the cache with --text-encoder {self.path}"
            )
        vae = fingerprint([find_vae(self.path)]) if (self.path / VAE_FOLDER).is_dir() else None
        if vae != recipe["vae"]:
            self._refuse(cache, "VAE", "--vae")
        first_frames = find_first_frames(self.path)
        own = (None, None)
        if first_frames is not None:
            own = (first_frames.pipeline, first_frames.fingerprint())
        if own != (cache.index.image_pipeline, recipe.get("image_encoder")):
            self._refuse(cache, "way of coding first frames", "--vae")
        sounds = find_sounds(self.path)
        if (None if sounds is None else sounds.fingerprint()) != recipe.get(SOUND_ENCODER):
            self._refuse(cache, "VAE of sound", "--vae")
        if (self.path / "text_encoder").is_dir():
            source = find_captioning(self.path)
            own = (source.pipeline, source.fingerprint())
            if own != (cache.index.text_pipeline, recipe["text_encoder"]):
                self._refuse(cache, "text encoder", "--text-encoder")

    def _refuse(self, cache: LatentCache, what: str, option: str) -> None:
        raise ValueError(
            f"data.cache is {cache.folder}, made by another {what} than that of {self.path}; its"
            f" own is allowed: make a cache with {option} {self.path}"
        )

    @property
    def _index_file(self) -> Path:
        return find_index(self.path) or self.path / PIPELINE_INDEX

    def _part(self, part: str) -> Path:
        place = self.path / part
        if not (place / CONFIG).is_file():
            raise ValueError(
                f"pipeline.part is {part!r}, and {self.path} has no {part}/{CONFIG};"
                " one of its transformers is allowed: leave part out"
            )
        return place
