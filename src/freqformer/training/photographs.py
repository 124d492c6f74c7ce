"""Clips from photographs: a camera pans and zooms over one, and shaded balls fly, bounce and hide
one another in front.

Shape legend: F frames, H rows, W columns of a clip. Places in a photograph run from -1 to 1 along
both sides.
"""

from __future__ import annotations

import colorsys
import hashlib
import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from freqformer._optional import needs
from freqformer.training.loader import ProceduralClips, listed
from freqformer.training.samples import PIXEL_CHANNELS, BadFile
from freqformer.training.seeding import derive_generator

if TYPE_CHECKING:
    from PIL import Image

logger = logging.getLogger(__name__)

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


class PhotographClips(ProceduralClips):
    """An endless source of clips; clip `index` is always the same.

    Args:
        folder: holds the photographs; they are scaled to cover twice the clip's size and cropped in
            the middle.
        seed: of all clips.
        num_frames, height, width: of a clip.

    Raises:
        ValueError: for a folder without photographs, or none that can be read.
    """

    def __init__(
        self, folder: str | Path, seed: int, *, num_frames: int, height: int, width: int
    ) -> None:
        self.seed, self.shape = seed, (num_frames, height, width)
        self.photographs = read_photographs(folder, DETAIL * height, DETAIL * width)
        self._copies: dict[torch.device, Tensor] = {}

    @property
    def channels(self) -> int:
        """Of pixels."""
        return PIXEL_CHANNELS

    def draw(self, indices: Sequence[int], device: torch.device) -> Tensor:
        """The clips of these numbers: (clips, 3, F, H, W) float32 in [-1, 1] on the device."""
        numbers = [self._numbers(index) for index in indices]
        pictures, views, balls = zip(*numbers, strict=True)
        most = max(len(one) for one in balls)
        there = torch.tensor([[place < len(one) for place in range(most)] for one in balls]).view(
            len(balls), most
        )
        padded = torch.stack([functional.pad(one, (0, 0, 0, most - len(one))) for one in balls])
        shown = self._on(device)[torch.tensor(pictures).to(device)]
        clip = self._background(shown, torch.tensor(views).to(device))
        return _with_balls(clip, padded.to(device), _tones(padded).to(device), there.to(device))

    def fingerprint(self) -> str:
        """Differs with every argument and with the photographs."""
        pixels = hashlib.blake2b(self.photographs.numpy().tobytes(), digest_size=8).hexdigest()
        return f"photographs {self.seed} {self.shape} {pixels}"

    def _on(self, device: torch.device) -> Tensor:
        if device not in self._copies:
            self._copies[device] = self.photographs.to(device)
        return self._copies[device]

    def _numbers(self, index: int) -> tuple[int, list[float], Tensor]:
        """A clip's photograph; half the first view, its middle (column, row), the same of the last;
        balls (balls, 9)."""
        generator = derive_generator(self.seed, "photographs", index)
        count = int(torch.randint(BALLS[0], BALLS[1] + 1, (1,), generator=generator))
        picture = int(torch.randint(len(self.photographs), (1,), generator=generator))
        share, column, row, zoom, *pan = torch.rand(6, generator=generator).tolist()
        first = VIEW[0] + (VIEW[1] - VIEW[0]) * share
        last = min(max(first * 2 ** (ZOOM * (2 * zoom - 1)), VIEW[0]), VIEW[1])
        # A view lies within the photograph if its ends do, so a straight move between two such
        # views does too.
        starts = [(2 * place - 1) * (1 - first) for place in (column, row)]
        ends = [
            min(max(start + PAN * first * (2 * move - 1), last - 1), 1 - last)
            for start, move in zip(starts, pan, strict=True)
        ]
        return picture, [first, *starts, last, *ends], torch.rand(count, 9, generator=generator)

    def _background(self, pictures: Tensor, views: Tensor) -> Tensor:
        """From one view of each picture (clips, 3, rows, columns) to another, straight: (clips, 3,
        F, H, W)."""
        frames, height, width = self.shape
        time = torch.linspace(0, 1, frames, device=views.device)
        half, column_middle, row_middle = torch.lerp(
            views[:, :3, None], views[:, 3:, None], time
        ).unbind(1)
        columns, rows = (
            half[..., None] * ((2 * torch.arange(n, device=views.device) + 1) / n - 1)
            + middle[..., None]
            for n, middle in ((width, column_middle), (height, row_middle))
        )
        size = (-1, -1, height, width)
        places = torch.stack(
            [columns[:, :, None, :].expand(size), rows[:, :, :, None].expand(size)], -1
        )
        # Frames below one another: a picture serves all frames of its clip without a copy.
        shown = functional.grid_sample(
            pictures, places.flatten(1, 2), padding_mode="border", align_corners=False
        )
        return shown.unflatten(2, (frames, height))


def read_photographs(folder: str | Path, height: int, width: int) -> Tensor:
    """Every JPEG and PNG file of a folder, sorted by name, resized to cover the size and cropped in
    the middle.

    They are shown as a viewer shows them: turned as their EXIF orientation says, and over black
    where they are transparent. A file that can't be read is left out, and named in the log.

    Args:
        folder: is searched, its subfolders are not.
        height, width: in pixels.

    Returns: float32 (files, 3, height, width) in [-1, 1].

    Raises:
        ValueError: for a folder without such files, or none that can be read.
    """
    folder = Path(folder)
    files = sorted(
        path for path in folder.glob("*") if path.suffix.lower() in ENDINGS and path.is_file()
    )
    if not files:
        raise ValueError(
            f"{folder} holds no photograph; give a folder with {', '.join(ENDINGS)} files in it"
        )
    found = [_read(file, height, width) for file in files]
    reasons = [one.reason for one in found if isinstance(one, BadFile)]
    pictures = [one for one in found if isinstance(one, Tensor)]
    if not pictures:
        raise ValueError(f"{folder} holds no photograph that can be read:\n{listed(reasons)}")
    if reasons:
        logger.warning(
            "%d of %d photographs in %s can't be read and are left out:\n%s",
            len(reasons),
            len(files),
            folder,
            listed(reasons),
        )
    return torch.stack(pictures)


def _read(file: Path, height: int, width: int) -> Tensor | BadFile:
    import numpy

    with needs("train"):
        from PIL import Image, ImageOps

    try:
        with Image.open(file) as picture:
            shown = _as_shown(ImageOps.exif_transpose(picture))
            fitted = ImageOps.fit(shown, (width, height), Image.Resampling.LANCZOS)
    except Exception as error:
        # Damaged files make Pillow raise much: OSError, SyntaxError, ValueError,
        # DecompressionBombError.
        return BadFile(
            file, f"{file} can't be read as a photograph: {error}; remove it, or make it again"
        )
    return torch.from_numpy(numpy.array(fitted)).permute(2, 0, 1).float() / 127.5 - 1


def _as_shown(picture: Image.Image) -> Image.Image:
    """The picture in RGB with 8 bits, over black where it is transparent."""
    with needs("train"):
        from PIL import Image

    if picture.mode.startswith("I"):
        # Pillow would cut 16 bits off at 255, which leaves white.
        return picture.point(lambda value: value / 257 + 0.5, "F").convert("RGB")
    if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
        opaque = Image.new("RGBA", picture.size, "black")
        return Image.alpha_composite(opaque, picture.convert("RGBA")).convert("RGB")
    return picture.convert("RGB")


def _tones(draws: Tensor) -> Tensor:
    """Two colours in [0, 1] of every ball: (clips, balls, 9) -> (clips, balls, 2, 3)."""
    hues = draws[..., 5:7].flatten(0, 1).tolist()
    tones = [
        [colorsys.hsv_to_rgb(tone, 0.85, 0.95) for tone in (hue, hue + 0.15 + 0.7 * other)]
        for hue, other in hues
    ]
    return torch.tensor(tones).view(*draws.shape[:2], 2, 3)


def _with_balls(clip: Tensor, draws: Tensor, tones: Tensor, there: Tensor) -> Tensor:
    """Clips with striped balls in front, each of which dims what is below and to the right of it.

    Args:
        clip: what is behind, (clips, 3, F, H, W).
        draws: (clips, balls, 9) in [0, 1): radius, place, speed, two hues, direction and width of
            the stripes. A clip's last ball is in front.
        tones: colours of the stripes, (clips, balls, 2, 3).
        there: whether there is such a ball, bool (clips, balls).
    """
    _, _, frames, height, width = clip.shape
    # Lengths are in units of the shorter side, so a clip looks the same at any resolution.
    side = min(height, width)
    radius = (0.10 + 0.08 * draws[..., 0])[..., None, None]
    # A straight path, folded between walls that the ball does not cross: (clips, balls, row and
    # column, F).
    room = torch.tensor([height / side, width / side], device=clip.device)[:, None] - 2 * radius
    moved = (
        SPEED * (2 * draws[..., 3:5, None] - 1) * torch.linspace(0, 1, frames, device=clip.device)
    )
    path = draws[..., 1:3, None] * room + moved
    middle = radius + room - (path.remainder(2 * room) - room).abs()
    # From a ball's middle, in radii: (clips, balls, F, H, 1) and (clips, balls, F, 1, W).
    rows, columns = (
        (torch.arange(extent, device=clip.device) + 0.5) / side for extent in (height, width)
    )
    y = ((rows - middle[..., 0, :, None]) / radius)[..., :, None]
    x = ((columns - middle[..., 1, :, None]) / radius)[..., None, :]
    square, pixels = y.square() + x.square(), (radius * side)[..., None]
    seen = there[..., None, None, None].float()
    inside = ((1 - square.sqrt()) * pixels + 0.5).clamp(0, 1) * seen
    lit = (LIGHT[0] * x + LIGHT[1] * y + LIGHT[2] * (1 - square).clamp_min(0).sqrt()).clamp_min(0)
    turn = (math.pi * draws[..., 7])[..., None, None, None]
    wave = (
        (turn.cos() * x + turn.sin() * y) * (2 + 2 * draws[..., 8])[..., None, None, None]
    ).sin()
    # A pixel soft at their edges.
    stripes = (wave * pixels / 2 + 0.5).clamp(0, 1)
    shade = 1 - SHADOW * seen * (
        1.6 - ((x - 0.3).square() + (y - 0.4).square()).sqrt() / 0.75
    ).clamp(0, 1)
    light, shine = AMBIENT + (1 - AMBIENT) * lit, SHINE * lit.pow(24)
    for ball in range(draws.shape[1]):
        # One ball of every clip, with a place for channels.
        stripe, lightness, gloss, dimmed, cover = (
            x[:, ball, None] for x in (stripes, light, shine, shade, inside)
        )
        first, second = (tone[..., None, None, None] for tone in tones[:, ball].unbind(1))
        colour = torch.lerp(first, second, stripe) * lightness + gloss
        clip = torch.lerp((clip + 1) * dimmed - 1, (2 * colour - 1).clamp(-1, 1), cover)
    return clip
