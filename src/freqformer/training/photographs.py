"""Clips from photographs: a camera pans and zooms over one, and shaded balls fly, bounce and hide one another in front.

Shape legend: F frames, H rows, W columns of a clip. Places in a photograph run from -1 to 1 along both sides.
"""

from __future__ import annotations

import colorsys
import hashlib
import math
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from freqformer.training.loader import Clip, ClipSource
from freqformer.training.seeding import derive_generator

ENDINGS = (".jpg", ".jpeg", ".png")
DETAIL = 2
"""Times the clip's sides, to which a photograph is scaled."""
VIEW = (0.4, 0.8)
"""Least and largest share of a photograph's sides that is seen at once."""
PAN, ZOOM = 0.8, 0.6
"""Farthest move over a clip in half views, and the largest change of the view's size in octaves."""
BALLS = (1, 3)
"""Fewest and most."""
SPEED = 1.2
"""Fastest, in the frame's shorter sides per clip."""
LIGHT = (-0.45, -0.55, 0.70)
"""Direction to the light (column, row, towards the viewer), of unit length."""
AMBIENT, SHINE = 0.35, 0.55
SHADOW = 0.35
"""Share of the light that a ball takes from what is behind it."""


class PhotographClips(ClipSource):
    """An endless source of clips; clip `index` is always the same.

    Args:
        folder: holds the photographs; they are scaled to cover twice the clip's size and cropped in the middle.
        seed: of all clips.
        num_frames, height, width: of a clip.

    Raises:
        ValueError: for a folder without photographs, or a file that can't be read.
    """

    def __init__(self, folder: str | Path, seed: int, *, num_frames: int, height: int, width: int) -> None:
        self.seed, self.shape = seed, (num_frames, height, width)
        self.photographs = read_photographs(folder, DETAIL * height, DETAIL * width)

    def load(self, index: int) -> Clip:
        """Clip `index`: (3, F, H, W) float32 in [-1, 1]."""
        generator = derive_generator(self.seed, "photographs", index)
        count = int(torch.randint(BALLS[0], BALLS[1] + 1, (1,), generator=generator))
        clip = _with_balls(self._background(generator), torch.rand(count, 9, generator=generator))
        return Clip(clip.transpose(0, 1).contiguous())

    def report(self, clip: Clip) -> None:
        """Files were read at the start, so no failure."""

    def fingerprint(self) -> str:
        """Differs with every argument and with the photographs."""
        pixels = hashlib.blake2b(self.photographs.numpy().tobytes(), digest_size=8).hexdigest()
        return f"photographs {self.seed} {self.shape} {pixels}"

    def _background(self, generator: torch.Generator) -> Tensor:
        """(F, 3, H, W): from one view of a photograph to another, straight."""
        frames, height, width = self.shape
        picture = self.photographs[int(torch.randint(len(self.photographs), (1,), generator=generator))]
        share, column, row, zoom, *pan = torch.rand(6, generator=generator).tolist()
        first = VIEW[0] + (VIEW[1] - VIEW[0]) * share
        last = min(max(first * 2 ** (ZOOM * (2 * zoom - 1)), VIEW[0]), VIEW[1])
        # A view lies within the photograph if its ends do, so a straight move between two such views does too.
        starts = [(2 * place - 1) * (1 - first) for place in (column, row)]
        ends = [
            min(max(start + PAN * first * (2 * move - 1), last - 1), 1 - last)
            for start, move in zip(starts, pan, strict=True)
        ]
        time = torch.linspace(0, 1, frames)[:, None]
        half = first + (last - first) * time
        column_middle, row_middle = (start + (end - start) * time for start, end in zip(starts, ends, strict=True))
        columns, rows = (half * ((2 * torch.arange(n) + 1) / n - 1) for n in (width, height))
        places = torch.stack(
            [
                (columns + column_middle)[:, None, :].expand(-1, height, -1),
                (rows + row_middle)[:, :, None].expand(-1, -1, width),
            ],
            -1,
        )
        shown = picture.expand(frames, -1, -1, -1)
        return functional.grid_sample(shown, places, padding_mode="border", align_corners=False)


def read_photographs(folder: str | Path, height: int, width: int) -> Tensor:
    """Every JPEG and PNG file of a folder, sorted by name, resized to cover the size and cropped in the middle.

    Args:
        folder: is searched, its subfolders are not.
        height, width: in pixels.

    Returns: float32 (files, 3, height, width) in [-1, 1].

    Raises:
        ValueError: for a folder without such files, or a file that can't be read.
    """
    folder = Path(folder)
    files = sorted(path for path in folder.glob("*") if path.suffix.lower() in ENDINGS)
    if not files:
        raise ValueError(f"{folder} holds no photograph; give a folder with {', '.join(ENDINGS)} files in it")
    return torch.stack([_read(file, height, width) for file in files])


def _read(file: Path, height: int, width: int) -> Tensor:
    import numpy
    from PIL import Image, ImageOps

    try:
        with Image.open(file) as picture:
            fitted = ImageOps.fit(picture.convert("RGB"), (width, height), Image.Resampling.LANCZOS)
    except OSError as error:
        raise ValueError(f"{file} can't be read as a photograph: {error}; remove it, or make it again") from error
    return torch.from_numpy(numpy.array(fitted)).permute(2, 0, 1).float() / 127.5 - 1


def _with_balls(clip: Tensor, draws: Tensor) -> Tensor:
    """The clip (F, 3, H, W) with striped balls in front of it, each of which dims what is below and to the right of it.

    Args:
        clip: what is behind.
        draws: (balls, 9) in [0, 1): radius, place, speed, two hues, direction and width of the stripes. The last ball is
            in front.
    """
    frames, _, height, width = clip.shape
    # Lengths are in units of the shorter side, so a clip looks the same at any resolution.
    side = min(height, width)
    radius = (0.10 + 0.08 * draws[:, 0])[:, None, None]
    # A straight path, folded between walls that the ball does not cross: (balls, row and column, F).
    room = torch.tensor([height / side, width / side])[:, None] - 2 * radius
    path = draws[:, 1:3, None] * room + SPEED * (2 * draws[:, 3:5, None] - 1) * torch.linspace(0, 1, frames)
    middle = radius + room - (path.remainder(2 * room) - room).abs()
    # From a ball's middle, in radii: (balls, F, H, 1) and (balls, F, 1, W).
    rows, columns = ((torch.arange(extent) + 0.5) / side for extent in (height, width))
    y = ((rows - middle[:, 0, :, None]) / radius)[..., :, None]
    x = ((columns - middle[:, 1, :, None]) / radius)[..., None, :]
    square, pixels = y.square() + x.square(), (radius * side)[..., None]
    inside = ((1 - square.sqrt()) * pixels + 0.5).clamp(0, 1)
    lit = (LIGHT[0] * x + LIGHT[1] * y + LIGHT[2] * (1 - square).clamp_min(0).sqrt()).clamp_min(0)
    turn = (math.pi * draws[:, 7])[:, None, None, None]
    wave = ((turn.cos() * x + turn.sin() * y) * (2 + 2 * draws[:, 8])[:, None, None, None]).sin()
    # A pixel soft at their edges.
    stripes = (wave * pixels / 2 + 0.5).clamp(0, 1)
    shade = 1 - SHADOW * (1.6 - ((x - 0.3).square() + (y - 0.4).square()).sqrt() / 0.75).clamp(0, 1)
    light, shine = AMBIENT + (1 - AMBIENT) * lit, SHINE * lit.pow(24)
    for ball, (hue, other) in enumerate(draws[:, 5:7].tolist()):
        tones = (hue, hue + 0.15 + 0.7 * other)
        first, second = (torch.tensor(colorsys.hsv_to_rgb(tone, 0.85, 0.95)).view(3, 1, 1) for tone in tones)
        colour = (first + stripes[ball, :, None] * (second - first)) * light[ball, :, None] + shine[ball, :, None]
        behind = (clip + 1) * shade[ball, :, None] - 1
        clip = torch.lerp(behind, (2 * colour - 1).clamp(-1, 1), inside[ball, :, None])
    return clip
