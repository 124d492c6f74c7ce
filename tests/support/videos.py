"""Small video files that tests make themselves."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch


def gradient(frames: int, height: int, width: int) -> torch.Tensor:
    """Smooth frames that differ: uint8 (F, H, W, 3)."""
    f, y, x = torch.meshgrid(
        torch.arange(frames), torch.arange(height), torch.arange(width), indexing="ij"
    )
    channels = [255 * x / width, 255 * y / height, 255 * f / max(frames - 1, 1)]
    return torch.stack(channels, -1).to(torch.uint8)


def numbered(frames: int, height: int = 32, width: int = 48) -> torch.Tensor:
    """Grey frames; frame i has the value 10 * i, which survives compression."""
    return (
        (10 * torch.arange(frames))
        .to(torch.uint8)[:, None, None, None]
        .expand(-1, height, width, 3)
        .contiguous()
    )


def numbers(clip: torch.Tensor) -> list[int]:
    return (clip.float().mean((1, 2, 3)) / 10).round().int().tolist()


def greys(clip: torch.Tensor) -> list[float]:
    """The mean of every frame."""
    return clip.float().mean((1, 2, 3)).tolist()


def encode(
    path: Path,
    frames: torch.Tensor,
    times: list[int] | None = None,
    *,
    codec: str = "libx264",
    rate: int | Fraction = 10,
    gop: int | None = None,
    begin: int = 0,
    drop: int = 0,
    **more: Any,
) -> Path:
    """Write a file by hand, with features that `write_video` has no use for.

    Args:
        path: its ending decides the format.
        frames: uint8 (F, H, W, 3).
        times: time stamps in 1/1000 s; by default one after the other at the rate.
        codec, rate: name, and frames per second.
        gop: frames from one key frame to the next.
        begin: first time stamp, in frames.
        drop: packets in front that are not written.
        more: `format`, `rotation` in degrees, `matrix` (display, 9 integers), `aspect` of a pixel,
            `title`, `pixels` (format), `front` (the index of an MP4 in front),
            `flags` and `options` of the codec.
    """
    container_options = {"avoid_negative_ts": "disabled"} if begin < 0 else {}
    if more.get("front"):
        container_options["movflags"] = "+faststart"
    with av.open(str(path), "w", format=more.get("format"), options=container_options) as container:
        if "title" in more:
            container.metadata["title"] = more["title"]
        stream = container.add_stream(codec, rate=rate)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = more.get("pixels", PIXELS.get(codec, "yuv420p"))
        stream.options = _codec_options(codec, gop, more)
        context = stream.codec_context
        if times is not None:
            context.time_base = Fraction(1, 1000)
        if "rotation" in more:
            stream.set_display_rotation(more["rotation"])
        if "matrix" in more:
            stream.set_display_matrix(more["matrix"])
        if "aspect" in more:
            context.sample_aspect_ratio = more["aspect"]
        packets = []
        for i, picture in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(
                picture.numpy(), format="rgba" if picture.shape[-1] == 4 else "rgb24"
            )
            frame.pts, frame.time_base = begin + i, 1 / Fraction(rate)
            if times is not None:
                frame.pts, frame.time_base = times[i], Fraction(1, 1000)
            packets += stream.encode(frame)
        container.mux([*packets, *stream.encode()][drop:])
    return path


PIXELS = {"gif": "rgb8", "qtrle": "rgb24", "mjpeg": "yuvj420p"}
"""Pixel formats of codecs that don't take yuv420p."""


def _codec_options(codec: str, gop: int | None, more: dict[str, Any]) -> dict[str, str]:
    options: dict[str, str] = {}
    if codec == "libx264":
        options = {"crf": "10", "g": "5"}
    elif codec == "libx265":
        options = {"x265-params": f"log-level=error:crf=10:keyint={gop or 5}"}
    elif codec in ("mpeg4", "mpeg2video", "flv", "wmv2"):
        options = {"qmin": "1", "qmax": "2", "b": "2000000", "sc_threshold": "1000000000"}
    if gop is not None and codec not in ("gif", "libx265", "qtrle"):
        options["g"] = str(gop)
    if "flags" in more:
        options["flags"] = more["flags"]
    return options | more.get("options", {})


def with_sound(
    path: Path, *, frames: int, seconds: float, delay: float = 0.0, rate: int = 12
) -> Path:
    """Numbered frames that begin after `delay` seconds, and silence from 0 to `seconds`."""
    with av.open(str(path), "w") as container:
        video = container.add_stream("mpeg4", rate=rate)
        video.width, video.height, video.pix_fmt = 48, 32, "yuv420p"
        sound = container.add_stream("aac", rate=44100, layout="mono")
        for i, picture in enumerate(numbered(frames)):
            frame = av.VideoFrame.from_ndarray(picture.numpy(), format="rgb24")
            frame.pts, frame.time_base = i + round(delay * rate), Fraction(1, rate)
            container.mux(video.encode(frame))
        container.mux(video.encode())
        for i in range(round(seconds * 44100 / 1024)):
            silence = av.AudioFrame.from_ndarray(
                np.zeros((1, 1024), np.float32), format="fltp", layout="mono"
            )
            silence.sample_rate, silence.pts, silence.time_base = (
                44100,
                i * 1024,
                Fraction(1, 44100),
            )
            container.mux(sound.encode(silence))
        container.mux(sound.encode())
    return path
