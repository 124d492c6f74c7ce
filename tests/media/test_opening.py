"""Every file that is no video is named, whatever it holds."""

from __future__ import annotations

import os
from pathlib import Path

import av
import numpy as np
import pytest
from av.stream import Disposition
from tests.support.videos import encode, gradient, numbered

from freqformer.media import (
    VideoError,
    decode_video,
    list_videos,
    probe_video,
    read_clip,
    write_video,
)


def test_missing_files_and_folders(tmp_path: Path) -> None:
    for path, message in (
        (tmp_path / "no.mp4", r"no\.mp4 does not exist"),
        (tmp_path, "is a folder"),
    ):
        for action in (
            probe_video,
            lambda p: read_clip(p, start=0, num_frames=1, fps=1, height=2, width=2),
        ):
            with pytest.raises(VideoError, match=message):
                action(path)


def test_files_that_are_no_video(tmp_path: Path) -> None:
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("no video at all, " * 500)
    (tmp_path / "noise.mp4").write_bytes(np.random.default_rng(0).bytes(100_000))
    with av.open(str(tmp_path / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=44100, layout="mono")
        frame = av.AudioFrame.from_ndarray(
            np.zeros((1, 1024), np.float32), format="fltp", layout="mono"
        )
        frame.sample_rate = 44100
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    messages = {
        "empty": "is empty",
        "text": "can't be read",
        "noise": "can't be read",
        "sound": "has no video stream",
    }
    for name, message in messages.items():
        path = tmp_path / f"{name}.mp4"
        with pytest.raises(VideoError, match=rf"{name}\.mp4 {message}"):
            probe_video(path)
        with pytest.raises(VideoError, match=rf"{name}\.mp4 {message}"):
            read_clip(path, start=0, num_frames=1, fps=1, height=8, width=8)


def test_video_without_frames(tmp_path: Path) -> None:
    path = encode(tmp_path / "clip.mkv", numbered(10))
    data = path.read_bytes()
    # The first cluster's identifier: everything before it is header alone.
    path.write_bytes(data[: data.index(b"\x1f\x43\xb6\x75")])
    with pytest.raises(VideoError, match=r"clip\.mkv"):
        probe_video(path)


@pytest.mark.parametrize(
    "name",
    ["2024-01-01T12:30:00.mp4", "http:x.mp4", "concat:a.mp4", "pipe:0.mp4", "%03d.mp4", "-x.mp4"],
)
def test_relative_names_that_look_like_something_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """F85: FFmpeg takes what stands before a colon for a protocol."""
    monkeypatch.chdir(tmp_path)
    write_video(gradient(3, 16, 16), name, 8)
    assert [str(path) for path in list_videos(".")] == [name]
    assert probe_video(name).num_frames == 3
    assert read_clip(name, start=0, num_frames=3, fps=8, height=8, width=8).shape == (3, 8, 8, 3)


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"caf\xe9.mp4")
    write_video(gradient(3, 16, 16), path, 8)
    assert probe_video(path).num_frames == 3


def test_titles_that_are_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "clip.avi"
    with av.open(str(path), "w") as container:
        container.metadata["title"] = "caf~"
        stream = container.add_stream("mpeg4", rate=8)
        stream.width, stream.height, stream.pix_fmt = 16, 16, "yuv420p"
        for picture in gradient(3, 16, 16):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture.numpy())))
        container.mux(stream.encode())
    path.write_bytes(path.read_bytes().replace(b"caf~", b"caf\xe9"))
    assert probe_video(path).num_frames == 3


def test_a_playlist_that_poses_as_a_video_reaches_no_network(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    path.write_text(
        "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nhttp://127.0.0.1:9/a.ts\n#EXT-X-ENDLIST\n"
    )
    with pytest.raises(VideoError, match=r"clip\.mp4"):
        probe_video(path)


def test_the_main_one_of_several_video_streams_is_read(tmp_path: Path, caplog) -> None:
    """F86: a preview may come first; the default stream is the video."""
    path = tmp_path / "clip.mkv"
    with av.open(str(path), "w") as container:
        streams = []
        for size, disposition in (((32, 24), 0), ((96, 64), Disposition.default)):
            stream = container.add_stream("mpeg4", rate=10)
            stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
            stream.disposition = disposition
            streams.append(stream)
        for number, stream in enumerate(streams):
            for _ in range(10):
                grey = np.full((stream.height, stream.width, 3), 200 * number, np.uint8)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(grey, format="rgb24")))
            container.mux(stream.encode())
    info = probe_video(path)
    assert (info.height, info.width) == (64, 96)
    assert read_clip(path, start=0, num_frames=1, fps=1, height=8, width=8).min() > 190
    assert "has 2 video streams; stream 1 with 96 x 64 pixels is read" in caplog.text


@pytest.mark.parametrize("first", ["cover", "video"])
def test_a_cover_is_no_video(tmp_path: Path, first: str) -> None:
    """F86."""
    path = tmp_path / "clip.mp4"
    with av.open(str(path), "w") as container:
        streams = {}
        for kind in (first, "video" if first == "cover" else "cover"):
            stream = container.add_stream("mjpeg" if kind == "cover" else "mpeg4", rate=10)
            stream.width, stream.height = 64, 48
            stream.pix_fmt = "yuvj420p" if kind == "cover" else "yuv420p"
            if kind == "cover":
                stream.disposition = Disposition.attached_pic
            streams[kind] = stream
        for kind, count, grey in (("cover", 1, 250), ("video", 10, 50)):
            for _ in range(count):
                picture = np.full((48, 64, 3), grey, np.uint8)
                container.mux(
                    streams[kind].encode(av.VideoFrame.from_ndarray(picture, format="rgb24"))
                )
            container.mux(streams[kind].encode())
    assert probe_video(path).num_frames == 10
    assert read_clip(path, start=0, num_frames=1, fps=1, height=8, width=8).max() < 60


def outcome(path: Path) -> str:
    try:
        info = probe_video(path)
        read_clip(info, start=0, num_frames=2, fps=10, height=8, width=8)
        decode_video(info, height=8, width=8)
    except VideoError as error:
        return "refused" if path.name in str(error) else f"{error} does not name the file"
    return "read"


@pytest.mark.parametrize("ending", ["mp4", "mkv", "avi", "ts", "gif", "y4m"])
def test_damage_ends_in_typed_errors_alone(tmp_path: Path, ending: str) -> None:
    """F104, F122: flipped bytes, cuts and repeats, anywhere in a file."""
    codec = {"gif": "gif", "y4m": "wrapped_avframe", "avi": "mpeg4"}.get(ending, "libx264")
    whole = encode(tmp_path / f"whole.{ending}", gradient(6, 16, 16), codec=codec).read_bytes()
    random = np.random.default_rng(0)
    path = tmp_path / f"damaged.{ending}"
    outcomes = set()
    for _ in range(25):
        data = bytearray(whole)
        for place in random.integers(
            0, min(len(data), random.choice([60, len(data)])), random.integers(1, 9)
        ):
            data[place] = random.integers(256)
        path.write_bytes(data[: random.integers(1, len(data))] if random.random() < 0.3 else data)
        outcomes.add(outcome(path))
    assert outcomes == {"read", "refused"}
