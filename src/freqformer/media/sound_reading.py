"""The sound of a part of a video file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from freqformer._optional import needs
from freqformer.media.opening import open_video
from freqformer.media.probing import VideoInfo, probe_video

with needs("train"):
    import av

CHANNELS = 2
EARLIER = 1.0
"""Seconds before the part that decoding begins at, since codecs need what comes before."""


def read_sound(video: str | Path | VideoInfo, *, start: float, samples: int, rate: int) -> Tensor:
    """What is heard in a file from a time on, in stereo; silence where the file has no sound.

    Of several streams of sound the one is read that FFmpeg's players choose.

    Args:
        video: as `read_clip` takes it.
        start: seconds from the first frame that can be decoded.
        samples: how many to return.
        rate: samples a second to return.

    Returns: float32 (2, samples), about [-1, 1].

    Raises:
        VideoError: for a file that is missing or damaged where the part is.
    """
    info = video if isinstance(video, VideoInfo) else probe_video(video)
    heard = torch.zeros(CHANNELS, samples)
    with open_video(info.path) as (container, shown):
        stream: Any = container.streams.best("audio")
        if stream is None or stream.codec_context is None:
            return heard
        origin = (info.origin or 0) * float(shown.time_base or 0)
        if info.seekable and start > EARLIER:
            container.seek(round((origin + start - EARLIER) * av.time_base))
        resampler = av.AudioResampler(format="fltp", layout="stereo", rate=rate)
        pieces: list[Tensor] = []
        first: float | None = None
        frames: Iterator[Any] = container.decode(stream)
        for frame in frames:
            if frame.time is None:
                continue
            if first is None:
                first = frame.time - origin - start
            if frame.time - origin >= start + samples / rate:
                break
            pieces += [torch.from_numpy(one.to_ndarray()) for one in resampler.resample(frame)]
        pieces += [torch.from_numpy(one.to_ndarray()) for one in resampler.resample(None)]
        if first is None or not pieces:
            return heard
        read = torch.cat(pieces, 1)
        place = round(first * rate)
        begin, end = max(place, 0), min(place + read.shape[1], samples)
        if begin < end:
            heard[:, begin:end] = read[:, begin - place : end - place]
    return heard
