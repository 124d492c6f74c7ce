"""Writing MP4 files and contact sheets, each whole or not at all."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import torch
from torch import Tensor

from freqformer._files import writing_file
from freqformer._files.errors import cause_and_remedy
from freqformer._optional import needs
from freqformer.media.frames import check_frames, enlarge
from freqformer.media.opening import VideoError, file_url
from freqformer.media.sound import Sound, sound_packets, sound_stream

with needs("train"):
    import av
    from av.error import FFmpegError

MIN_FPS, MAX_FPS = 1e-3, 1e3
"""Frame rates that are written. Players stumble over others, though MP4 can name them."""
MAX_SIDE = 2**14
"""Pixels along a side, as H.264 has it."""
MAX_AREA = 2**27
"""Pixels of a picture that FFmpeg is sure to take."""


def check_target(path: str | Path, fps: float, height: int, width: int) -> None:
    """Raise as `write_video` does for a name, frame rate or size that it won't take, before any
    work is done.

    Args:
        path: of the file.
        fps: frames per second.
        height, width: pixels of a frame.

    Raises:
        ValueError: for a path that does not end in .mp4 (a VideoError), an fps that is not from
            0.001 to 1000, or frames beyond 16384 pixels along a side or 2**27 in all.
    """
    if isinstance(fps, bool) or not isinstance(fps, int | float) or not MIN_FPS <= fps <= MAX_FPS:
        raise ValueError(f"fps is {fps!r}; numbers from {MIN_FPS:g} to {MAX_FPS:g} are allowed")
    if Path(path).suffix.lower() != ".mp4":
        raise VideoError(f"{path} does not end in .mp4; MP4 is what is written: rename it")
    if max(height, width) > MAX_SIDE or height * width > MAX_AREA:
        raise ValueError(
            f"frames are {height} x {width} pixels; up to {MAX_SIDE} pixels along a side and "
            f"{MAX_AREA:,} in all are allowed in a video: make it smaller"
        )


def write_video(frames: Tensor, path: str | Path, fps: float, sound: Sound | None = None) -> None:
    """Write an H.264 MP4 (yuv420p, BT.709, index in front), which browsers and players show.

    An odd height or width is made even by repeating the last row or column, since yuv420p halves
    both. The file appears under its name only once it is whole.

    Args:
        frames: uint8 (F, H, W, 3), up to 16384 pixels along a side and 2**27 in all.
        path: ends in .mp4; its folder is made if need be.
        fps: frames per second, from 0.001 to 1000.
        sound: heard from the first frame on, as AAC; None for none.

    Raises:
        ValueError: for frames of another shape, size or dtype, no frame, or an fps out of range.
        VideoError: where the file can't be written.
    """
    check_frames(frames)
    check_target(path, fps, frames.shape[1], frames.shape[2])
    odd = (0, frames.shape[2] % 2, 0, frames.shape[1] % 2)
    channels_first = frames.cpu().permute(0, 3, 1, 2)
    even = torch.nn.functional.pad(channels_first, odd, mode="replicate").permute(0, 2, 3, 1)
    options = {"movflags": "+faststart"}
    with (
        _replacing(Path(path)) as partial,
        av.open(file_url(partial), "w", format="mp4", options=options) as container,
    ):
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001))
        stream.height, stream.width = even.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.options = {"crf": "17", "preset": "medium"}
        # Both streams are there before anything is written, so that the file can hold both.
        heard = None if sound is None else sound_stream(container, sound)
        # 1 is BT.709 in each of FFmpeg's colour enumerations; untagged files are shown in differing
        # colours.
        context = stream.codec_context
        context.colorspace = context.color_primaries = context.color_trc = 1
        for picture in even:
            frame = av.VideoFrame.from_ndarray(picture.contiguous().numpy(), format="rgb24")
            container.mux(stream.encode(frame.reformat(format="yuv420p", dst_colorspace="ITU709")))
        container.mux(stream.encode())
        if sound is not None:
            for packet in sound_packets(heard, sound):
                container.mux(packet)


def contact_sheet(
    frames: Tensor,
    path: str | Path,
    columns: int | None = None,
    *,
    scale: int = 1,
) -> None:
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
    check_frames(frames)
    count, height, width = frames.shape[:3]
    if columns is None:
        columns = min(count, max(1, round(math.sqrt(count * height / width))))
    if columns < 1 or scale < 1:
        raise ValueError(
            f"columns is {columns} and scale {scale}; whole numbers from 1 up are allowed"
        )
    gap = 2 * scale
    rows = -(-count // columns)
    large = enlarge(frames.cpu(), scale)
    size = (rows, columns, height * scale + gap, width * scale + gap, 3)
    sheet = torch.full(size, 255, dtype=torch.uint8)
    sheet.view(-1, *sheet.shape[2:])[:count, :-gap, :-gap] = large
    picture = sheet.permute(0, 2, 1, 3, 4).flatten(2, 3).flatten(0, 1)[:-gap, :-gap]
    with _replacing(Path(path)) as partial:
        # FFmpeg's own PNG encoder: no image library is needed beside it.
        encoder = av.VideoCodecContext.create("png", "w")
        encoder.height, encoder.width = picture.shape[:2]
        encoder.pix_fmt, encoder.time_base = "rgb24", Fraction(1)
        frame = av.VideoFrame.from_ndarray(picture.contiguous().numpy(), format="rgb24")
        packets = (*encoder.encode(frame), *encoder.encode(None))
        partial.write_bytes(b"".join(bytes(packet) for packet in packets))


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """A new file that takes the place of `path` once the block succeeds; FFmpeg's errors become
    VideoErrors."""
    with writing_file(path, error=VideoError) as new:
        try:
            yield new
        except FFmpegError as error:
            raise VideoError(f"{path} can't be written: {cause_and_remedy(error)}") from error
