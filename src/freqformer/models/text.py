"""Text encoders of transformers: which ones, where their files are, and what they make of a text.

Shape legend: L text tokens, E their channels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from freqformer._files import FileError, read_json
from freqformer._optional import needs
from freqformer.models.loading import check_complete

ENCODERS = {
    "t5": "T5EncoderModel",
    "umt5": "UMT5EncoderModel",
    "clip": "CLIPTextModel",
    "clip_text_model": "CLIPTextModel",
    "qwen2": "Qwen2Model",
    "qwen3": "Qwen3Model",
}
"""The class of a text encoder by the `model_type` of its config."""
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "spiece.model", "vocab.json")
ENCODER_FOLDER = "text_encoder"
TOKENIZER_FOLDER = "tokenizer"
REMEDY = (
    "give a pipeline's folder with text_encoder/ and tokenizer/, or a folder with the encoder's"
    " config.json, its safetensors and its tokenizer"
)


@dataclass(frozen=True)
class TextFolders:
    """Where an encoder and its tokenizer are; they may share a folder."""

    encoder: Path
    tokenizer: Path

    @classmethod
    def find(cls, folder: Path) -> TextFolders:
        """Those of a folder: a pipeline's, an encoder's beside its tokenizer's, or of both.

        Raises:
            ValueError: for a folder without either.
        """
        inner = folder / ENCODER_FOLDER
        encoder = inner if (inner / "config.json").is_file() else folder
        if not (encoder / "config.json").is_file():
            what = "holds no text encoder" if folder.is_dir() else "does not exist"
            raise FileError(f"text_encoder is {folder}, which {what}; {REMEDY}")
        for tokenizer in (encoder, encoder.parent / TOKENIZER_FOLDER):
            if any((tokenizer / name).is_file() for name in TOKENIZER_FILES):
                return cls(encoder, tokenizer)
        raise FileError(f"text_encoder is {folder}, and its tokenizer is nowhere; {REMEDY}")


@dataclass(frozen=True)
class TextModel:
    """A tokenizer and its encoder.

    Args:
        tokenizer: of transformers.
        encoder: of transformers, one of `ENCODERS`.
    """

    tokenizer: Any
    encoder: Any

    @classmethod
    def load(cls, folders: TextFolders, dtype: torch.dtype = torch.float32) -> TextModel:
        """The model of two folders, on the CPU; nothing in them is run.

        Raises:
            ValueError: for an encoder of another kind, and files that are missing or damaged.
            MissingPackageError: transformers is not installed.
        """
        with needs("text"):
            import transformers

        kind = getattr(transformers, encoder_class(folders.encoder))
        tokenizer = load_tokenizer(folders.tokenizer)
        with _loading(folders.encoder), _quietly():
            encoder, info = kind.from_pretrained(
                str(folders.encoder),
                dtype=dtype,
                use_safetensors=True,
                local_files_only=True,
                output_loading_info=True,
            )
        _check_weights(folders.encoder, info)
        return cls(tokenizer, encoder.eval().requires_grad_(False))

    @property
    def channels(self) -> int:
        """E."""
        config = self.encoder.config
        return int(getattr(config, "d_model", None) or config.hidden_size)

    def most_tokens(self, asked: int) -> int:
        """Tokens of a text at most: those asked for, or as many as the encoder has places for."""
        config = self.encoder.config
        places = getattr(config, "max_position_embeddings", None)
        return asked if places is None else min(asked, int(places))

    @torch.no_grad()
    def encode(self, text: str, most_tokens: int) -> Tensor:
        """The embeddings of one text, (L, E) float32 on the CPU, L at least 1, without padding.

        Args:
            text: white space in it is taken as single blanks.
            most_tokens: what is longer is cut off.
        """
        tokens = self.tokenizer(
            " ".join(text.split()),
            truncation=True,
            max_length=self.most_tokens(most_tokens),
            return_tensors="pt",
        )["input_ids"].long()
        if tokens.shape[1] == 0:
            # Some tokenizers make nothing of an empty text.
            tokens = torch.tensor([[self._filler()]])
        given = tokens.to(self.encoder.device)
        return self.encoder(input_ids=given).last_hidden_state[0].float().cpu()

    def encode_batch(self, texts: Sequence[str], most_tokens: int) -> tuple[Tensor, Tensor]:
        """The embeddings (texts, L, E) float32, zero where a text has ended, and the bool mask
        (texts, L) of its tokens."""
        return padded([self.encode(text, most_tokens) for text in texts])

    def _filler(self) -> int:
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            if (token := getattr(self.tokenizer, name, None)) is not None:
                return int(token)
        return 0


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer of a folder; nothing in it is run.

    Raises:
        ValueError: for files that are missing or damaged.
        MissingPackageError: transformers is not installed.
    """
    with needs("text"):
        from transformers import AutoTokenizer

    with _loading(folder):
        return AutoTokenizer.from_pretrained(str(folder), local_files_only=True)


def padded(embeddings: Sequence[Tensor], length: int | None = None) -> tuple[Tensor, Tensor]:
    """Embeddings (L, E) of several lengths in one tensor (texts, longest, E), and the mask.

    Args:
        embeddings: one at least.
        length: to pad to; None takes the longest.
    """
    longest = max(len(one) for one in embeddings) if length is None else length
    together = embeddings[0].new_zeros(len(embeddings), longest, embeddings[0].shape[1])
    mask = torch.zeros(len(embeddings), longest, dtype=torch.bool)
    for place, one in enumerate(embeddings):
        together[place, : len(one)] = one
        mask[place, : len(one)] = True
    return together, mask


def encoder_class(folder: Path) -> str:
    """The name of an encoder's class in transformers.

    Raises:
        ValueError: for a folder without config.json, or one of another kind.
    """
    path = folder / "config.json"
    kind = read_json(path, remedy=REMEDY).get("model_type")
    if not isinstance(kind, str) or kind not in ENCODERS:
        raise FileError(
            f"{path} has model_type={kind!r}; {', '.join(ENCODERS)} are allowed: give another"
            " text encoder"
        )
    return ENCODERS[kind]


def _check_weights(folder: Path, info: dict[str, Any]) -> None:
    """Refuse random weights. A whole CLIP or language model holds more than its text encoder."""
    check_complete(folder, {"missing_keys": info["missing_keys"], "unexpected_keys": ()})


@contextmanager
def _loading(folder: Path) -> Iterator[None]:
    """Whatever a damaged folder makes transformers and tokenizers raise, as one error."""
    try:
        yield
    except (FileError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        text = str(error) if isinstance(error, OSError | ValueError) else repr(error)
        raise FileError(f"{folder} can't be loaded ({text}); {REMEDY}") from error


@contextmanager
def _quietly() -> Iterator[None]:
    """Without the progress bar over a few files."""
    with needs("text"):
        from transformers.utils import logging

    drawn = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if drawn:
            logging.enable_progress_bar()
