"""A decoded frame as it is shown: one moment of it, turned, mirrored, resized, cropped, over black
where it is transparent, in the colours of BT.709."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from freqformer._optional import needs
from freqformer.media.deinterlacing import one_moment
from freqformer.media.opening import MAX_PIXELS, side_data
from freqformer.media.tone_mapping import DEEP, beyond_bt709, to_bt709

with needs("train"):
    import av
    from av.sidedata.sidedata import Type

if TYPE_CHECKING:
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream


class Orientation(NamedTuple):
    """How a stored picture is shown: rows and columns change places first, then each may run
    backwards."""

    transposed: bool
    flip_rows: bool
    flip_columns: bool


def orientation(frame: VideoFrame) -> Orientation:
    """What the frame's display matrix asks for, to the nearest of the eight ways to lay a picture
    down."""
    matrix = next((data for data in side_data(frame) if data.type == Type.DISPLAYMATRIX), None)
    if matrix is None:
        return Orientation(False, flip_rows=False, flip_columns=False)
    # Column p and row q are shown at column a p + c q and row b p + d q.
    a, b, _, c, d, *_ = struct.unpack("=9i", bytes(matrix))
    if abs(a) + abs(d) >= abs(b) + abs(c):
        return Orientation(False, flip_rows=d < 0, flip_columns=a < 0)
    return Orientation(True, flip_rows=b < 0, flip_columns=c < 0)


def shown_size(stream: VideoStream, frame: VideoFrame) -> tuple[int, int]:
    """(height, width) as shown, with square pixels."""
    height, width = _square(stream, frame)
    return (width, height) if orientation(frame).transposed else (height, width)


def fitted(stream: VideoStream, frame: VideoFrame, height: int, width: int) -> Tensor:
    """uint8 (height, width, 3): resized to cover the size, cropped around the centre, laid down as
    shown.

    Raises ValueError where the picture is so long and narrow that covering the size takes too much
    memory.
    """
    layout = orientation(frame)
    if layout.transposed:
        height, width = width, height
    have_height, have_width = _square(stream, frame)
    scale = max(height / have_height, width / have_width)
    tall = max(round(have_height * scale), height)
    wide = max(round(have_width * scale), width)
    if tall * wide > MAX_PIXELS:
        raise ValueError(
            f"a frame of {have_height} x {have_width} square pixels would have to become {tall} x "
            f"{wide} to cover {height} x {width}; up to {MAX_PIXELS} pixels are allowed: crop the "
            "video, or remove it"
        )
    opaque = _opaque(one_moment(frame))
    wide_colours = beyond_bt709(opaque)
    resized = opaque.reformat(
        width=wide,
        height=tall,
        format=DEEP if wide_colours else "rgb24",
        interpolation="AREA" if scale < 1 else "BICUBIC",
    )
    if wide_colours:
        resized = to_bt709(resized)
    picture = torch.from_numpy(resized.to_ndarray())
    top = (tall - height) // 2
    left = (wide - width) // 2
    picture = picture[top : top + height, left : left + width]
    if layout.transposed:
        picture = picture.transpose(0, 1)
    flipped = (layout.flip_rows, layout.flip_columns)
    flips = [axis for axis, backwards in enumerate(flipped) if backwards]
    return picture.flip(flips).contiguous()


def _square(stream: VideoStream, frame: VideoFrame) -> tuple[int, int]:
    """(height, width) as stored, with square pixels."""
    aspect = float(stream.sample_aspect_ratio or 1)
    return frame.height, max(round(frame.width * aspect), 1) if aspect > 0 else frame.width


def _opaque(frame: VideoFrame) -> VideoFrame:
    """The frame over black; itself where nothing in it is transparent."""
    # A palette holds transparency too.
    if frame.format.name != "pal8" and not any(part.is_alpha for part in frame.format.components):
        return frame
    pixels = frame.reformat(format="rgba").to_ndarray()
    alpha = pixels[..., 3:].astype(np.uint16)
    if alpha.min() == 255:
        return frame
    over_black = ((pixels[..., :3] * alpha + 127) // 255).astype(np.uint8)
    made = av.VideoFrame.from_ndarray(over_black, format="rgb24")
    made.color_trc = frame.color_trc
    made.color_primaries = frame.color_primaries
    return made
