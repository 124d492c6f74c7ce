"""Clips are taken by time, whatever the file's time stamps do."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import av
import pytest
import torch
from tests.support.videos import encode, gradient, numbered, numbers

import freqformer
from freqformer.media import VideoError, contact_sheet, probe_video, read_clip, write_video


@pytest.mark.parametrize(
    ("start", "fps", "expected"),
    [
        (0, 10, [0, 1, 2, 3]),
        (0.4, 10, [4, 5, 6, 7]),
        (1.6, 10, [16, 17, 18, 19]),
        (0, 5, [0, 2, 4, 6]),
        (0.94, 10, [9, 10, 11, 12]),
        (0.96, 10, [10, 11, 12, 13]),
        (0.51, 20, [5, 6, 6, 7]),
        (1.99, 1000, [19, 19, 19, 19]),
    ],
)
def test_frames_nearest_in_time(
    tmp_path: Path, start: float, fps: float, expected: list[int]
) -> None:
    path = encode(tmp_path / "clip.mp4", numbered(20))
    assert (
        numbers(read_clip(path, start=start, num_frames=4, fps=fps, height=32, width=48))
        == expected
    )


def test_variable_frame_rate(tmp_path: Path) -> None:
    path = encode(tmp_path / "clip.mkv", numbered(6), times=[0, 100, 150, 1000, 1050, 2000])
    assert numbers(read_clip(path, start=0, num_frames=5, fps=2.5, height=32, width=48)) == [
        0,
        2,
        3,
        4,
        5,
    ]


def test_first_time_stamp_is_the_start(tmp_path: Path) -> None:
    path = encode(tmp_path / "clip.mkv", numbered(6), times=[5000 + 100 * i for i in range(6)])
    assert numbers(read_clip(path, start=0.2, num_frames=3, fps=10, height=32, width=48)) == [
        2,
        3,
        4,
    ]


@pytest.mark.parametrize(
    ("name", "options"), [("clip.h264", {"format": "h264"}), ("clip.avi", {"codec": "mpeg4"})]
)
@pytest.mark.parametrize("start", [0.0, 0.24])
def test_other_formats(tmp_path: Path, name: str, options: dict, start: float) -> None:
    path = encode(tmp_path / name, numbered(10), rate=25, **options)
    assert probe_video(path).num_frames == 10
    first = round(start * 25)
    assert numbers(read_clip(path, start=start, num_frames=3, fps=25, height=32, width=48)) == [
        first,
        first + 1,
        first + 2,
    ]


def test_clip_past_the_end_is_refused(tmp_path: Path) -> None:
    path = encode(tmp_path / "clip.mp4", numbered(20))
    assert read_clip(path, start=0, num_frames=20, fps=10, height=8, width=8).shape == (20, 8, 8, 3)
    for start, count, fps in ((0, 21, 10), (1.5, 6, 10), (30, 1, 10), (0, 20, 9)):
        with pytest.raises(VideoError, match=r"clip\.mp4 has frames up to 2\.000 s.*start earlier"):
            read_clip(path, start=start, num_frames=count, fps=fps, height=8, width=8)


def test_file_cut_short(tmp_path: Path) -> None:
    whole = tmp_path / "whole.mp4"
    write_video(torch.randint(0, 256, (30, 64, 96, 3), dtype=torch.uint8), whole, 10)
    data, path = whole.read_bytes(), tmp_path / "cut.mp4"
    path.write_bytes(data[: len(data) // 2])
    # The index in front still claims three seconds.
    left = probe_video(path)
    assert left.num_frames == pytest.approx(14, abs=2)
    assert left.duration == pytest.approx(left.num_frames / 10)
    with pytest.raises(VideoError, match=r"cut\.mp4 has frames up to 1\."):
        read_clip(path, start=0, num_frames=30, fps=10, height=32, width=48)
    # As where it was cut since it was looked at.
    with pytest.raises(VideoError, match=r"cut\.mp4"):
        read_clip(
            replace(left, duration=3.0, last=2.9),
            start=2.5,
            num_frames=4,
            fps=10,
            height=32,
            width=48,
        )
    assert read_clip(path, start=0, num_frames=5, fps=10, height=32, width=48).shape == (
        5,
        32,
        48,
        3,
    )
    path.write_bytes(data[:100])
    with pytest.raises(VideoError, match=r"cut\.mp4"):
        probe_video(path)


def test_wrong_arguments_are_refused(tmp_path: Path) -> None:
    path = encode(tmp_path / "clip.mp4", numbered(4))
    good = {"start": 0.0, "num_frames": 2, "fps": 10.0, "height": 8, "width": 8}
    bad = {
        "start": [-1.0, float("nan"), float("inf")],
        "fps": [0.0, float("nan")],
        "num_frames": [0, 1.5],
        "height": [0, True],
    }
    for name, values in bad.items():
        for value in values:
            with pytest.raises(ValueError, match=name):
                read_clip(path, **{**good, name: value})
    with pytest.raises(ValueError, match="fps"):
        write_video(gradient(2, 8, 8), tmp_path / "x.mp4", 0)
    with pytest.raises(ValueError, match="columns"):
        contact_sheet(gradient(2, 8, 8), tmp_path / "x.png", columns=0)


def test_shipped_clip_is_a_real_video() -> None:
    path = Path(freqformer.__file__).parent / "assets" / "pagoda.mp4"
    assert path.stat().st_size <= 1_000_000
    info = probe_video(path)
    assert (info.height, info.width, info.num_frames) == (216, 384, 120)
    clip = read_clip(path, start=0, num_frames=5, fps=1, height=54, width=96).float()
    assert clip.std() > 40
    assert (clip[1:] - clip[:-1]).abs().mean() > 8


def test_a_clip_over_damage_is_refused_and_others_are_not(tmp_path: Path) -> None:
    """What can't be decoded is no still picture."""
    frames = torch.randint(0, 256, (40, 64, 96, 3), dtype=torch.uint8)
    path = encode(tmp_path / "clip.mp4", frames, gop=5)
    with av.open(str(path)) as container:
        packets = [
            (packet.pos, packet.size, packet.pts)
            for packet in container.demux(video=0)
            if packet.size
        ]
    data = bytearray(path.read_bytes())
    for place, size, _ in packets[11:20]:
        assert place is not None
        data[place : place + size] = bytes(size)
    path.write_bytes(data)
    assert read_clip(path, start=0, num_frames=10, fps=10, height=8, width=8).shape == (10, 8, 8, 3)
    assert read_clip(path, start=2, num_frames=20, fps=10, height=8, width=8).shape == (20, 8, 8, 3)
    for start in (0.5, 1.2, 1.4):
        with pytest.raises(VideoError, match=r"clip\.mp4 is damaged from 1\.\d+ s to 2\.\d+ s"):
            read_clip(path, start=start, num_frames=10, fps=10, height=8, width=8)


@pytest.mark.parametrize(
    "sizes",
    [
        {"height": 2**31},
        {"width": 10**12},
        {"num_frames": 10**12},
        {"height": 2**14 + 1},
        {"num_frames": 2**70},
    ],
)
def test_sizes_beyond_what_memory_holds_are_refused(tmp_path: Path, sizes: dict[str, int]) -> None:
    """F104."""
    path = encode(tmp_path / "clip.mp4", numbered(4))
    ((name, value),) = sizes.items()
    with pytest.raises(
        ValueError, match=rf"{name} is {value}; whole numbers from 1 to \d+ are allowed"
    ):
        read_clip(
            path, **{"start": 0.0, "num_frames": 2, "fps": 10.0, "height": 8, "width": 8, **sizes}
        )


def test_times_beyond_any_file_are_refused(tmp_path: Path) -> None:
    path = encode(tmp_path / "clip.mp4", numbered(4))
    for start, fps in ((1e300, 10.0), (0.0, 1e-320), (1e18, 1e-3)):
        with pytest.raises(VideoError, match=r"clip\.mp4 has frames up to 0\.400 s"):
            read_clip(path, start=start, num_frames=2, fps=fps, height=8, width=8)
