"""The order in which the kernels hold the channels of queries and keys, on the host."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from freqformer.ops.parameters import AttentionParameters


def half_of(given: AttentionParameters) -> int:
    """P where channels i and i + P are turned together, 0 where neighbours are."""
    rotation = given.rotation
    return 0 if rotation is None or rotation.pairs == "interleaved" else rotation.cos.shape[-1]


def paired(x: Tensor, half: int) -> Tensor:
    """x (..., D) with its channels as kernels load those of queries and keys."""
    return x if half == 0 else x[..., _order(x.shape[-1], half, x.device)]


def unpaired(x: Tensor, half: int) -> Tensor:
    """The inverse of `paired`."""
    if half == 0:
        return x
    return x[..., _order(x.shape[-1], half, x.device).argsort()]


@lru_cache(maxsize=16)
@torch.inference_mode(False)  # what it caches must also serve training
def _order(head_dim: int, half: int, device: torch.device) -> Tensor:
    turned = torch.arange(2 * half).view(2, half)
    kept = torch.arange(2 * half, head_dim).view(2, -1)
    return torch.cat([turned, kept], 1).T.flatten().to(device)
