"""Sizes of the study: a model, its clips and its batches."""

from __future__ import annotations

from dataclasses import dataclass

from freqformer.grid import Extents, Grid


@dataclass(frozen=True)
class Size:
    """A model and its clips."""

    video: Extents = (16, 64, 64)
    """Frames, rows and columns in pixels."""
    patch: Extents = (1, 2, 2)
    layers: int = 6
    heads: int = 6
    """A multiple of 6, of which variants say how many are in each band."""
    head_dim: int = 64
    batch: int = 4
    """Clips of a step."""
    validation_clips: int = 24
    """A multiple of the batch."""
    tile_side: int = 4
    """Tokens along each side of a tile."""

    @property
    def grid(self) -> Grid:
        """Tokens of a clip."""
        frames, height, width = (
            side // patch for side, patch in zip(self.video, self.patch, strict=True)
        )
        return Grid(frames, height, width)

    @property
    def width(self) -> int:
        """Channels of a token."""
        return self.heads * self.head_dim


STUDY = Size()
USUAL = "16k"
SIZES = {
    USUAL: STUDY,
    "16k-wide": Size(heads=12),
    "64k": Size(video=(64, 64, 64), batch=2, validation_clips=12),
    "1k": Size(video=(16, 16, 16), layers=3, head_dim=32, tile_side=2),
}
"""By tokens of a clip. The wide one has four times the weights. The longer one has four times the
frames: what covers all times at 16K is 6% of them there. The small one, whose tiles have 8 tokens,
is for a CPU: it shows that variants learn, and its figures are no results."""


def name_of(size: Size) -> str:
    """The name of a size.

    Raises:
        ValueError: for a size that has none.
    """
    for name, known in SIZES.items():
        if known == size:
            return name
    raise ValueError(f"size is {size}; one of {', '.join(SIZES)} is allowed")
