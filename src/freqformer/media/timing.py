"""Packets and frames of a video stream on one time line, whatever its time stamps do."""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Generic, TypeVar, cast

from freqformer._optional import needs

with needs("train"):
    import av
    from av.error import FFmpegError


if TYPE_CHECKING:
    from av.container import InputContainer
    from av.packet import Packet
    from av.video.codeccontext import VideoCodecContext
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

Picture = TypeVar("Picture")

USUAL_FPS = 25
"""Frames per second of streams that state none, as FFmpeg takes it."""
MAX_UNDECODED = 4096
"""Packets in a row that may give no frame. A key frame comes far more often in any file that is
whole."""

REORDERED = 64
"""Packets by which a frame may come out later than its own packet: frames to be reordered, and
decoders' threads."""

SEEK_MARGINS = (0.0, 4.0, 16.0)
"""Seconds before a clip to which FFmpeg is sent, one after the other, until a key frame lies
between: of formats without an index of key frames it goes to just any frame."""

_ALPHA_DECODERS = {"vp8": "libvpx", "vp9": "libvpx-vp9"}
"""Decoders that read the transparency of WebM, which FFmpeg's own leave out."""


@dataclass(frozen=True)
class TimedFrame(Generic[Picture]):
    """A frame and when it is shown."""

    seconds: float
    """From the first frame that can be decoded."""
    length: float
    """Seconds that it is shown, as the file says."""
    after_damage: bool
    """Whether something between it and the frame before could not be decoded."""
    picture: Picture


class Clock:
    """What the time stamps of a stream count.

    AVI holds decoding times alone: FFmpeg makes presentation times of them that are wrong where
    frames are reordered, while the decoding times of the frames are right but for a constant.
    """

    def __init__(self, container: InputContainer, stream: VideoStream) -> None:
        self.base = float(stream.time_base or 1)
        self.decoding_times = container.format.name == "avi"
        rate = float(stream.average_rate or stream.guessed_rate or USUAL_FPS)
        self.period = 1 / min(max(rate, 1e-3), 1e4)
        """Seconds between frames, for want of better."""
        self.restarts = 0
        """Times that time stamps have started again so far."""

    def stamp(self, one: Packet | VideoFrame) -> int | None:
        """The time stamp in the stream's units; None where there is none."""
        return one.dts if self.decoding_times else one.pts

    def length(self, one: Packet | VideoFrame) -> float:
        """Seconds that it is shown."""
        return one.duration * self.base if one.duration and one.duration > 0 else self.period


def decoder_of(stream: VideoStream) -> VideoCodecContext:
    """What decodes the stream's packets."""
    name = stream.codec_context.name
    if stream.metadata.get("alpha_mode") == "1" and name in _ALPHA_DECODERS:
        return cast("VideoCodecContext", av.VideoCodecContext.create(_ALPHA_DECODERS[name], "r"))
    return stream.codec_context


def packets(
    container: InputContainer,
    stream: VideoStream,
    clock: Clock,
    *,
    from_key: bool,
) -> Iterator[Packet]:
    """The stream's packets from where the container stands, their time stamps made one time line.

    Where time stamps start again, as in files put together end to end, they are counted on from the
    last frame. Packets between there and the next key frame are left out: what they build on is
    missing.

    Args:
        from_key: whether packets before the first key frame are left out too.
    """
    waiting, end, offset = from_key, None, 0
    order = _Order(clock)
    for packet in container.demux(stream):
        if not packet.size:
            # It would end the decoder; `decode` does so once all are through.
            continue
        if order.starts_again(packet):
            waiting = True
            clock.restarts += 1
        stamp = clock.stamp(packet)
        if waiting:
            if not packet.is_keyframe:
                continue
            waiting = False
            if end is not None and stamp is not None:
                offset = end - stamp
        if stamp is not None:
            until = stamp + offset + round(clock.length(packet) / clock.base)
            end = until if end is None else max(end, until)
        if packet.pts is not None:
            packet.pts += offset
        if packet.dts is not None:
            packet.dts += offset
        yield packet


class _Order:
    """Notices packets whose time stamps fall behind those before."""

    def __init__(self, clock: Clock) -> None:
        # Decoding times rise; without them, reordered frames go back by some frames.
        self._slack = {
            "dts": 2 * clock.period / clock.base,
            "pts": (1 + 2 * clock.period) / clock.base,
        }
        self._reached: dict[str, int] = {}

    def starts_again(self, packet: Packet) -> bool:
        kind = "dts" if packet.dts is not None else "pts"
        stamp: int | None = getattr(packet, kind)
        if stamp is None:
            return False
        again = stamp < self._reached.get(kind, stamp) - self._slack[kind]
        if again:
            self._reached.clear()
        self._reached[kind] = max(stamp, self._reached.get(kind, stamp))
        return again


def decode(
    decoder: VideoCodecContext,
    source: Iterable[Packet],
) -> Iterator[tuple[VideoFrame, bool]]:
    """(frame, whether packets near it could not be decoded) of the packets.

    Ends where `MAX_UNDECODED` packets in a row give no frame.
    """
    # The first packets of a stream may build on what came before it.
    since_error, undecoded = REORDERED, 0
    # None, in the end, makes the decoder give out what it holds back.
    for packet in chain(source, [None]):
        since_error += 1
        undecoded += 1
        frames: list[VideoFrame] = []
        # A packet that is cut off would be shown as a smear.
        broken = packet is not None and packet.is_corrupt
        if not broken:
            try:
                frames = decoder.decode(packet)
            except FFmpegError:
                broken = True
        if broken:
            since_error = 0
        for frame in frames:
            if frame.is_corrupt:
                since_error = 0
            else:
                yield frame, since_error < REORDERED
                undecoded = 0
        if undecoded > MAX_UNDECODED:
            return


def timed_frames(
    container: InputContainer, stream: VideoStream, origin: int | None, *, sought: bool = False
) -> Iterator[TimedFrame[VideoFrame]]:
    """The frames from where the container stands, in order of time; those before the origin are
    left out.

    Args:
        origin: time stamp of the first frame that can be decoded; None where frames carry none.
        sought: whether the container does not stand at the file's start: a frame without time stamp
            can then be told from no other, and is left out.
    """
    clock = Clock(container, stream)
    expected: list[int] = []
    # After a seek, what comes before a key frame builds on frames that were not read.
    source = _listed(packets(container, stream, clock, from_key=sought), clock, expected)
    # Frames without time stamp follow one another; those between frames that have some do too.
    last, end = -1.0, None if sought else 0.0
    before: int | None = None
    for frame, near_damage in decode(decoder_of(stream), source):
        stamp = clock.stamp(frame)
        if stamp is None:
            if end is None:
                continue
            seconds = end
        else:
            if origin is None:
                origin = stamp - round((end or 0.0) / clock.base)
            seconds = (stamp - origin) * clock.base
        # A second frame at the same time is never seen.
        if seconds < 0 or seconds <= last:
            continue
        length = clock.length(frame)
        missing = near_damage and _skipped(expected, before, stamp)
        yield TimedFrame(seconds, length, missing, frame)
        last, end, before = seconds, seconds + length, stamp


def _listed(source: Iterator[Packet], clock: Clock, stamps: list[int]) -> Iterator[Packet]:
    """Pass packets on and keep their time stamps in rising order."""
    for packet in source:
        stamp = clock.stamp(packet)
        if stamp is not None:
            insort(stamps, stamp)
        yield packet


def _skipped(expected: list[int], before: int | None, now: int | None) -> bool:
    """Whether packets between two frames gave none; forgets the packets up to the second."""
    if before is None or now is None:
        return False
    skipped = bisect_left(expected, now) - bisect_right(expected, before)
    del expected[: bisect_right(expected, now)]
    return skipped > 0


def seek(
    container: InputContainer,
    stream: VideoStream,
    origin: int | None,
    seconds: float,
) -> bool:
    """Go to the last key frame at or before a time; False where the format can't."""
    try:
        container.seek((origin or 0) + int(seconds / float(stream.time_base or 1)), stream=stream)
    except FFmpegError:
        return False
    return True
