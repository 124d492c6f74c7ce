"""A dense model and what it is turned into.

Shape legend: B batch, C channels, F frames, H height, W width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

Ask = Callable[[Any], Tensor]
"""Calls a model on one batch and gives what it makes of it, like the velocity."""
Learn = Callable[[str, Any, Any], None]
"""Takes note of one layer: its name, the converted layer's output with its graph, the dense one's
without."""


class Pair(Protocol):
    """A dense model, the teacher, and the converted one."""

    @property
    def trained(self) -> nn.Module:
        """What learns; whatever else it holds stays as it is."""
        ...

    @property
    def layer_count(self) -> int:
        """Attention layers that are compared."""
        ...

    def computing(self) -> AbstractContextManager[Any]:
        """Around forward passes."""
        ...

    def set_density(self, density: float) -> None:
        """Compute this share of dense attention from the next call on."""
        ...

    def teacher(self, ask: Ask) -> Tensor:
        """What the dense model makes of a batch, without a graph."""
        ...

    def student(self, ask: Ask) -> Tensor:
        """What the converted model makes of it."""
        ...

    def align(self, ask: Ask, learn: Learn) -> None:
        """Run the dense model, and after each of its attention layers the converted layer on the
        same input. `learn` is called in between: the graph of one layer is there at a time."""
        ...

    def num_tokens(self, shape: Sequence[int]) -> int:
        """Tokens of clips (B, C, F, H, W)."""
        ...

    def check_sizes(self, sizes: Sequence[Sequence[int]]) -> None:
        """Raise ValueError where clips of one of these sizes (F, H, W) can't have the density."""
        ...

    def check_clips(self, channels: int, text_channels: int | None) -> None:
        """Raise ValueError for clips that the dense model doesn't take."""
        ...

    def save(self, output: Path, history: Mapping[str, Any]) -> Path:
        """Write the result into a folder of the run's, whole or not at all; returns it.

        Args:
            output: of the run.
            history: how it came about, JSON-able.
        """
        ...


def tensors_of(output: Any) -> list[Tensor]:
    """The tensors that a layer gives: one, or one of the video and one of the text."""
    return list(output) if isinstance(output, tuple | list) else [output]


def detached(output: Any) -> list[Tensor]:
    """The same without their graph."""
    return [x.detach() for x in tensors_of(output)]


def relative_error(found: Any, wanted: Any) -> Tensor:
    """Squared error over the square of what is wanted, float32; tuples count as one vector.

    Args:
        found, wanted: tensors, or tuples of them, of the same shapes.
    """
    pairs = list(zip(tensors_of(found), detached(wanted), strict=True))
    error = sum((a.float() - b.float()).square().sum() for a, b in pairs)
    scale = sum(b.float().square().sum() for _, b in pairs)
    return torch.as_tensor(error) / torch.as_tensor(scale).clamp_min(1e-12)
