"""What embeds the captions of a cache: a text encoder with its tokenizer, or a whole pipeline's
own way."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from freqformer._optional import needs
from freqformer.models.text import ENCODER_FOLDER, TOKENIZER_FOLDER, TextFolders, TextModel
from freqformer.training.cache.errors import CacheError
from freqformer.training.cache.fingerprints import copy_encoder, fingerprint
from freqformer.training.cache.pipeline_index import class_of, read_index
from freqformer.training.cache.prompts.families import PROMPTS
from freqformer.training.cache.prompts.family import PromptEmbeds, PromptFamily

_REMEDY = "give the folder of a whole pipeline, as save_pretrained wrote it"


class CaptionEncoder(Protocol):
    """Embeds captions."""

    def embed(self, text: str, most_tokens: int) -> PromptEmbeds:
        """Of one caption."""
        ...


class CaptionSource(Protocol):
    """Where what embeds captions is."""

    @property
    def pipeline(self) -> str | None:
        """The pipeline's class whose way it is; None for a plain encoder."""
        ...

    def fingerprint(self) -> str:
        """A text that differs with what it computes."""
        ...

    def load(self, dtype: torch.dtype, device: torch.device) -> CaptionEncoder:
        """It, on a device."""
        ...

    def copy(self, cache: Path) -> None:
        """Put copies of what a pipeline needs to read prompts into a cache."""
        ...


@dataclass(frozen=True)
class PlainSource:
    """A text encoder and its tokenizer."""

    folders: TextFolders
    pipeline: None = None

    def fingerprint(self) -> str:
        """See `CaptionSource`."""
        return fingerprint(sorted({self.folders.encoder, self.folders.tokenizer}))

    def load(self, dtype: torch.dtype, device: torch.device) -> CaptionEncoder:
        """See `CaptionSource`."""
        model = TextModel.load(self.folders, dtype)
        model.encoder.to(device)
        return _PlainEncoder(model)

    def copy(self, cache: Path) -> None:
        """See `CaptionSource`."""
        copy_encoder(self.folders.encoder, cache / ENCODER_FOLDER)
        copy_encoder(self.folders.tokenizer, cache / TOKENIZER_FOLDER, weights=False)


@dataclass(frozen=True)
class PipelineSource:
    """The encoders of a pipeline of diffusers, asked as it asks them."""

    folder: Path
    pipeline: str

    def fingerprint(self) -> str:
        """See `CaptionSource`."""
        return fingerprint([self.folder / name for name in self._family.components])

    def load(self, dtype: torch.dtype, device: torch.device) -> CaptionEncoder:
        """See `CaptionSource`; nothing in the folder is run.

        Raises:
            CacheError: for parts that are missing or damaged.
        """
        with needs("text"):
            import diffusers  # noqa: F401
            import transformers  # noqa: F401 - encoders are its classes

        load = self._family.load or self._without_others
        try:
            pipeline = load(self.folder, dtype)
        except (OSError, ValueError) as error:
            raise CacheError(
                f"text_encoder is {self.folder}, whose {self.pipeline} can't be loaded ({error});"
                f" {_REMEDY}"
            ) from error
        pipeline.set_progress_bar_config(disable=True)
        return _PipelineEncoder(pipeline.to(device), self._family)

    def copy(self, cache: Path) -> None:
        """See `CaptionSource`: nothing, since only that pipeline reads prompts so."""

    def _without_others(self, folder: Path, dtype: torch.dtype) -> Any:
        """The pipeline with the parts alone that read prompts."""
        with needs("text"):
            import diffusers

        kind: Any = getattr(diffusers, self.pipeline)
        others = [
            name
            for name, value in read_index(folder).items()
            if isinstance(value, list) and name not in self._family.components
        ]
        return kind.from_pretrained(
            str(folder),
            dtype=dtype,
            use_safetensors=True,
            local_files_only=True,
            **dict.fromkeys(others),
        )

    @property
    def _family(self) -> PromptFamily:
        return PROMPTS[self.pipeline]


def find_captioning(folder: Path) -> CaptionSource:
    """What embeds captions in a folder.

    Args:
        folder: of a pipeline, or of a text encoder.

    Raises:
        ValueError: for a folder without one, or a pipeline that lacks some of its encoders.
    """
    name = class_of(folder)
    if name not in PROMPTS:
        return PlainSource(TextFolders.find(folder))
    missing = [part for part in PROMPTS[name].components if not (folder / part).is_dir()]
    if missing:
        raise CacheError(
            f"text_encoder is {folder}, a {name} without {', '.join(missing)}; {_REMEDY}"
        )
    return PipelineSource(folder, name)


@dataclass(frozen=True)
class _PlainEncoder:
    model: TextModel

    def embed(self, text: str, most_tokens: int) -> PromptEmbeds:
        return PromptEmbeds(self.model.encode(text, most_tokens), {})


@dataclass(frozen=True)
class _PipelineEncoder:
    pipeline: Any
    family: PromptFamily

    @torch.no_grad()
    def embed(self, text: str, most_tokens: int) -> PromptEmbeds:
        return self.family.embed(self.pipeline, " ".join(text.split()), most_tokens)
