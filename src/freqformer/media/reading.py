"""Reading clips by time: from the file, or from frames that were decoded once."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from freqformer.media.opening import VideoError, open_video
from freqformer.media.pictures import fitted
from freqformer.media.probing import VideoInfo, probe_video
from freqformer.media.timing import SEEK_MARGINS, Picture, TimedFrame, seek, timed_frames

MAX_FRAMES = 2**20
"""Of a clip."""
MAX_SIDE = 2**14
"""Of a clip, in pixels; what H.264 can write too."""


def read_clip(
    video: str | Path | VideoInfo,
    *,
    start: float,
    num_frames: int,
    fps: float,
    height: int,
    width: int,
) -> Tensor:
    """Frames at the times start, start + 1/fps, ...: the nearest of the file to each, resized to
    cover and centre-cropped.

    Args:
        video: any video that FFmpeg reads, its frame rate may vary; or what `probe_video` found,
            which saves looking.
        start: seconds from the first frame that can be decoded.
        num_frames: frames to return, up to 2**20.
        fps: frames per second to return.
        height, width: size of the returned frames in pixels, up to 16384.

    Returns: uint8 (num_frames, height, width, 3).

    Raises:
        ValueError: for an argument out of range.
        VideoError: for a file that is missing, damaged where the clip is, or no video, or that ends
            before the clip does.
    """
    _check_size(num_frames=num_frames, height=height, width=width)
    times = _clip_times(start, num_frames, fps)
    info = video if isinstance(video, VideoInfo) else probe_video(video)
    if times[-1] >= info.duration:
        raise _too_short(info.path, info.duration, times)
    goals = [start - margin for margin in SEEK_MARGINS if start > margin] if info.seekable else []
    for goal in (*goals, None):
        with open_video(info.path) as (container, stream):
            if goal is not None and not seek(container, stream, info.origin, goal):
                continue
            decoded = timed_frames(container, stream, info.origin, sought=goal is not None)
            first = next(decoded, None)
            if goal is not None and (first is None or first.seconds > start):
                # The format has no index of key frames, or a broken one.
                continue
            chosen = _nearest(info, first, decoded, times)
            return torch.stack([fitted(stream, frame, height, width) for frame in chosen])
    raise AssertionError("unreachable: the last pass, from the start, either returns or raises")


@dataclass(frozen=True)
class DecodedVideo:
    """All frames of one video at one size, each with its time."""

    info: VideoInfo
    frames: list[TimedFrame[Tensor]]
    """Pictures are uint8 (H, W, 3)."""

    def clip(self, *, start: float, num_frames: int, fps: float) -> Tensor:
        """The same frames as `read_clip` at this size: uint8 (num_frames, H, W, 3). Raises as it
        does."""
        _check_size(num_frames=num_frames)
        times = _clip_times(start, num_frames, fps)
        if times[-1] >= self.info.duration:
            raise _too_short(self.info.path, self.info.duration, times)
        begin = max(bisect_right(self.frames, start, key=lambda frame: frame.seconds) - 1, 0)
        first = self.frames[begin] if self.frames else None
        following = (self.frames[place] for place in range(begin + 1, len(self.frames)))
        return torch.stack(list(_nearest(self.info, first, following, times)))


def decode_video(info: VideoInfo, *, height: int, width: int) -> DecodedVideo:
    """All frames of a video that can be decoded, at one size.

    Raises:
        VideoError: for a file that can't be read, or that holds more frames than `info` counts.
    """
    _check_size(height=height, width=width)
    frames: list[TimedFrame[Tensor]] = []
    with open_video(info.path) as (container, stream):
        for frame in timed_frames(container, stream, info.origin):
            if len(frames) > info.num_frames:
                raise VideoError(
                    f"{info.path} holds more than {info.num_frames} frames; read its clips one by "
                    "one"
                )
            picture = fitted(stream, frame.picture, height, width)
            frames.append(TimedFrame(frame.seconds, frame.length, frame.after_damage, picture))
    return DecodedVideo(info, frames)


def _check_size(**sizes: int) -> None:
    for name, value in sizes.items():
        most = MAX_FRAMES if name == "num_frames" else MAX_SIDE
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
            raise ValueError(f"{name} is {value!r}; whole numbers from 1 to {most} are allowed")


def _clip_times(start: float, num_frames: int, fps: float) -> list[float]:
    for name, value in (("start", start), ("fps", fps)):
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"{name} is {value!r}; a number is allowed")
    if not (0 <= start < math.inf and 0 < fps < math.inf):
        raise ValueError(
            f"start is {start!r} and fps {fps!r}; a start from 0 up and an fps above 0 are allowed"
        )
    return [start + i / fps for i in range(num_frames)]


def _nearest(
    info: VideoInfo,
    previous: TimedFrame[Picture] | None,
    following: Iterable[TimedFrame[Picture]],
    times: list[float],
) -> Iterator[Picture]:
    """The picture nearest to each of the rising times. Raises VideoError where it is missing."""
    if previous is None:
        raise VideoError(
            f"{info.path} holds no frame that can be decoded; remove it, or make it again"
        )
    done = 0
    for current in following:
        middle = (previous.seconds + current.seconds) / 2
        while done < len(times) and times[done] <= middle:
            _check_whole(info.path, previous, current, times[done])
            yield previous.picture
            done += 1
        if done == len(times):
            return
        if times[done] < current.seconds:
            _check_whole(info.path, previous, current, times[done])
        previous = current
    # Where frames at the end can't be decoded, the file is shorter than its packets say. A single
    # one is stood in for: whether a decoder gives out what is left of it depends on its threads.
    complete = previous.seconds >= info.last - 1.5 * previous.length
    end = info.duration if complete else previous.seconds + previous.length
    while done < len(times) and times[done] < end:
        yield previous.picture
        done += 1
    if done < len(times):
        raise _too_short(info.path, end, times)


def _check_whole(path: Path, before: TimedFrame, after: TimedFrame, time: float) -> None:
    """Refuse a time in a part that can't be decoded, but for a single frame, which a neighbour
    stands in for."""
    reach = 1.5 * before.length
    if after.after_damage and before.seconds + reach < time < after.seconds - reach:
        raise VideoError(
            f"{path} is damaged from {before.seconds + before.length:.3f} s to {after.seconds:.3f} "
            "s; "
            "take another part of it, or make it again"
        )


def _too_short(path: Path, end: float, times: list[float]) -> VideoError:
    return VideoError(
        f"{path} has frames up to {end:.3f} s; the clip needs them up to {times[-1]:.3f} s: "
        "start earlier, or take fewer frames or a higher fps"
    )
