"""How a kind of pipeline tells its transformer a first frame.

Shape legend: C' channels of the condition, F frames, H height, W width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class FirstFrameFamily:
    """How one kind of pipeline does it."""

    takes: Callable[[dict[str, Any]], bool]
    """Whether a pipeline with this model_index.json does it so."""
    condition: Callable[[Tensor, Any], Tensor]
    """(clip (3, F, H, W) in [-1, 1] on the VAE's device, VAE) -> (C', F, H, W) of the size of
    latents, scaled as the transformer sees them."""
    channels: Callable[[int], int]
    """C', by the channels of latents."""
