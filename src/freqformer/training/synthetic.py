"""Synthetic clips: textured sprites that move over a moving background."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from freqformer.training.loader import ClipSource
from freqformer.training.samples import PIXEL_CHANNELS, TrainingSample
from freqformer.training.seeding import derive_generator


class SyntheticClips(ClipSource):
    """An endless source of clips that needs no files; clip `index` is always the same.

    A texture is a sum of plane waves, so motion is exact between pixels and every clip has low, mid
    and high frequencies. Sprites are discs that fly straight on and bounce off the borders.

    Args:
        seed: of all clips.
        num_frames, height, width: of a clip.
        sprites: discs in a clip.
    """

    def __init__(
        self, seed: int, *, num_frames: int, height: int, width: int, sprites: int = 3
    ) -> None:
        self.seed, self.shape, self.sprites = seed, (num_frames, height, width), sprites

    @property
    def channels(self) -> int:
        """Of pixels."""
        return PIXEL_CHANNELS

    def load(self, index: int) -> TrainingSample:
        """Clip `index`: (3, F, H, W) float32 in [-1, 1]."""
        generator = derive_generator(self.seed, "synthetic", index)
        frames, height, width = self.shape
        # Lengths are in units of the shorter side, so a clip looks the same at any resolution.
        side = min(height, width)
        y = ((torch.arange(height) + 0.5) / side).view(1, height, 1)
        x = ((torch.arange(width) + 0.5) / side).view(1, 1, width)
        time = torch.linspace(0, 1, frames).view(frames, 1, 1)
        # The finest wave has three pixels a period at least, and 16 periods at most.
        octaves = min(5, max(1, int(math.log2(max(side / 3, 1))) + 1))
        drift = 0.6 * _uniform(generator, 2)
        clip = _texture(generator, y + drift[0] * time, x + drift[1] * time, octaves)
        extent = torch.tensor([height / side, width / side])
        for _ in range(self.sprites):
            radius = 0.12 + 0.05 * float(_uniform(generator, 1))
            start = (_uniform(generator, 2) + 1) / 2 * extent
            row, column = (
                _bounce(start[i] + 1.2 * float(_uniform(generator, 1)) * time, float(extent[i]))
                for i in (0, 1)
            )
            distance = ((y - row).square() + (x - column).square()).sqrt()
            # One pixel wide, so an edge moves smoothly.
            inside = ((radius - distance) * side + 0.5).clamp(0, 1)
            clip = clip + inside * (_texture(generator, y - row, x - column, octaves) - clip)
        return TrainingSample(clip.clamp(-1, 1))

    def report(self, sample: TrainingSample) -> None:
        """No file, so no failure."""

    def fingerprint(self) -> str:
        """Differs with every argument."""
        return f"synthetic {self.seed} {self.shape} {self.sprites}"


def _uniform(generator: torch.Generator, count: int) -> Tensor:
    """(count,) uniform in [-1, 1]."""
    return 2 * torch.rand(count, generator=generator) - 1


def _bounce(place: Tensor, extent: float) -> Tensor:
    """Fold a straight path into [0, extent], as a ball between two walls."""
    return extent - (place.remainder(2 * extent) - extent).abs()


def _texture(generator: torch.Generator, y: Tensor, x: Tensor, octaves: int) -> Tensor:
    """(3, F, H, W): a random colour and plane waves of 1, 2, 4, ... periods per side, the finer the
    fainter."""
    texture = (0.5 * _uniform(generator, 3)).view(3, 1, 1, 1)
    for octave in range(octaves):
        angle, phase = math.pi * _uniform(generator, 2)
        colour = _uniform(generator, 3).view(3, 1, 1, 1) * 0.6 / (octave + 1)
        wave = 2 * math.pi * 2**octave * (angle.sin() * y + angle.cos() * x) + phase
        texture = texture + colour * wave.sin()
    return texture
