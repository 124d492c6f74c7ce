"""Seeded procedural video for the quality study, drawn on the device in batches.

A clip is a textured plane under a moving camera, two sprites that move and cover one another, and
an object that is hidden, behind an occluder or out of the frame, and comes back far away in time
and place: only global context links its two appearances. Textures are photographs
(`photographs/ATTRIBUTION.md`) and coloured noise.

Shape legend: B clips, F frames, S rows and columns of a square frame. Places are (column, row) in
pixels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

PHOTOGRAPHS = Path(__file__).parent / "photographs"
TRAINED_COLUMNS = 0.7
"""Share of a photograph's columns, from the left, that training clips show; validation clips show
the others."""
PHOTOGRAPH_SHARE = 0.7
"""Share of textures that are photographs; the others are coloured noise."""
SIDE = 64
"""Side of a frame for which lengths below are given in pixels; they scale with the frame."""
CANVAS = 160
"""Side of the background's texture."""
SPRITES = 2
LEAVES, RETURNS = 0.3, 0.7
"""Share of a clip at which the hidden object is gone, and at which it comes back."""
OCCLUDER = 11.0
"""Half the width of the bar that hides the object."""


@dataclass(frozen=True, eq=False)
class Scenes:
    """Clips, and where their hidden object is."""

    video: Tensor
    """(B, 3, F, S, S) float32 in [-1, 1]."""
    place: Tensor
    """Centre of the hidden object, (B, F, 2)."""
    radius: Tensor
    """(B,)."""
    hidden: Tensor
    """Whether nothing of it is seen, bool (B, F)."""


class Draw:
    """Random tensors on a device, from one seed."""

    def __init__(self, seed: int, device: torch.device) -> None:
        self.device, self.generator = device, torch.Generator(device).manual_seed(seed)

    def uniform(self, *shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        """Uniform in [low, high)."""
        return low + (high - low) * torch.rand(shape, generator=self.generator, device=self.device)

    def normal(self, *shape: int) -> Tensor:
        """Standard normal."""
        return torch.randn(shape, generator=self.generator, device=self.device)

    def coin(self, *shape: int, chance: float = 0.5) -> Tensor:
        """True with this chance."""
        return self.uniform(*shape) < chance


@torch.no_grad()
def draw_scenes(
    count: int,
    seed: int,
    device: torch.device,
    *,
    held_out: bool = False,
    frames: int = 16,
    side: int = SIDE,
) -> Scenes:
    """Draw clips; the same seed gives the same bits on the same kind of device.

    Args:
        count: clips.
        seed: of all random numbers.
        device: where they are drawn.
        held_out: whether photographs are seen in the columns that training never shows.
        frames, side: extents of a clip, in frames and pixels.
    """
    draw, unit = Draw(seed, device), side / SIDE
    video = _background(draw, count, held_out, frames, side)
    for _ in range(SPRITES):
        place = _bouncing(draw, count, frames, side)
        radius = draw.uniform(count, low=6, high=14) * unit
        texture = textures(draw, count, side, held_out)
        video = _over(video, texture, place, radius, draw.coin(count))
    path = _hidden_path(draw, count, frames, unit)
    video = _over(
        video, textures(draw, count, side, held_out), path.place, path.radius, draw.coin(count)
    )
    bar = textures(draw, count, side, held_out)
    shown = (path.bar[:, None, None, None] & _bar_mask(path.vertical, side, unit))[:, None]
    video = torch.where(shown, bar[:, None], video)
    return Scenes(video.transpose(1, 2).clamp(-1, 1), path.place, path.radius, path.hidden)


def textures(draw: Draw, count: int, side: int, held_out: bool) -> Tensor:
    """(count, 3, side, side) about [-1, 1]: crops of photographs, and coloured noise."""
    photograph = draw.coin(count, chance=PHOTOGRAPH_SHARE)[:, None, None, None]
    return torch.where(
        photograph, _crops(draw, count, side, held_out), _coloured_noise(draw, count, side)
    )


def crop_columns(width: int, side: int, held_out: bool) -> tuple[int, int]:
    """First and last column at which a crop of `side` columns may begin."""
    border = int(TRAINED_COLUMNS * width)
    return (border, width - side) if held_out else (0, border - side)


def _crops(draw: Draw, count: int, side: int, held_out: bool) -> Tensor:
    pictures = photographs(draw.device)
    number, height, width, _ = pictures.shape
    low, high = crop_columns(width, side, held_out)

    def whole(first: int, last: int) -> Tensor:
        return draw.uniform(count, low=first, high=last + 1).long().clamp_max(last)

    steps = torch.arange(side, device=draw.device)
    picture, row, column = whole(0, number - 1), whole(0, height - side), whole(low, high)
    rows, columns = row[:, None, None] + steps[:, None], column[:, None, None] + steps
    return pictures[picture[:, None, None], rows, columns].permute(0, 3, 1, 2)


@lru_cache(maxsize=4)
def photographs(device: torch.device) -> Tensor:
    """Every photograph, float32 (pictures, rows, columns, 3) in [-1, 1]."""
    import numpy
    from PIL import Image

    pictures = [
        numpy.asarray(Image.open(path).convert("RGB")) for path in sorted(PHOTOGRAPHS.glob("*.jpg"))
    ]
    return torch.from_numpy(numpy.stack(pictures)).to(device).float() / 127.5 - 1


def _coloured_noise(draw: Draw, count: int, side: int) -> Tensor:
    """Noise whose amplitude falls with frequency to a power from -0.8 to -1.8, in mixed colours."""
    frequency = torch.fft.fftfreq(side, device=draw.device)
    radius = (frequency[:, None].square() + frequency.square()).sqrt().clamp_min(1 / side)
    power = draw.uniform(count, 1, 1, 1, low=0.8, high=1.8)
    noise = torch.fft.ifft2(torch.fft.fft2(draw.normal(count, 3, side, side)) * radius**-power).real
    noise = 0.5 * noise / noise.flatten(2).std(-1)[..., None, None]
    colours = torch.eye(3, device=draw.device) + 0.8 * draw.normal(count, 3, 3)
    return torch.einsum("bij,bjhw->bihw", colours, noise).clamp(-1, 1)


def _pixels(side: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Column and row of every pixel's centre, each (side, side)."""
    place = torch.arange(side, device=device) + 0.5
    return place.expand(side, side), place[:, None].expand(side, side)


def _sample(texture: Tensor, column: Tensor, row: Tensor) -> Tensor:
    """Texture (B, 3, T, T) at pixels (B, F, S, S) counted from its middle: (B, F, 3, S, S)."""
    frames = column.shape[1]
    places = torch.stack([column, row], -1).flatten(0, 1) * (2 / texture.shape[-1])
    shown = texture.repeat_interleave(frames, 0)
    sampled = functional.grid_sample(shown, places, padding_mode="reflection", align_corners=False)
    return sampled.unflatten(0, (-1, frames))


def _background(draw: Draw, count: int, held_out: bool, frames: int, side: int) -> Tensor:
    """A textured plane under a camera that pans, turns and zooms: (B, F, 3, S, S)."""
    unit = side / SIDE
    time = torch.linspace(-8, 8, frames, device=draw.device)
    zoom = draw.uniform(count, 1, low=0.8, high=1.6) * (
        1 + draw.uniform(count, 1, low=-0.015, high=0.015) * time
    )
    angle = draw.uniform(count, 1, low=-0.03, high=0.03) * time
    pan = draw.uniform(count, 1, 2, low=-3, high=3) * unit * time[:, None]
    column, row = (x - side / 2 for x in _pixels(side, draw.device))
    cos, sin = ((zoom * turn)[..., None, None] for turn in (angle.cos(), angle.sin()))
    texture = textures(draw, count, round(CANVAS * unit), held_out)
    return _sample(
        texture,
        column * cos - row * sin + pan[..., :1, None],
        column * sin + row * cos + pan[..., 1:, None],
    )


def _bouncing(draw: Draw, count: int, frames: int, side: int) -> Tensor:
    """Straight paths, folded at the borders: (B, F, 2)."""
    time = torch.linspace(0, 16, frames, device=draw.device)[:, None]
    speed = draw.uniform(count, 1, 2, low=-4, high=4) * side / SIDE
    place = draw.uniform(count, 1, 2, high=side) + speed * time
    return side - (place.remainder(2 * side) - side).abs()


def _over(video: Tensor, texture: Tensor, place: Tensor, radius: Tensor, square: Tensor) -> Tensor:
    """A textured disc, or square, laid over the video at its place in every frame."""
    side = video.shape[-1]
    column, row = (
        x - at[..., None, None]
        for x, at in zip(_pixels(side, video.device), place.unbind(-1), strict=True)
    )
    box = torch.maximum(column.abs(), row.abs())
    distance = torch.where(
        square[:, None, None, None], box, (column.square() + row.square()).sqrt()
    )
    # One pixel wide, so an edge moves smoothly.
    inside = (radius[:, None, None, None] - distance + 0.5).clamp(0, 1)[:, :, None]
    return video + inside * (_sample(texture, column, row) - video)


@dataclass(frozen=True, eq=False)
class _HiddenPath:
    place: Tensor
    radius: Tensor
    hidden: Tensor
    bar: Tensor
    """Whether a bar hides the object, or the border of the frame: bool (B,)."""
    vertical: Tensor
    """Whether it travels along rows, from top to bottom or back: bool (B,)."""


def _hidden_path(draw: Draw, count: int, frames: int, unit: float) -> _HiddenPath:
    """From one end of the frame out of sight, and from there, much later, to another place at the
    other end."""
    radius, bar = draw.uniform(count, low=5, high=8), draw.coin(count)
    near = torch.where(
        bar, draw.uniform(count, low=8, high=13), draw.uniform(count, low=10, high=18)
    )
    far = SIDE - torch.where(
        bar, draw.uniform(count, low=8, high=13), draw.uniform(count, low=10, high=18)
    )
    middle = torch.full_like(near, SIDE / 2)
    leave, back = torch.where(bar, middle, -radius - 2), torch.where(bar, middle, SIDE + radius + 2)
    time = torch.linspace(0, 1, frames, device=draw.device)
    going, coming = (time / LEAVES).clamp(0, 1), ((time - RETURNS) / (1 - RETURNS)).clamp(0, 1)
    first = near[:, None] + (leave - near)[:, None] * going
    second = back[:, None] + (far - back)[:, None] * coming
    along = torch.where(time < 0.5, first, second)
    across = torch.where(time < 0.5, *draw.uniform(2, count, 1, low=10, high=SIDE - 10))
    gone = torch.maximum(-along, along - SIDE) >= radius[:, None]
    behind = (along - SIDE / 2).abs() <= OCCLUDER - radius[:, None]
    hidden = torch.where(bar[:, None], behind, gone)
    along = torch.where(draw.coin(count, 1), along, SIDE - along)
    vertical = draw.coin(count)
    place = torch.stack([along, across], -1)
    place = torch.where(vertical[:, None, None], place.flip(-1), place)
    return _HiddenPath(place * unit, radius * unit, hidden, bar, vertical)


def _bar_mask(vertical: Tensor, side: int, unit: float) -> Tensor:
    """The bar in the middle, across the object's way: bool (B, 1, S, S)."""
    column, row = _pixels(side, vertical.device)
    along = torch.where(vertical[:, None, None], row, column)
    return ((along - side / 2).abs() < math.ceil(OCCLUDER * unit))[:, None]
