"""Reading saved models: what diffusers reads, held to a whole file, no pickle, and the same bits as
were saved."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import nn

from freqformer._files import (
    MANIFEST_NAME,
    FileError,
    check_manifest,
    read_bytes,
    read_json,
    write_manifest,
)
from freqformer.attention.head_bands import ALLOCATION, SUMMARIES

ALIGNMENT = 64
"""Bytes; where torch puts tensors of its own on a CPU."""
TOKENIZER_CONFIG = "tokenizer_config.json"
CONFIG_BYTES = 1 << 20
INDEX_BYTES = 64 << 20
"""Largest size of a config, and of the index of weights in several files."""
_REMEDY = "give a folder that save_pretrained wrote, or save it again"


@contextmanager
def readable(place: Any, subfolder: str | None = None) -> Iterator[None]:
    """Check a saved model before diffusers reads it, and turn its errors into a ValueError.

    Args:
        place: a folder, or a repository, which is not checked here.
        subfolder: of the folder, where the model itself is.

    Raises:
        ValueError: for files that differ from the manifest, naming each; for JSON out of bounds;
            and for whatever diffusers can't read, naming the place and the remedy.
    """
    folder = (
        Path(os.fspath(place), subfolder or "") if isinstance(place, str | os.PathLike) else None
    )
    if folder is not None and folder.is_dir():
        _check_folder(folder)
    try:
        yield
    except (FileError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # of damaged files diffusers, safetensors and torch raise many types
        what = str(error) if isinstance(error, OSError | ValueError) else repr(error)
        raise ValueError(f"{place} can't be loaded ({what}): {_REMEDY}") from error


def vouch(folder: str | os.PathLike, kind: str, inner: Iterable[str] = ()) -> None:
    """Write the manifest of a model that was just saved, which `readable` holds it to.

    Args:
        folder: where; of what else it holds nothing is listed.
        kind: "transformer" or "pipeline".
        inner: names of the subfolders that belong to it.
    """
    folder = Path(folder)
    own = (path for path in folder.iterdir() if path.suffix in (".json", ".safetensors"))
    parts = (path for name in inner for path in (folder / name).rglob("*"))
    own_manifests = {path.parent for path in folder.glob(f"*/{MANIFEST_NAME}")}
    files = [
        path
        for path in chain(own, parts)
        if path.is_file() and path.name != MANIFEST_NAME and path.parent not in own_manifests
    ]
    write_manifest(folder, kind, sorted(files))


def _check_folder(folder: Path) -> None:
    check_manifest(
        folder,
        remedy=f"save it again, or remove {MANIFEST_NAME} if they were changed on purpose",
    )
    # What diffusers reads of a pipeline and of its parts.
    limits = {"_index.json": CONFIG_BYTES, "config.json": CONFIG_BYTES, ".index.json": INDEX_BYTES}
    for path in chain(folder.glob("*.json"), folder.glob("*/*.json")):
        if path.name == TOKENIZER_CONFIG:
            # Tokenizers write 10^30 for "of any length"; transformers reads it.
            read_bytes(path, remedy=_REMEDY, most_bytes=CONFIG_BYTES)
            continue
        for ending, most in limits.items():
            if path.name.endswith(ending):
                read_json(path, remedy=_REMEDY, most_bytes=most)


def check_complete(place: Any, info: dict[str, Any]) -> None:
    """Raise ValueError where weights were missing or left over; diffusers would go on with random
    ones.

    Args:
        place: where they came from.
        info: diffusers' `output_loading_info`.
    """
    missing, unexpected = sorted(info["missing_keys"]), sorted(info["unexpected_keys"])
    if missing or unexpected:
        raise ValueError(
            f"{place} holds weights of another model: {len(missing)} are missing {missing[:3]} and "
            f"{len(unexpected)} "
            f"unknown {unexpected[:3]}; keep config.json and the weights that were saved with it "
            "together"
        )


@contextmanager
def own_report() -> Iterator[None]:
    """Leave it to `check_complete` to speak of missing and unknown weights: it refuses what
    diffusers warns of."""
    diffusers = logging.getLogger("diffusers.models.modeling_utils")

    def speaks_of_others(record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith("Some weights of")

    diffusers.addFilter(speaks_of_others)
    try:
        yield
    finally:
        diffusers.removeFilter(speaks_of_others)


def forgive_older(model: nn.Module, info: dict[str, Any]) -> None:
    """Take out of `output_loading_info` what files of older versions lack, the bands of heads, and
    what they hold beside: summaries that nothing used."""
    missing, bands = (
        set(info["missing_keys"]),
        {name for name, _ in model.named_buffers() if name.endswith(ALLOCATION)},
    )
    if bands and bands <= missing:
        info["missing_keys"] = sorted(missing - bands)
        unused = [name for name in info["unexpected_keys"] if name.endswith(SUMMARIES)]
        info["unexpected_keys"] = sorted(set(info["unexpected_keys"]) - set(unused))


def align_parameters(module: nn.Module) -> None:
    """Move parameters and buffers that lie at odd addresses to aligned ones, values unchanged.

    Loaded tensors lie where the file has them, and matrix products round differently at unaligned
    addresses: a loaded model would not repeat the saved one's bits.
    """
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.device.type != "meta" and tensor.data_ptr() % ALIGNMENT:
            tensor.data = tensor.data.clone()
