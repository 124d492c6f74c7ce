"""One time line, whatever the time stamps of a file do."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from tests.support.videos import encode, numbered, numbers

from freqformer.media import decode_video, probe_video, read_clip

JOINABLE = {
    "ts": ("libx264", 0),
    "mpg": ("mpeg2video", 0),
    "flv": ("flv", 13),
    "mkv": ("libx264", 0),
}
"""Formats whose files can be put end to end: a codec, and the header's bytes that the second goes
without."""


@pytest.mark.parametrize("ending", JOINABLE)
def test_time_stamps_that_start_again_are_counted_on(tmp_path: Path, ending: str, caplog) -> None:
    """F86: recorders write files whose parts each start at 0."""
    codec, header = JOINABLE[ending]
    parts = [
        encode(
            tmp_path / f"{i}.{ending}",
            numbered(24)[12 * i : 12 * i + 12],
            codec=codec,
            gop=5,
            rate=25,
        )
        for i in range(2)
    ]
    path = tmp_path / f"joined.{ending}"
    path.write_bytes(parts[0].read_bytes() + parts[1].read_bytes()[header:])
    with caplog.at_level(logging.WARNING):
        info = probe_video(path)
    assert f"joined.{ending} has time stamps that start again" in caplog.text
    assert info.duration == pytest.approx(0.96, abs=0.002)
    clip = read_clip(path, start=0, num_frames=24, fps=25, height=32, width=48)
    assert numbers(clip) == list(range(24))
    clip = read_clip(path, start=0.52, num_frames=8, fps=25, height=32, width=48)
    assert numbers(clip) == list(range(13, 21))


@pytest.mark.parametrize(
    ("ending", "codec"), [("ts", "libx264"), ("mkv", "libx264"), ("mkv", "mpeg4")]
)
def test_time_stamps_before_0_and_missing_ones(tmp_path: Path, ending: str, codec: str) -> None:
    """F86: MKV reads H.264's negative time stamps as missing."""
    path = encode(tmp_path / f"clip.{ending}", numbered(12), codec=codec, gop=5, begin=-4)
    info = probe_video(path)
    assert info.duration == pytest.approx(1.2)
    assert info.num_frames == 12
    for start in (0.0, 0.6):
        first = round(10 * start)
        clip = read_clip(path, start=start, num_frames=6, fps=10, height=32, width=48)
        assert numbers(clip) == list(range(first, first + 6))


def test_streams_without_time_stamps_follow_their_own_rate(tmp_path: Path) -> None:
    """F86: their frames' lengths tell it, where the container takes 25 a second."""
    path = encode(tmp_path / "clip.h264", numbered(12), rate=12, format="h264")
    info = probe_video(path)
    assert info.duration == pytest.approx(1.0)
    clip = read_clip(path, start=0.25, num_frames=6, fps=12, height=32, width=48)
    assert numbers(clip) == list(range(3, 9))


def test_reordered_frames_in_avi_are_not_lost(tmp_path: Path) -> None:
    """F86: AVI has no presentation times, and those that FFmpeg makes fall back."""
    path = encode(tmp_path / "clip.avi", numbered(20), gop=10)
    clip = read_clip(path, start=0, num_frames=20, fps=10, height=32, width=48)
    assert numbers(clip) == list(range(20))


FORMATS = [
    ("mp4", "libx264", {}),
    ("mp4", "libx264", {"x264-params": "open-gop=1"}),
    ("mkv", "libx264", {"x264-params": "open-gop=1"}),
    ("ts", "libx265", {"x265-params": "keyint=5:log-level=error"}),
    ("avi", "libx264", {}),
    ("avi", "mpeg4", {"bf": "2"}),
    ("mpg", "mpeg2video", {"bf": "2"}),
    ("webm", "libvpx-vp9", {}),
    ("gif", "gif", {}),
    ("nut", "ffv1", {}),
    ("flv", "flv", {}),
    ("wmv", "wmv2", {}),
    ("mov", "qtrle", {}),
]


@pytest.mark.parametrize(("ending", "codec", "options"), FORMATS)
def test_going_to_a_time_shows_what_decoding_up_to_it_does(
    tmp_path: Path, ending: str, codec: str, options: dict[str, str]
) -> None:
    """F82: a clip must not depend on whether its video was decoded at once."""
    path = encode(
        tmp_path / f"clip.{ending}",
        numbered(24, 64, 96),
        codec=codec,
        gop=5,
        rate=25,
        options=options,
    )
    info = probe_video(path)
    whole = decode_video(info, height=16, width=24)
    assert numbers(torch.stack([frame.picture for frame in whole.frames])) == pytest.approx(
        range(24), abs=1
    )
    for i in range(11):
        place = {"start": i * info.duration / 12, "num_frames": 2, "fps": 30}
        assert torch.equal(whole.clip(**place), read_clip(info, **place, height=16, width=24))
