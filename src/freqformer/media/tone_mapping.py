"""HDR as screens without it show it: tone-mapped, from the primaries of BT.2020 to those of BT.709.

FFmpeg does it, by the curve of ITU-R BT.2390: highlights are rolled off below the display's white,
by what the file says of its brightest pixels, and colours that BT.709 lacks move to its border.
"""

from __future__ import annotations

from functools import lru_cache
from threading import Lock
from typing import TYPE_CHECKING, NamedTuple

from freqformer._optional import needs
from freqformer.media.opening import side_data

with needs("train"):
    from av.filter import Graph
    from av.sidedata.sidedata import Type

if TYPE_CHECKING:
    from av.video.frame import VideoFrame

DEEP = "rgb48le"
"""Format of a picture that is to be tone-mapped: 8 bits of a PQ signal would show bands."""
_HDR = (16, 18)
"""The transfer functions PQ and HLG,"""
_WIDE = 9
"""and the primaries of BT.2020, as H.273 numbers them."""
_BRIGHTEST = (Type.MASTERING_DISPLAY_METADATA, Type.CONTENT_LIGHT_LEVEL)


def beyond_bt709(frame: VideoFrame) -> bool:
    """Whether a frame is HDR (PQ, HLG), or has the wide primaries of BT.2020."""
    return frame.color_trc in _HDR or frame.color_primaries == _WIDE


def to_bt709(picture: VideoFrame) -> VideoFrame:
    """The same picture in BT.709, rgb24.

    Args:
        picture: a frame in `DEEP`, with the file's colour tags and what the file says of its
            brightest pixels. Without the latter PQ may reach 10,000 nits, and comes out darker.
    """
    told = tuple(bytes(data) for data in side_data(picture) if data.type in _BRIGHTEST)
    signal = _Signal(
        picture.width, picture.height, picture.color_trc, picture.color_primaries, told
    )
    return _mapper(signal).run(picture)


class _Signal(NamedTuple):
    """What a mapper is made for."""

    width: int
    height: int
    transfer: int
    primaries: int
    brightest: tuple[bytes, ...]


class _Mapper:
    """FFmpeg's filters for pictures of one kind."""

    def __init__(self, signal: _Signal) -> None:
        graph = Graph()
        source = graph.add(
            "buffer",
            f"video_size={signal.width}x{signal.height}:pix_fmt={DEEP}:colorspace=gbr:range=pc:"
            "time_base=1/1:pixel_aspect=1/1",
        )
        mapped = graph.add("scale", "out_primaries=bt709:out_transfer=bt709:intent=perceptual")
        narrowed = graph.add("format", "pix_fmts=rgb24")
        sink = graph.add("buffersink")
        graph.link_nodes(source, mapped, narrowed, sink).configure()
        self._graph = graph
        # Threads that decode ahead share a mapper, and FFmpeg's filters are for one at a time.
        self._lock = Lock()

    def run(self, picture: VideoFrame) -> VideoFrame:
        with self._lock:
            self._graph.vpush(picture)
            return self._graph.vpull()


@lru_cache(maxsize=16)
def _mapper(signal: _Signal) -> _Mapper:
    """Kept, since FFmpeg takes seconds to make the table of colours that it then looks up."""
    return _Mapper(signal)
