"""Opening a video file: which stream is the video, and one kind of error for all that a file can
do."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from freqformer._optional import needs

with needs("train"):
    import av
    from av.stream import Disposition


if TYPE_CHECKING:
    from av.container import InputContainer
    from av.sidedata.sidedata import SideData
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

logger = logging.getLogger(__name__)

AV_RELEASE = int(av.__version__.partition(".")[0])
"""Major number of PyAV's version."""

MAX_PIXELS = 2**26
"""Of a frame, decoded or resized: 8192 x 8192. What claims more is damaged, or takes the memory of
the machine."""
TIMEOUT = 30.0
"""Seconds after which one call of FFmpeg that opens or reads a file is given up."""

_TITLES: dict[str, Any] = {"metadata_errors": "replace"} if AV_RELEASE < 19 else {}
"""Titles of old cameras and tools are not UTF-8, and nothing here depends on them: PyAV before 19
refuses the file unless it is told this; later ones read every title, and don't know the word."""

_NO_VIDEO = Disposition.attached_pic | Disposition.timed_thumbnails
"""A cover or chapter picture in a file is a video stream too; it is no video."""


class VideoError(ValueError):
    """A video that can't be read or written; the message names the file and the remedy."""


@contextmanager
def open_video(path: Path) -> Iterator[tuple[InputContainer, VideoStream]]:
    """The container and its video stream; whatever goes wrong inside becomes a VideoError about the
    file."""
    try:
        _check_file(path)
        with av.open(
            file_url(path),
            "r",
            # A playlist that poses as a video may neither reach the network nor devices.
            options={"protocol_whitelist": "file"},
            timeout=TIMEOUT,
            **_TITLES,
        ) as container:
            yield container, _video_stream(path, container)
    except VideoError:
        raise
    except Exception as error:
        # Damaged files make FFmpeg and PyAV raise much else: OverflowError, UnicodeDecodeError,
        # MemoryError.
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise VideoError(
            f"{path} can't be read as a video: {reason}; remove it, or make it again"
        ) from error


def file_url(path: Path) -> str:
    """The file's name for FFmpeg, which would otherwise take what stands before a colon for a
    protocol."""
    return f"file:{path}"


@lru_cache(maxsize=2**14)
def tell_once(message: str) -> None:
    """Log a warning about a file, the first time that it is met."""
    logger.warning("%s", message)


def _check_file(path: Path) -> None:
    if not os.path.isfile(path):
        what = "is a folder" if os.path.isdir(path) else "does not exist"
        raise VideoError(f"{path} {what}; give a video file")
    if os.path.getsize(path) == 0:
        raise VideoError(f"{path} is empty; remove it, or make it again")


def _video_stream(path: Path, container: InputContainer) -> VideoStream:
    videos = [stream for stream in container.streams.video if not stream.disposition & _NO_VIDEO]
    if not videos:
        raise VideoError(f"{path} has no video stream, it may hold sound alone; give a video file")
    # PyAV makes no codec context where FFmpeg has no decoder.
    usable = [stream for stream in videos if stream.codec_context is not None]
    if not usable:
        raise VideoError(
            f"{path} is coded in a way that FFmpeg can't decode; convert it, or remove it"
        )
    best = container.streams.best("video")
    # A damaged header may name streams that never come.
    shown = [one for one in usable if one.width and one.height] or usable
    stream = next((one for one in shown if one is best), shown[0])
    if len(usable) > 1:
        chosen = f"stream {stream.index} with {stream.width} x {stream.height} pixels"
        tell_once(f"{path} has {len(usable)} video streams; {chosen} is read")
    if stream.width * stream.height > MAX_PIXELS:
        raise VideoError(
            f"{path} has {stream.width} x {stream.height} pixels; up to {MAX_PIXELS} pixels are "
            "allowed: make it smaller, or remove it"
        )
    # A frame inside may be larger than the header says.
    stream.codec_context.options = {"max_pixels": str(MAX_PIXELS)}
    stream.thread_type = "AUTO"
    return stream


def side_data(frame: VideoFrame) -> list[SideData]:
    """What a file says of a frame beside its pixels."""
    # PyAV's type hints take it for a dict.
    container: Any = frame.side_data
    return [container[place] for place in range(len(container))]
