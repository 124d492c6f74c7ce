"""What a video is: by its frames, not by its header, within bounds."""

from __future__ import annotations

import logging
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
import pytest
import torch
from tests.support.videos import encode, greys, numbered, numbers, with_sound

from freqformer.media import VideoError, decode_video, probe_video, probing, read_clip

FORMATS = {
    "mp4": "libx264",
    "mkv": "libx264",
    "webm": "libvpx-vp9",
    "ts": "libx264",
    "avi": "libx264",
    "flv": "flv",
    "wmv": "wmv2",
    "mov": "mpeg4",
    "nut": "ffv1",
}


def all_numbers(path: Path) -> list[int]:
    video = decode_video(probe_video(path), height=16, width=24)
    return numbers(torch.stack([frame.picture for frame in video.frames]))


@pytest.mark.parametrize("delay", [0.0, 2.0])
@pytest.mark.parametrize("ending", ["mkv", "mp4", "ts"])
def test_sound_counts_for_nothing(tmp_path: Path, ending: str, delay: float) -> None:
    """F80: the picture may begin later and end earlier than the sound, whose length the container
    claims."""
    path = with_sound(tmp_path / f"clip.{ending}", frames=12, seconds=5.0, delay=delay)
    info = probe_video(path)
    assert info.duration == pytest.approx(1.0, abs=0.002)
    assert info.num_frames == 12
    clip = read_clip(path, start=0, num_frames=12, fps=12, height=32, width=48)
    assert numbers(clip) == list(range(12))


@pytest.mark.parametrize("ending", FORMATS)
def test_the_end_of_a_large_file_is_looked_at_alone(
    tmp_path: Path, ending: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = encode(tmp_path / f"clip.{ending}", numbered(20), codec=FORMATS[ending], gop=5)
    whole = probe_video(path)
    assert whole.duration == pytest.approx(2.0)
    assert whole.num_frames == 20
    monkeypatch.setattr(probing, "SCAN_BYTES", 0)
    jumped = probe_video(path)
    assert jumped.duration == whole.duration
    assert jumped.last == whole.last
    assert jumped.num_frames == pytest.approx(20, abs=1)


def test_a_header_that_lies_is_not_believed(tmp_path: Path) -> None:
    """F104: a length of 10**10 seconds."""
    path = encode(tmp_path / "clip.mkv", numbered(20))
    data = bytearray(path.read_bytes())
    # The element Duration: its identifier, its size of 8 bytes, a double in milliseconds.
    place = data.index(b"\x44\x89\x88") + 3
    data[place : place + 8] = bytes.fromhex("42a2309ce5400000")
    path.write_bytes(data)
    with av.open(str(path)) as container:
        assert container.duration is not None
        assert container.duration > 1e15
    assert probe_video(path).duration == pytest.approx(2.0)


def test_time_stamps_that_can_not_be_true_are_refused(tmp_path: Path) -> None:
    """F108."""
    path = encode(tmp_path / "clip.mkv", numbered(2), times=[0, 10**13])
    with pytest.raises(VideoError, match=r"clip\.mkv claims to last 1e\+10 s.*remove it"):
        probe_video(path)


def test_of_a_million_frames_the_first_are_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog
) -> None:
    monkeypatch.setattr(probing, "SCAN_PACKETS", 15)
    path = encode(tmp_path / "clip.mp4", numbered(20, 16, 16), codec="mjpeg")
    with caplog.at_level(logging.WARNING):
        assert probe_video(path).duration == pytest.approx(1.5)
    assert "clip.mp4 is so long that only its first 1.500 s are used" in caplog.text


@pytest.mark.parametrize("codec", ["libx264", "libx265", "mpeg2video"])
def test_a_start_that_can_not_be_decoded_is_left_out_and_said(
    tmp_path: Path, codec: str, caplog
) -> None:
    """F81: a stream that was cut in the middle begins at its first key frame."""
    path = encode(tmp_path / "clip.ts", numbered(20, 64, 96), codec=codec, gop=5, rate=25, drop=2)
    with caplog.at_level(logging.WARNING):
        info = probe_video(path)
        probe_video(path)
    (record,) = caplog.records
    assert "clip.ts begins without a key frame: its first 0." in record.getMessage()
    clip = read_clip(info, start=0, num_frames=info.num_frames, fps=25, height=32, width=48)
    found = greys(clip)
    assert 12 <= len(found) <= 16
    assert all(after > before for before, after in pairwise(found)), "no still picture"
    assert info.duration == pytest.approx(info.num_frames / 25)


@pytest.mark.parametrize("ending", ["mp4", "mkv", "ts", "avi"])
def test_a_file_that_is_cut_off_lasts_as_long_as_what_is_left(tmp_path: Path, ending: str) -> None:
    whole = encode(
        tmp_path / f"whole.{ending}",
        torch.randint(0, 256, (30, 64, 96, 3), dtype=torch.uint8),
        front=ending == "mp4",
    )
    data = whole.read_bytes()
    for share in (0.3, 0.5, 0.62, 0.8, 0.97):
        path = tmp_path / f"cut{share}.{ending}"
        path.write_bytes(data[: int(share * len(data))])
        info = probe_video(path)
        assert abs(info.duration - 3 * share) < 0.7
        count = round(info.duration * 10)
        clip = read_clip(info, start=0, num_frames=count, fps=10, height=32, width=48)
        assert len(clip) == count


def test_interlacing_is_said_once(tmp_path: Path, caplog) -> None:
    """F87."""
    combed = encode(
        tmp_path / "combed.mkv", numbered(3), codec="mpeg2video", flags="+ilme+ildct", rate=25
    )
    with caplog.at_level(logging.WARNING):
        for path in (combed, combed, encode(tmp_path / "plain.mkv", numbered(3))):
            probe_video(path)
    (record,) = caplog.records
    assert "combed.mkv is interlaced" in record.getMessage()


def test_the_densest_rate_of_a_video_is_found(tmp_path: Path) -> None:
    times = [*range(0, 1000, 40), *range(1000, 9000, 1000)]
    info = probe_video(encode(tmp_path / "variable.mkv", numbered(len(times)) // 2, times=times))
    assert info.peak_fps == pytest.approx(25)
    assert info.fps < 5
    even = probe_video(encode(tmp_path / "even.mkv", numbered(20), rate=Fraction(30000, 1001)))
    assert even.peak_fps == even.fps == pytest.approx(30000 / 1001)


def test_titles_that_are_not_utf8(tmp_path: Path) -> None:
    """F108."""
    path = encode(tmp_path / "clip.avi", numbered(4), codec="mjpeg", title="Caf#")
    path.write_bytes(path.read_bytes().replace(b"Caf#", b"Caf\xe9"))
    assert all_numbers(path) == [0, 1, 2, 3]


def test_a_claimed_size_beyond_memory_is_refused(tmp_path: Path) -> None:
    """F104."""
    path = tmp_path / "large.y4m"
    path.write_bytes(b"YUV4MPEG2 W16384 H8192 F25:1 Ip A1:1 C420jpeg\nFRAME\n")
    with pytest.raises(VideoError, match=r"large\.y4m"):
        probe_video(path)


def test_strips_that_would_take_the_memory_are_refused(tmp_path: Path) -> None:
    """F104: pixels said to be 10**6 times as wide as high."""
    path = tmp_path / "wide.y4m"
    path.write_bytes(
        b"YUV4MPEG2 W16 H16 F25:1 Ip A10000000:1 C420jpeg\n" + (b"FRAME\n" + bytes(384)) * 3
    )
    with pytest.raises(VideoError, match=r"wide\.y4m.*up to \d+ pixels are allowed"):
        read_clip(path, start=0, num_frames=1, fps=1, height=64, width=64)
