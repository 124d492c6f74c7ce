"""Which files an encoder consists of, and what tells one encoder from another."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from freqformer._files import read_json, writing_folder
from freqformer.training.cache.errors import CacheError

CONFIG = "config.json"
READ_BY_NOTHING = (
    *("", ".md", ".png", ".jpg", ".jpeg", ".gif", ".webp", ".mp4", ".py", ".pyc", ".lock"),
    *(".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".h5", ".msgpack", ".onnx", ".gguf"),
    *(".ot", ".npz", ".tflite"),
)
"""Endings of files that change nothing that is computed here: pages, code, weights in other formats
than safetensors. Whatever else lies there counts, since tokenizers have files of many kinds, like
merges.txt, tokenizer.model, qwen.tiktoken and chat_template.jinja."""
FOLDERS = ("additional_chat_templates",)
"""Folders within a tokenizer's whose files count too."""
VARIANTS = (".fp16.", ".fp16-", ".bf16.", ".bf16-", ".non_ema.")
"""In names of weights that nothing here loads."""
OF_NOTHING = ("_name_or_path", "_diffusers_version", "transformers_version")
"""Fields of a config that say nothing of what is computed."""
KIND = "encoder"
_REMEDY = "give the folder of a whole encoder"


def own_files(folder: Path, *, weights: bool = True) -> list[Path]:
    """The files of an encoder or tokenizer that can change what it computes, sorted by name;
    without `weights` those of a tokenizer that shares its encoder's folder."""
    inner = [path for name in FOLDERS for path in (folder / name).glob("*")]
    return sorted(
        path
        for path in (*folder.iterdir(), *inner)
        if path.is_file()
        and path.suffix.lower() not in READ_BY_NOTHING
        and (weights or ".safetensors" not in path.name)
        and not path.name.startswith((".", "freqformer-"))
        and not any(variant in path.name for variant in VARIANTS)
    )


def fingerprint(folders: Sequence[Path]) -> str:
    """A text that differs with what these folders compute: configs and weights, byte for byte.

    Raises:
        CacheError: for a folder that can't be read.
    """
    digest = hashlib.sha256()
    for folder in folders:
        for path in own_files(folder):
            digest.update(path.relative_to(folder).as_posix().encode() + b"\0")
            digest.update(_content(path))
    return digest.hexdigest()[:32]


def copy_encoder(source: Path, target: Path, *, weights: bool = True) -> None:
    """Copy an encoder's files into a folder of their own, whole or not at all.

    Args:
        source: of the encoder or tokenizer.
        target: made; one that is there is left alone, since a cache's encoders never change.
        weights: as `own_files`.

    Raises:
        CacheError: where it can't be written.
    """
    if target.is_dir():
        return
    with writing_folder(target, kind=KIND, error=CacheError) as new:
        for path in own_files(source, weights=weights):
            copied = new / path.relative_to(source)
            copied.parent.mkdir(exist_ok=True)
            shutil.copyfile(path, copied)


def _content(path: Path) -> bytes:
    if path.name == CONFIG:
        config = read_json(path, remedy=_REMEDY, error=CacheError)
        kept = {name: value for name, value in config.items() if name not in OF_NOTHING}
        return json.dumps(kept, sort_keys=True).encode()
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
    except OSError as error:
        raise CacheError(f"{path} can't be read ({error.strerror}); {_REMEDY}") from error
