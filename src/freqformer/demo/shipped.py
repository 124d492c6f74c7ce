"""What the shipped model shows of itself: a clip, and one in one pass that is longer than any it
was trained on.

Shape legend: F frames, H rows, W columns.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from freqformer.analysis.figures import labelled_grid
from freqformer.demo.stages import Generated, generate
from freqformer.media import contact_sheet, enlarge, write_video

if TYPE_CHECKING:
    from freqformer.models.pipeline import FreqFormerPipeline

SHIPPED_MODEL = Path(__file__).with_name("model")
"""Where `freqformer export` puts the model that comes with the package."""
LONGER = 4
"""Times the length that the model was trained at."""


def shipped_model() -> Path | None:
    """Folder of the model that comes with this version; None where none does."""
    return SHIPPED_MODEL if (SHIPPED_MODEL / "model_index.json").is_file() else None


def load_shipped(folder: Path) -> FreqFormerPipeline:
    """An exported model, in float32, which a CPU computes fastest.

    Raises:
        ValueError: for a folder that holds none, or a damaged one.
    """
    from freqformer.models.pipeline import FreqFormerPipeline

    pipeline = FreqFormerPipeline.from_pretrained(str(folder), dtype=torch.float32)
    pipeline.set_progress_bar_config(desc="generating")
    return pipeline


@dataclass(frozen=True)
class Shipped:
    """What the model generated before it was trained any further."""

    clip: Generated
    long: Generated
    """With the heads' own bands."""
    dense: Generated
    """The same length and seed with exact attention alone: no LOW branch, no router."""

    def write(self, folder: Path, fps: float, scale: int) -> dict[str, Any]:
        """Write shipped.mp4, long.mp4 and long.png, pixels enlarged; returns what the page says
        about them."""
        write_video(enlarge(self.clip.frames, scale), folder / "shipped.mp4", fps)
        write_long(self.long.frames, self.dense.frames, folder / "long.mp4", fps, scale=scale)
        named = (("", self.clip), ("long_", self.long), ("dense_", self.dense))
        return {
            **{f"{name}frames": len(made.frames) for name, made in named},
            **{f"{name}seconds": made.seconds for name, made in named},
        }


def generate_shipped(
    pipeline: FreqFormerPipeline, size: tuple[int, int, int], *, steps: int, seed: int
) -> Shipped:
    """A clip of (frames, height, width), and one `LONGER` times as long with the model's bands and
    with dense attention."""
    long = (LONGER * size[0], *size[1:])
    clip, banded = (generate(pipeline, each, steps=steps, seed=seed) for each in (size, long))
    pipeline.transformer.set_dense(True)
    try:
        return Shipped(clip, banded, generate(pipeline, long, steps=steps, seed=seed))
    finally:
        pipeline.transformer.set_dense(False)


def write_long(banded: Tensor, dense: Tensor, path: Path, fps: float, *, scale: int = 1) -> None:
    """Write both videos side by side under their names, and their frames in two rows as PNG beside
    it.

    Args:
        banded, dense: uint8 (F, H, W, 3).
        path: ends in .mp4.
        fps: frames per second.
        scale: whole number by which pixels are enlarged.
    """
    pair = torch.stack([enlarge(banded, scale), enlarge(dense, scale)])
    write_video(labelled_grid(pair, ("by bands", "dense attention")), path, fps)
    shown = torch.arange(0, len(banded), -(-len(banded) // 8))
    contact_sheet(
        torch.cat([banded[shown], dense[shown]]),
        path.with_suffix(".png"),
        columns=len(shown),
        scale=2,
    )
