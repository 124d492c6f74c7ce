"""LoRA on a pipeline that generates."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from freqformer._optional import needs

WEIGHTS = "pytorch_lora_weights.safetensors"
RECORD = "freqformer-lora.json"
"""Beside the weights, where this library trained them: which transformer of a pipeline they are
of."""


def load_loras(pipe: Any, folders: Sequence[str]) -> None:
    """Add low-rank layers to a pipeline's transformers, all of them at their full scale.

    Args:
        pipe: of diffusers.
        folders: each with pytorch_lora_weights.safetensors in diffusers' layout.

    Raises:
        ValueError: for a folder without them, a pipeline that loads none, or weights that it
            doesn't take.
        MissingPackageError: PEFT is not installed.
    """
    if not folders:
        return
    with needs("lora"):
        import peft  # noqa: F401  # diffusers adds layers by it
    transformer = getattr(pipe, "transformer", None)
    if not (hasattr(pipe, "load_lora_weights") or hasattr(transformer, "load_lora_adapter")):
        raise ValueError(
            f"--lora is {folders[0]}, and a {type(pipe).__name__} loads none; leave it out"
        )
    for place, folder in enumerate(folders):
        _load(pipe, Path(folder), f"added_{place}")


def _load(pipe: Any, folder: Path, name: str) -> None:
    if not (folder / WEIGHTS).is_file():
        what = f"holds no {WEIGHTS}" if folder.is_dir() else "does not exist"
        raise ValueError(
            f"--lora is {folder}, which {what}; give the lora/ of a run, or another folder of"
            " diffusers' LoRA"
        )
    second = {"load_into_transformer_2": True} if _part(folder) == "transformer_2" else {}
    try:
        with warnings.catch_warnings():
            # More than one is meant.
            warnings.filterwarnings("ignore", "Already found a `peft_config`")
            if hasattr(pipe, "load_lora_weights"):
                load = partial(pipe.load_lora_weights, **second)
            else:
                load = pipe.transformer.load_lora_adapter
            load(str(folder), weight_name=WEIGHTS, adapter_name=name)
    except (RuntimeError, ValueError, KeyError, OSError) as error:
        raise ValueError(
            f"--lora is {folder}, which a {type(pipe).__name__} can't load: {error}"
        ) from error
    transformer = getattr(pipe, _part(folder))
    if name not in getattr(transformer, "peft_config", {}):
        raise ValueError(
            f"--lora is {folder}, which has nothing for the {type(transformer).__name__} of this"
            f" {type(pipe).__name__}; LoRA of the same model is allowed"
        )
    transformer.set_adapters([*transformer.peft_config])


def _part(folder: Path) -> str:
    """The transformer that the weights are of."""
    record = folder / RECORD
    if not record.is_file():
        return "transformer"
    return str(json.loads(record.read_text(encoding="utf-8")).get("part", "transformer"))
