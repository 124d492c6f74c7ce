"""Interlaced video: a frame holds two moments, one in its even rows and one in its odd ones.

Only the first is taken, which loses half of the rows where nothing moves. Filters that keep them
look at the frames before and after, and a clip must not depend on where decoding began.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from freqformer._optional import needs

with needs("train"):
    from av.filter import Graph

if TYPE_CHECKING:
    from av.video.frame import VideoFrame


def one_moment(frame: VideoFrame) -> VideoFrame:
    """The rows of an interlaced frame that belong together, half as many, with all that the file
    says of the frame; a progressive frame itself.

    Args:
        frame: as decoded, in any format.
    """
    if not frame.interlaced_frame:
        return frame
    graph = Graph()
    source = graph.add(
        "buffer",
        f"video_size={frame.width}x{frame.height}:pix_fmt={frame.format.name}:"
        f"colorspace={int(frame.colorspace)}:range={int(frame.color_range)}:"
        "time_base=1/1:pixel_aspect=1/1",
    )
    rows = graph.add("field", "type=top")
    sink = graph.add("buffersink")
    graph.link_nodes(source, rows, sink).configure()
    graph.vpush(frame)
    return graph.vpull()
