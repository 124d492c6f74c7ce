"""What layers know of a forward pass of their transformer."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from freqformer.attention.record import RecordedBands
from freqformer.config import FreqFormerConfig
from freqformer.distributed.context import ContextParallel
from freqformer.grid import Grid
from freqformer.ops.parameters import KnownBands


@dataclass(frozen=True)
class VideoTokens:
    """Where the video's tokens lie among those that a layer attends to, in raster order of their
    grid."""

    grid: Grid
    before: int = 0
    """Exact tokens before the video, which see all and are seen by all: text, audio, keyframes."""
    behind: int = 0
    """Exact tokens behind it."""

    @property
    def exact(self) -> int:
        """Exact tokens beside the video."""
        return self.before + self.behind


@dataclass(frozen=True)
class Call:
    """One forward pass of the transformer, as its layers need to know it."""

    video: VideoTokens
    noise_level: Tensor
    """(B,) on the host, in [0, 1], 1 is the most noise."""
    dense: tuple[bool, ...]
    """Whether each sample runs the model's own attention in every layer: steps before
    `start_percent` and after `end_percent`, and videos below `min_tokens`."""


OUTSIDE = (
    "a layer with frequency attention ran outside a forward pass of its transformer, where its "
    "timestep and token grid are unknown; call the transformer, and recompute activations with "
    "its enable_gradient_checkpointing() alone"
)


class CurrentCall:
    """The forward pass in progress of a transformer."""

    def __init__(self) -> None:
        self.call: Call | None = None
        self.device = torch.device("cpu")
        """Of the call's tensors."""
        self.banded: tuple[Grid, int] | None = None
        """Grid and exact tokens beside it of the last banded call."""
        self.ranks: ContextParallel | None = None
        """Those that share the call's tokens."""
        self.levels: set[float] = set()
        """Noise levels that were not left dense by steps or length."""


@dataclass(frozen=True)
class Share:
    """Samples of one call that run together, since their heads do the same."""

    video: VideoTokens
    rows: tuple[int, ...]
    """Which samples; all of the call's where there is one share."""
    config: FreqFormerConfig | None
    """None is the model's own attention."""
    bands: KnownBands | None
    """Of every head and sample; None where there is no config."""
    noise_level: Tensor | None = None
    """(B,) float32 on the layer's device; None where the layer has learned nothing."""
    recorded: RecordedBands | None = None
    """What a compiled graph is given of the call; None where it holds grid and config as constants,
    since no layer or step has others."""
