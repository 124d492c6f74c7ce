"""Frames are laid down, sized and made opaque as a player shows them."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import torch
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
