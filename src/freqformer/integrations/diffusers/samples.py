"""The samples of a batch whose heads do different things run apart, and are joined again."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def take_samples(given: Any, rows: list[int], samples: int) -> Any:
    """These samples of what a processor is given; what all samples share stays whole."""
    if isinstance(given, tuple):
        return tuple(take_samples(part, rows, samples) for part in given)
    # Rotary tables (N, D) have no batch, and those of one sample serve all; masks (B, N) have one.
    by_sample = isinstance(given, Tensor) and given.ndim >= (2 if given.dtype == torch.bool else 3)
    if not by_sample or len(given) != samples:
        return given
    return given[rows]


def join_samples(outputs: list[Any], order: Tensor) -> Any:
    """Outputs of shares of a batch, tensors or tuples of them, with the samples in `order`."""
    if isinstance(outputs[0], tuple):
        return tuple(join_samples(list(parts), order) for parts in zip(*outputs, strict=True))
    return torch.cat(outputs)[order]
