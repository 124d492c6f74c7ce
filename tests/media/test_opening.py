"""Every file that is no video is named, whatever it holds."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
from tests.support.videos import encode, numbered

from freqformer.media import VideoError, probe_video, read_clip


def test_missing_files_and_folders(tmp_path: Path) -> None:
    for path, message in ((tmp_path / "no.mp4", r"no\.mp4 does not exist"), (tmp_path, "is a folder")):
        for action in (probe_video, lambda p: read_clip(p, start=0, num_frames=1, fps=1, height=2, width=2)):
            with pytest.raises(VideoError, match=message):
                action(path)


def test_files_that_are_no_video(tmp_path: Path) -> None:
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("no video at all, " * 500)
    (tmp_path / "noise.mp4").write_bytes(np.random.default_rng(0).bytes(100_000))
    with av.open(str(tmp_path / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=44100, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 44100
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    messages = {"empty": "is empty", "text": "can't be read", "noise": "can't be read", "sound": "has no video stream"}
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
