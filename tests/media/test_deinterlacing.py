"""Interlaced frames show one moment; what moved between their two has no combs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.support.videos import encode

from freqformer.media import decode_video, probe_video, read_clip

MOVED = 24
"""Columns that a bar goes from one field to the next, much wider than it is."""


def woven(frames: int, height: int, width: int) -> torch.Tensor:
    """A white bar at another place in the odd rows than in the even ones: uint8 (F, H, W, 3)."""
    video = torch.zeros(frames, height, width, 3, dtype=torch.uint8)
    for index in range(frames):
        left = 8 + index
        video[index, ::2, left : left + 8] = 255
        video[index, 1::2, left + MOVED : left + MOVED + 8] = 255
    return video


def interlaced(path: Path, frames: int) -> Path:
    return encode(path, woven(frames, 64, 96), codec="mpeg2video", flags="+ilme+ildct", rate=25)


@pytest.mark.parametrize("size", [(32, 48), (64, 96)])
def test_the_first_field_alone_is_shown(tmp_path: Path, size: tuple[int, int]) -> None:
    height, width = size
    path = interlaced(tmp_path / "combed.mkv", 4)
    clip = read_clip(path, start=0, num_frames=4, fps=25, height=height, width=width)
    level = clip.float().mean((1, 3)) / 255
    scale = width / 96
    for index, columns in enumerate(level):
        middle = round((8 + index + 4) * scale)
        assert columns[middle] > 0.9, "the whole height of the first moment's bar"
        assert columns[round((8 + MOVED + index + 4) * scale)] < 0.1, "nothing of the second's"


def test_a_clip_does_not_depend_on_how_it_was_decoded(tmp_path: Path) -> None:
    path = interlaced(tmp_path / "combed.mkv", 12)
    info = probe_video(path)
    assert (info.height, info.width) == (64, 96)
    whole = decode_video(info, height=64, width=96)
    for start in (0.0, 0.2):
        apart = read_clip(path, start=start, num_frames=4, fps=25, height=64, width=96)
        torch.testing.assert_close(
            whole.clip(start=start, num_frames=4, fps=25), apart, rtol=0, atol=0
        )


def test_progressive_frames_keep_all_rows(tmp_path: Path) -> None:
    path = encode(tmp_path / "plain.mkv", woven(2, 64, 96), codec="ffv1", rate=25)
    clip = read_clip(path, start=0, num_frames=2, fps=25, height=64, width=96)
    bars = clip[0].float().mean(-1)
    assert bars[::2, 12].min() > 200
    assert bars[1::2, 12 + MOVED].min() > 200
    assert bars[1::2, 12].max() < 60
