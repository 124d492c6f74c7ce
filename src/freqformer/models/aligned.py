"""Loaded weights at aligned addresses."""

from __future__ import annotations

from torch import nn

ALIGNMENT = 64
"""Bytes; where torch puts tensors of its own on a CPU."""


def align_parameters(module: nn.Module) -> None:
    """Move parameters and buffers that lie at odd addresses to aligned ones, values unchanged.

    Loaded tensors lie where the file has them, and matrix products round differently at unaligned addresses: a loaded
    model would not repeat the saved one's bits.
    """
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.data_ptr() % ALIGNMENT:
            tensor.data = tensor.data.clone()
