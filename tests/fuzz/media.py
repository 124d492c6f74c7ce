"""Fuzzed video files: of several kinds, with bytes changed, left out, repeated and put in."""

from __future__ import annotations

import base64
import random
from pathlib import Path
from typing import Any

from tests.support.videos import encode, gradient, with_sound

from freqformer.media import decode_video, probe_video, read_clip

HEAD = 512
"""Bytes at the front, which are changed more often: what decides most is there."""


class Media:
    """A damaged video file, looked at and read."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        frames = gradient(6, 32, 48)
        whole = folder / "whole"
        whole.mkdir()
        paths = [
            encode(whole / "front.mp4", frames, front=True),
            encode(whole / "turned.mov", frames, rotation=90),
            encode(whole / "clip.mkv", frames, codec="mpeg4"),
            encode(whole / "clip.avi", frames, codec="mjpeg"),
            encode(whole / "clip.ts", frames, codec="mpeg2video"),
            encode(whole / "clip.gif", frames, codec="gif"),
            with_sound(whole / "sound.mp4", frames=6, seconds=0.6),
        ]
        self.files = {path.name: path.read_bytes() for path in paths}

    def make(self, draw: random.Random) -> dict[str, str]:
        name = draw.choice(list(self.files))
        content = bytearray(self.files[name])
        for _ in range(draw.choice((1, 1, 2, 4, 16))):
            _change(content, draw, list(self.files.values()))
        return {"name": name, "base64": base64.b64encode(content).decode("ascii")}

    def feed(self, given: dict[str, Any]) -> None:
        path = self.folder / given["name"]
        path.write_bytes(base64.b64decode(given["base64"]))
        info = probe_video(path)
        decode_video(info, height=16, width=24)
        read_clip(path, start=0.0, num_frames=2, fps=10.0, height=16, width=24)


def _change(content: bytearray, draw: random.Random, others: list[bytes]) -> None:
    """One change, in place."""
    size = len(content)
    place = draw.randrange(min(size, HEAD) if size and draw.random() < 0.4 else size + 1)
    length = draw.choice((1, 2, 4, 8, 64, 1024))
    kind = draw.choice(
        ("flip", "flip", "flip", "fill", "cut", "leave out", "repeat", "put in", "other")
    )
    if kind == "flip" and place < size:
        content[place] ^= 1 << draw.randrange(8)
    elif kind == "fill":
        content[place : place + length] = draw.choice((b"\0", b"\xff", b"\x7f", b"\x80")) * length
    elif kind == "cut":
        del content[place:]
    elif kind == "leave out":
        del content[place : place + length]
    elif kind == "repeat":
        content[place:place] = content[place : place + length] * draw.randrange(1, 20)
    elif kind == "put in":
        content[place:place] = draw.randbytes(length)
    elif kind == "other":
        other = draw.choice(others)
        begin = draw.randrange(len(other))
        content[place : place + length] = other[begin : begin + length]
