"""The sound of a part of a file is what was written there, at its time."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from freqformer.media import Sound, VideoError, read_sound, write_video

RATE = 8000


def tones(seconds: Tensor) -> Tensor:
    """Two channels that differ, one of which grows."""
    left = 0.5 * torch.sin(2 * math.pi * 100 * seconds)
    return torch.stack([left, torch.sin(2 * math.pi * 200 * seconds) * seconds / 4])


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four seconds at 8 frames a second."""
    path = tmp_path_factory.mktemp("sound") / "new.mp4"
    sound = Sound(tones(torch.arange(4 * RATE) / RATE), RATE)
    write_video(torch.zeros(32, 16, 16, 3, dtype=torch.uint8), path, 8, sound=sound)
    return path


@pytest.mark.parametrize("start", [0.0, 0.7, 2.5])
def test_what_is_heard_at_a_time(video: Path, start: float) -> None:
    """At another rate; AAC fades in, so that the first samples of a file differ."""
    found = read_sound(video, start=start, samples=4000, rate=4000)
    expected = tones(start + torch.arange(4000) / 4000)
    first = 500 if start == 0 else 0
    torch.testing.assert_close(found[:, first:], expected[:, first:], rtol=0, atol=0.02)


def test_after_the_end_there_is_silence(video: Path) -> None:
    found = read_sound(video, start=3.5, samples=RATE, rate=RATE)
    assert found.shape == (2, RATE)
    assert float(found[:, : RATE // 4].abs().max()) > 0.3
    assert float(found[:, 3 * RATE // 4 :].abs().max()) == 0


def test_a_file_without_sound_is_silent(tmp_path: Path) -> None:
    path = tmp_path / "mute.mp4"
    write_video(torch.zeros(8, 16, 16, 3, dtype=torch.uint8), path, 8)
    assert torch.equal(read_sound(path, start=0.5, samples=10, rate=RATE), torch.zeros(2, 10))


def test_what_is_no_video_is_refused(tmp_path: Path) -> None:
    with pytest.raises(VideoError, match="does not exist"):
        read_sound(tmp_path / "none.mp4", start=0, samples=10, rate=RATE)
