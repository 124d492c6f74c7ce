"""Reading saved models: what diffusers reads, held to a whole file, no pickle, and the same bits as were saved."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

ALIGNMENT = 64
"""Bytes; where torch puts tensors of its own on a CPU."""


@contextmanager
def readable(place: Any) -> Iterator[None]:
    """Turn diffusers' OSError about the folder or repository at `place` into a ValueError with the remedy."""
    try:
        yield
    except OSError as error:
        raise ValueError(
            f"{place} can't be loaded ({error}): give a folder that save_pretrained wrote, or save it again"
        ) from error


def check_complete(place: Any, info: dict[str, Any]) -> None:
    """Raise ValueError where weights were missing or left over; diffusers would go on with random ones.

    Args:
        place: where they came from.
        info: diffusers' `output_loading_info`.
    """
    missing, unexpected = sorted(info["missing_keys"]), sorted(info["unexpected_keys"])
    if missing or unexpected:
        raise ValueError(
            f"{place} holds weights of another model: {len(missing)} are missing {missing[:3]} and {len(unexpected)} "
            f"unknown {unexpected[:3]}; keep config.json and the weights that were saved with it together"
        )


def align_parameters(module: nn.Module) -> None:
    """Move parameters and buffers that lie at odd addresses to aligned ones, values unchanged.

    Loaded tensors lie where the file has them, and matrix products round differently at unaligned addresses: a loaded
    model would not repeat the saved one's bits.
    """
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.data_ptr() % ALIGNMENT:
            tensor.data = tensor.data.clone()
