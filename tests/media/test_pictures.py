"""Frames are laid down, sized and made opaque as a player shows them."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import pytest
import torch
from PIL import Image
from tests.support.videos import encode, gradient

from freqformer.media import probe_video, read_clip


def test_resized_to_cover_and_centred(tmp_path: Path) -> None:
    frames = torch.zeros(1, 60, 120, 3, dtype=torch.uint8)
    frames[:, 20:40, 50:70] = 255
    path = encode(tmp_path / "clip.mp4", frames)
    square = read_clip(path, start=0, num_frames=1, fps=1, height=30, width=30)[0].float().mean(-1)
    assert square[11:19, 11:19].min() > 200
    assert square[:8].max() < 40
    assert square[:, :8].max() < 40
    wide = read_clip(path, start=0, num_frames=1, fps=1, height=30, width=120)[0].float().mean(-1)
    assert wide[8:22, 53:67].min() > 200
    assert wide[:, :45].max() < 40


def test_rotation_of_the_file_is_applied(tmp_path: Path) -> None:
    frames = torch.zeros(2, 32, 64, 3, dtype=torch.uint8)
    frames[:, :, 32:] = 255
    path = encode(tmp_path / "clip.mp4", frames, rotation=90)
    info = probe_video(path)
    assert (info.height, info.width) == (64, 32)
    shown = read_clip(path, start=0, num_frames=1, fps=1, height=64, width=32)[0].float().mean(-1)
    # A quarter turn counterclockwise brings the right half to the top.
    assert shown[:28].min() > 200
    assert shown[36:].max() < 50


def test_pixels_that_are_not_square(tmp_path: Path) -> None:
    path = encode(tmp_path / "clip.mp4", gradient(2, 32, 32), aspect=Fraction(2, 1))
    info = probe_video(path)
    assert (info.height, info.width) == (32, 64)


CORNERS = {"R": (255, 0, 0), "G": (0, 255, 0), "B": (0, 0, 255), "Y": (255, 255, 0)}
ONE = 1 << 16
W = 1 << 30


def corners(height: int, width: int) -> torch.Tensor:
    """One frame, red and green above, blue and yellow below."""
    frame = torch.zeros(1, height, width, 3, dtype=torch.uint8)
    for place, colour in enumerate(CORNERS.values()):
        rows = slice(0, height // 2) if place < 2 else slice(height // 2, None)
        columns = slice(width // 2, None) if place % 2 else slice(0, width // 2)
        frame[:, rows, columns] = torch.tensor(colour, dtype=torch.uint8)
    return frame


def shown_corners(frame: torch.Tensor) -> str:
    height, width = frame.shape[:2]
    places = [
        (height // 4, width // 4),
        (height // 4, -width // 4),
        (-height // 4, width // 4),
        (-height // 4, -width // 4),
    ]
    names = {colour: name for name, colour in CORNERS.items()}
    found = [names[tuple((frame[place] > 127).int().mul(255).tolist())] for place in places]
    return "".join(found[:2]) + "/" + "".join(found[2:])


MATRICES = {
    "as stored": ((ONE, 0, 0, ONE), "RG/BY"),
    "quarter turn right": ((0, ONE, -ONE, 0), "BR/YG"),
    "half turn": ((-ONE, 0, 0, -ONE), "YB/GR"),
    "quarter turn left": ((0, -ONE, ONE, 0), "GY/RB"),
    "mirrored": ((-ONE, 0, 0, ONE), "GR/YB"),
    "upside down": ((ONE, 0, 0, -ONE), "BY/RG"),
    "transposed": ((0, ONE, ONE, 0), "RB/GY"),
    "transposed, half turn": ((0, -ONE, -ONE, 0), "YG/BR"),
    "nearly upright": ((ONE - 900, 9000, -9000, ONE - 900), "RG/BY"),
}


@pytest.mark.parametrize(("matrix", "expected"), MATRICES.values(), ids=MATRICES)
@pytest.mark.parametrize("ending", ["mp4", "mkv"])
def test_all_eight_display_matrices(
    tmp_path: Path, ending: str, matrix: tuple[int, ...], expected: str
) -> None:
    """F84."""
    a, b, c, d = matrix
    full = [a, b, 0, c, d, 0, 0, 0, W]
    path = encode(tmp_path / f"clip.{ending}", corners(64, 96), matrix=full, pixels="yuv444p")
    info = probe_video(path)
    turned = expected in ("BR/YG", "GY/RB", "RB/GY", "YG/BR")
    assert (info.height, info.width) == ((96, 64) if turned else (64, 96))
    clip = read_clip(path, start=0, num_frames=1, fps=10, height=info.height, width=info.width)
    assert shown_corners(clip[0]) == expected


def test_transparent_pixels_are_black_whatever_lies_under_them(tmp_path: Path) -> None:
    """F87."""
    magenta = torch.tensor([255, 0, 255], dtype=torch.uint8).expand(2, 32, 48, 3)
    alpha = torch.zeros(2, 32, 48, 1, dtype=torch.uint8)
    alpha[:, :, 16:32] = 128
    alpha[:, :, 32:] = 255
    frames = torch.cat([magenta, alpha], -1)
    for name, codec, pixels in (("clip.mov", "qtrle", "argb"), ("clip.mkv", "ffv1", "yuva444p")):
        path = encode(tmp_path / name, frames, codec=codec, pixels=pixels)
        clip = read_clip(path, start=0, num_frames=1, fps=10, height=32, width=48)[0].int()
        assert clip[:, :15].max() <= 2
        assert (clip[:, 18:30, 0] - 128).abs().max() <= 3
        assert (clip[:, 33:, 0] - 255).abs().max() <= 3
        small = read_clip(path, start=0, num_frames=1, fps=10, height=4, width=6)[0].int()
        assert small[:, :2].max() <= 2, "hidden colours don't bleed where it is made smaller"


def test_transparency_of_webm_is_read(tmp_path: Path) -> None:
    """F87: FFmpeg's own decoder would leave it out."""
    magenta = torch.tensor([255, 0, 255], dtype=torch.uint8).expand(2, 64, 96, 3)
    frames = torch.cat([magenta, torch.zeros(2, 64, 96, 1, dtype=torch.uint8)], -1)
    path = encode(tmp_path / "clip.webm", frames, codec="libvpx-vp9", pixels="yuva420p")
    clip = read_clip(path, start=0, num_frames=2, fps=10, height=64, width=96)
    assert clip.max() <= 2


def test_palettes_hold_transparency_too(tmp_path: Path) -> None:
    image = Image.new("P", (48, 32), 1)
    image.putpalette([255, 255, 255, 255, 0, 255])
    image.save(tmp_path / "clip.gif", transparency=1)
    clip = read_clip(tmp_path / "clip.gif", start=0, num_frames=1, fps=10, height=32, width=48)
    assert clip.max() == 0
