"""Pipelines of diffusers, from a folder or by their name on the hub."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal

import torch

from freqformer._optional import needs

Offload = Literal["none", "model", "sequential"]
WHOLE, MODULAR = "model_index.json", "modular_model_index.json"
"""Which file a pipeline of either kind has."""
NAME = re.compile(r"[\w.-]+/[\w.-]+")


def load_pipeline(
    place: str, *, dtype: torch.dtype, device: torch.device, offload: Offload = "none"
) -> Any:
    """A pipeline of diffusers with its weights, on the device.

    Args:
        place: a folder with model_index.json or modular_model_index.json, or a name on the hub like
            "Wan-AI/Wan2.1-T2V-1.3B-Diffusers".
        dtype: of the weights.
        device: that computes.
        offload: `model` keeps one model at a time on the device, `sequential` one layer.

    Raises:
        ValueError: for a folder without a pipeline, one of this library's own, or offload of a
            modular one.
    """
    with needs("model"):
        from diffusers.modular_pipelines.modular_pipeline import ModularPipeline
        from diffusers.pipelines.pipeline_utils import DiffusionPipeline
    with needs("text"):
        import transformers  # noqa: F401  # text encoders are its models
    if _is_modular(place):
        pipe: Any = ModularPipeline.from_pretrained(place)
        pipe.load_components(dtype=dtype)
    else:
        pipe = DiffusionPipeline.from_pretrained(place, dtype=dtype)
    if offload == "none":
        return pipe.to(device)
    if isinstance(pipe, ModularPipeline):
        raise ValueError(
            f"offload is {offload!r}, and a modular pipeline offers none of its own; 'none' is "
            "allowed: in Python, give it a ComponentsManager with enable_auto_cpu_offload"
        )
    move = {
        "model": pipe.enable_model_cpu_offload,
        "sequential": pipe.enable_sequential_cpu_offload,
    }[offload]
    move(device=device)
    return pipe


def _is_modular(place: str) -> bool:
    """Whether the pipeline at this place is made of blocks."""
    folder = Path(place)
    if not folder.is_dir():
        if folder.exists() or not NAME.fullmatch(place):
            raise ValueError(
                f"--pipeline is {place[:100]!r}; a folder with {WHOLE}, or a name on the hub like "
                "Wan-AI/Wan2.1-T2V-1.3B-Diffusers is allowed"
            )
        with needs("model"):
            from huggingface_hub import file_exists
        return not file_exists(place, WHOLE) and file_exists(place, MODULAR)
    if (folder / WHOLE).is_file():
        own = '"_class_name": "FreqFormerPipeline"'
        if own in (folder / WHOLE).read_text(encoding="utf-8", errors="replace"):
            raise ValueError(
                f"--pipeline is {place}, a model of this library, which has the attention already: "
                f"freqformer sample {place}"
            )
        return False
    if (folder / MODULAR).is_file():
        return True
    raise ValueError(
        f"--pipeline is {place}, a folder without {WHOLE} and {MODULAR}; name the folder that "
        "save_pretrained of a whole pipeline wrote"
    )
