"""Video files: probing, reading clips by time, writing MP4 and contact sheets. Decoding and encoding is FFmpeg's, by PyAV.

Frames are uint8 (F, H, W, 3) RGB tensors: F frames, H rows, W columns. Times are seconds from the first frame.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from freqformer._optional import needs

with needs("train"):
    import av
    from av.error import FFmpegError
    from av.stream import Disposition

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

ENDINGS = "3gp asf avi flv gif m2ts m2v m4v mkv mov mp4 mpeg mpg mts mxf nut ogv ts vob webm wmv y4m"
"""File name endings that `list_videos` takes for videos in a folder. A file named itself may end in anything."""

_USUAL_FPS = 25
"""Frames per second of raw streams that state none, as FFmpeg takes it."""


class VideoError(ValueError):
    """A video that can't be read or written; the message names the file and the remedy."""


@dataclass(frozen=True)
class VideoInfo:
    """What `probe_video` finds."""

    path: Path
    duration: float
    """Seconds, at least that of one frame."""
    fps: float
    """Mean frames per second."""
    num_frames: int
    """As the container counts them; an estimate where it doesn't."""
    height: int
    """Rows as shown, after the file's rotation."""
    width: int
    """Columns as shown, with square pixels, after the file's rotation."""


def probe_video(path: str | Path) -> VideoInfo:
    """Length, rate and size of a video; its first frame is decoded.

    Raises:
        VideoError: for a file that is missing, empty, damaged, or holds no video.
    """
    path = Path(path)
    with _open(path) as (container, stream):
        decoded = _frames(container, stream)
        first = next(decoded, None)
        if first is None:
            raise VideoError(f"{path} holds no frame that can be decoded; remove it, or make it again")
        fps = float(stream.average_rate or stream.guessed_rate or 0)
        duration = _duration(container, stream)
        frames = stream.frames
        if duration is None and not frames:
            frames = 1 + sum(1 for _ in decoded)
        if not fps:
            fps = frames / duration if frames and duration else float(_USUAL_FPS)
        frames = frames or max(round((duration or 0) * fps), 1)
        height, width, turns = _picture(stream, first[1])
        height, width = (width, height) if turns % 2 else (height, width)
    return VideoInfo(path, max(duration or frames / fps, 1 / fps), fps, frames, height, width)


def read_clip(path: str | Path, *, start: float, num_frames: int, fps: float, height: int, width: int) -> Tensor:
    """Frames at the times start, start + 1/fps, ...: the nearest of the file to each, resized to cover and centre-cropped.

    Args:
        path: any video that FFmpeg reads; its frame rate may vary.
        start: seconds from the first frame.
        num_frames: frames to return.
        fps: frames per second to return.
        height, width: size of the returned frames in pixels.

    Returns: uint8 (num_frames, height, width, 3).

    Raises:
        ValueError: for an argument out of range.
        VideoError: for a file that is missing, damaged or no video, or that ends before the clip does.
    """
    for name, value, least in (("num_frames", num_frames, 1), ("height", height, 1), ("width", width, 1)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"{name} is {value!r}; whole numbers from {least} up are allowed")
    if not (0 <= start < math.inf and 0 < fps < math.inf):
        raise ValueError(f"start is {start!r} and fps {fps!r}; a start from 0 up and an fps above 0 are allowed")
    path = Path(path)
    times = [start + i / fps for i in range(num_frames)]
    for seek in (True, False) if start > 0 else (False,):
        with _open(path) as (container, stream):
            if seek and not _seek(container, stream, start):
                continue
            decoded = _frames(container, stream)
            first = next(decoded, None)
            if seek and (first is None or first[0] > start):
                continue  # A broken index led beyond the goal: decode from the start instead.
            chosen = _nearest(path, stream, first, decoded, times)
            return torch.stack([_fitted(stream, frame, height, width) for frame in chosen])
    raise AssertionError("unreachable: the last pass either returns or raises")


def list_videos(path: str | Path) -> list[Path]:
    """A video file as [file]; the videos of a folder and its subfolders, sorted by path. Hidden files are left out.

    Raises:
        VideoError: where there is nothing at the path, or no video in the folder.
    """
    path = Path(path)
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise VideoError(f"{path} does not exist; give a video file, or a folder with videos in it")
    endings = ENDINGS.split()
    found = (file for file in path.rglob("*") if file.suffix.lower().removeprefix(".") in endings and file.is_file())
    videos = sorted(file for file in found if not any(part.startswith(".") for part in file.relative_to(path).parts))
    if not videos:
        raise VideoError(f"{path} holds no video; put files that end in {', '.join(endings)} into it")
    return videos


def write_video(frames: Tensor, path: str | Path, fps: float) -> None:
    """Write an H.264 MP4 (yuv420p, BT.709, index in front), which browsers and players show.

    An odd height or width is made even by repeating the last row or column, since yuv420p halves both. The file appears
    under its name only once it is whole.

    Args:
        frames: uint8 (F, H, W, 3).
        path: ends in .mp4; its folder is made if need be.
        fps: frames per second.

    Raises:
        ValueError: for frames of another shape or dtype, no frame, or an fps that is not above 0.
        VideoError: where the file can't be written.
    """
    _check_frames(frames)
    path = Path(path)
    if not 0 < fps < math.inf:
        raise ValueError(f"fps is {fps!r}; numbers above 0 are allowed")
    if path.suffix.lower() != ".mp4":
        raise VideoError(f"{path} does not end in .mp4; MP4 is what is written: rename it")
    even = torch.nn.functional.pad(
        frames.cpu().permute(0, 3, 1, 2), (0, frames.shape[2] % 2, 0, frames.shape[1] % 2), mode="replicate"
    ).permute(0, 2, 3, 1)
    with (
        _replacing(path) as partial,
        av.open(str(partial), "w", format="mp4", options={"movflags": "+faststart"}) as container,
    ):
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001))
        stream.height, stream.width = even.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.options = {"crf": "17", "preset": "medium"}
        # 1 is BT.709 in each of FFmpeg's colour enumerations; untagged files are shown in differing colours.
        context = stream.codec_context
        context.colorspace = context.color_primaries = context.color_trc = 1
        for picture in even:
            frame = av.VideoFrame.from_ndarray(picture.contiguous().numpy(), format="rgb24")
            container.mux(stream.encode(frame.reformat(format="yuv420p", dst_colorspace="ITU709")))
        container.mux(stream.encode())


def contact_sheet(frames: Tensor, path: str | Path, columns: int | None = None, *, scale: int = 1) -> None:
    """Write all frames side by side, in reading order, as one PNG with thin white gaps.

    Args:
        frames: uint8 (F, H, W, 3).
        path: of the PNG; its folder is made if need be.
        columns: frames in a row; None makes the sheet about as high as wide.
        scale: whole number by which pixels are enlarged.

    Raises:
        ValueError: for frames of another shape or dtype, or columns or scale below 1.
        VideoError: where the file can't be written.
    """
    _check_frames(frames)
    count, height, width = frames.shape[:3]
    if columns is None:
        columns = min(count, max(1, round(math.sqrt(count * height / width))))
    if columns < 1 or scale < 1:
        raise ValueError(f"columns is {columns} and scale {scale}; whole numbers from 1 up are allowed")
    gap, rows = 2 * scale, -(-count // columns)
    large = enlarge(frames.cpu(), scale)
    sheet = torch.full((rows, columns, height * scale + gap, width * scale + gap, 3), 255, dtype=torch.uint8)
    sheet.view(-1, *sheet.shape[2:])[:count, :-gap, :-gap] = large
    picture = sheet.permute(0, 2, 1, 3, 4).flatten(2, 3).flatten(0, 1)[:-gap, :-gap]
    with _replacing(Path(path)) as partial:
        # FFmpeg's own PNG encoder: no image library is needed beside it.
        encoder = av.VideoCodecContext.create("png", "w")
        encoder.height, encoder.width = picture.shape[:2]
        encoder.pix_fmt, encoder.time_base = "rgb24", Fraction(1)
        frame = av.VideoFrame.from_ndarray(picture.contiguous().numpy(), format="rgb24")
        partial.write_bytes(b"".join(bytes(packet) for packet in (*encoder.encode(frame), *encoder.encode(None))))


def enlarge(frames: Tensor, scale: int) -> Tensor:
    """Repeat every pixel `scale` times along both axes: uint8 (F, H, W, 3) -> (F, H * scale, W * scale, 3)."""
    return frames.repeat_interleave(scale, 1).repeat_interleave(scale, 2)


def to_unit(frames: Tensor) -> Tensor:
    """uint8 (F, H, W, 3) -> float32 (3, F, H, W) in [-1, 1], as models take clips.

    Raises ValueError for frames of another shape or dtype.
    """
    _check_frames(frames)
    return frames.permute(3, 0, 1, 2).float() / 127.5 - 1


def from_unit(clip: Tensor) -> Tensor:
    """Float (3, F, H, W) in [-1, 1] -> uint8 (F, H, W, 3), rounded; values outside are clipped.

    Raises ValueError for a clip of another shape, of no float dtype, or with NaN.
    """
    if clip.ndim != 4 or clip.shape[0] != 3 or not clip.is_floating_point():
        raise ValueError(f"clip is {clip.dtype} {tuple(clip.shape)}; float (3, frames, height, width) is allowed")
    if clip.isnan().any():
        raise ValueError("clip holds NaN; finite values in [-1, 1] are allowed: look where the model's output broke")
    return ((clip.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 3, 0).contiguous()


def _check_frames(frames: Tensor) -> None:
    if frames.ndim != 4 or frames.shape[3] != 3 or frames.dtype != torch.uint8 or not frames.numel():
        raise ValueError(
            f"frames is {frames.dtype} {tuple(frames.shape)}; uint8 (frames, height, width, 3) with at least one frame is "
            "allowed: convert a clip with from_unit"
        )


@contextmanager
def _open(path: Path) -> Iterator[tuple[InputContainer, VideoStream]]:
    """The container and its first real video stream; every FFmpeg error inside becomes a VideoError about the file."""
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise VideoError(f"{path} {what}; give a video file")
    if path.stat().st_size == 0:
        raise VideoError(f"{path} is empty; remove it, or make it again")
    try:
        with av.open(str(path)) as container:
            # A cover picture in a music file is a video stream of one frame; it is no video.
            streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
            if not streams:
                raise VideoError(f"{path} has no video stream, it may hold sound alone; give a video file")
            streams[0].thread_type = "AUTO"
            yield container, streams[0]
    except (FFmpegError, OSError) as error:
        raise VideoError(
            f"{path} can't be read as a video: {error.strerror or error}; remove it, or make it again"
        ) from error


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """A partial file beside `path` that takes its place once the block succeeds and is removed when it fails."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        partial.replace(path)
    except (FFmpegError, OSError) as error:
        raise VideoError(
            f"{path} can't be written: {error.strerror or error}; free space or choose another folder"
        ) from error
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


def _duration(container: InputContainer, stream: VideoStream) -> float | None:
    """Seconds, from the stream or else the container; None where neither knows."""
    if stream.duration is not None and stream.time_base is not None:
        return float(stream.duration * stream.time_base)
    return container.duration / av.time_base if container.duration is not None else None


def _period(stream: VideoStream) -> float:
    return 1 / float(stream.average_rate or _USUAL_FPS)


def _seek(container: InputContainer, stream: VideoStream, start: float) -> bool:
    """Go to the last key frame at or before `start` seconds; False where the format can't, as raw streams can't."""
    try:
        container.seek(_origin(stream) + int(start / float(stream.time_base or 1)), stream=stream)
    except FFmpegError:
        return False
    return True


def _origin(stream: VideoStream) -> int:
    return stream.start_time if stream.start_time is not None else 0


def _frames(container: InputContainer, stream: VideoStream) -> Iterator[tuple[float, VideoFrame]]:
    """(seconds from the first frame, frame) from where the container stands, in order of time."""
    origin, base = _origin(stream), float(stream.time_base or 1)
    last = -math.inf
    for frame in container.decode(stream):
        # Raw streams carry no time stamps; theirs are one period apart.
        seconds = (frame.pts - origin) * base if frame.pts is not None else max(last + _period(stream), 0.0)
        if seconds > last and not frame.is_corrupt:
            last = seconds
            yield seconds, frame


def _nearest(
    path: Path,
    stream: VideoStream,
    previous: tuple[float, VideoFrame] | None,
    following: Iterator[tuple[float, VideoFrame]],
    times: list[float],
) -> Iterator[VideoFrame]:
    """The frame nearest to each of the rising times."""
    if previous is None:
        raise VideoError(f"{path} holds no frame that can be decoded; remove it, or make it again")
    done = 0
    for current in following:
        while done < len(times) and times[done] <= (previous[0] + current[0]) / 2:
            yield previous[1]
            done += 1
        if done == len(times):
            return
        previous = current
    # The container's total duration is no guide: a file that was cut short still claims all of it.
    last, frame = previous
    shown = float(frame.duration * stream.time_base) if frame.duration and stream.time_base else _period(stream)
    end = last + shown
    while done < len(times) and times[done] < end:
        yield frame
        done += 1
    if done < len(times):
        raise VideoError(
            f"{path} has frames up to {end:.3f} s; the clip needs them up to {times[-1]:.3f} s: start earlier, or take "
            "fewer frames or a higher fps"
        )


def _picture(stream: VideoStream, frame: VideoFrame) -> tuple[int, int, int]:
    """(height, width with square pixels, quarter turns counterclockwise to the shown picture)."""
    aspect = float(stream.sample_aspect_ratio or 1)
    return frame.height, max(round(frame.width * aspect), 1), round(frame.rotation / 90) % 4


def _fitted(stream: VideoStream, frame: VideoFrame, height: int, width: int) -> Tensor:
    """uint8 (height, width, 3): resized to cover the size, cropped around the centre, rotated as shown."""
    have_height, have_width, turns = _picture(stream, frame)
    if turns % 2:
        height, width = width, height
    scale = max(height / have_height, width / have_width)
    tall, wide = max(round(have_height * scale), height), max(round(have_width * scale), width)
    resized = frame.reformat(width=wide, height=tall, format="rgb24", interpolation="AREA" if scale < 1 else "BICUBIC")
    picture = torch.from_numpy(resized.to_ndarray())
    top, left = (tall - height) // 2, (wide - width) // 2
    return picture[top : top + height, left : left + width].rot90(turns, (0, 1)).contiguous()
