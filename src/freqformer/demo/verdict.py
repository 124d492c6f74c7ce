"""Whether the demo's video is what it should be: the clip that the model was trained on.

Shape legend: F frames, H rows, W columns.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

PEAK = 255
MOST_DECIBELS = 99.0
"""Of equal videos, whose error is 0."""
CLOSE = 10.0
RECOGNISABLE = 3.0
"""Decibels above a picture of one colour: a tenth of the clip's variance is missing, or half of
it."""


def similarity(video: Tensor, clip: Tensor) -> float:
    """Peak signal-to-noise ratio in decibels, 99 at most.

    Args:
        video, clip: (F, H, W, 3) of equal shape, values from 0 to 255.
    """
    error = float((video.double() - clip.double()).square().mean())
    if error == 0:
        return MOST_DECIBELS
    return min(10 * math.log10(PEAK**2 / error), MOST_DECIBELS)


@dataclass(frozen=True)
class Verdict:
    """How near the generated video is to the clip, and whether training was whole."""

    decibels: float
    """Of the generated video against the clip."""
    one_colour: float
    """Of the clip's mean colour against the clip: what a video has that shows nothing of it."""
    steps: int
    """Training steps that were done."""
    planned_steps: int
    seconds: float
    """Training time."""

    @classmethod
    def of(
        cls, video: Tensor, clip: Tensor, *, steps: int, planned_steps: int, seconds: float
    ) -> Verdict:
        """Judge a video (F, H, W, 3) uint8 by the clip of the same shape."""
        mean = clip.double().mean((0, 1, 2)).expand(clip.shape)
        return cls(similarity(video, clip), similarity(mean, clip), steps, planned_steps, seconds)

    @property
    def similarity(self) -> str:
        """The figures in words."""
        return f"{self.decibels:.1f} dB similar to the clip (one colour: {self.one_colour:.1f} dB)"

    @property
    def judgement(self) -> str:
        """What the figures mean, a sentence."""
        gain = self.decibels - self.one_colour
        if gain >= CLOSE:
            return "The model gives the clip back."
        if gain >= RECOGNISABLE:
            return "The clip can be recognised, and is not sharp yet."
        return "This is not the clip: the model has not learned it."

    @property
    def shortfall(self) -> str:
        """A sentence for a machine that was too slow for all steps; empty where it was not."""
        if self.steps >= self.planned_steps:
            return ""
        needed = math.ceil(self.seconds / max(self.steps, 1) * self.planned_steps / 60) * 60
        return (
            f"This machine was too slow: it did {self.steps} of {self.planned_steps} training steps"
            f" in {self.seconds:.0f} s. With --train-seconds {needed} it would do them all."
        )

    def lines(self) -> list[str]:
        """All of it, for a terminal."""
        return [line for line in (f"{self.similarity}. {self.judgement}", self.shortfall) if line]
