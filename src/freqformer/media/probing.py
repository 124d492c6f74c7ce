"""Looking at a video file: its true start, length and rate, within bounds of time and memory."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from freqformer._optional import needs
from freqformer.media.opening import VideoError, open_video, tell_once
from freqformer.media.pictures import shown_size
from freqformer.media.timing import (
    SEEK_MARGINS,
    Clock,
    decode,
    decoder_of,
    packets,
    seek,
    timed_frames,
)

with needs("train"):
    import av
    from av.error import FFmpegError
    from av.format import Flags

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.packet import Packet
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

MAX_SECONDS = 1e6
"""Longest video that is believed: 11 days. What claims more has a damaged header."""
SCAN_BYTES = 2**26
"""Files up to this size are read through once, without decoding; of larger ones the start and the
end are."""
READ_BYTES = 2**30
"""Most that is read of one file."""
SCAN_PACKETS = 2**18
"""Most packets that are looked at: 2.4 hours at 30 frames per second."""
TAIL_FRAMES = 600
"""Most frames that are decoded to find the last one. Key frames are rarely farther apart."""
UNEVEN = 1.25
"""Ratio of the densest frame rate to the mean from which a rate counts as variable. Rounding stays
below."""

_READ_THROUGH = Flags.generic_index.value | Flags.no_timestamps.value
"""Formats without an index: FFmpeg would go to frames that others before them are needed for."""


@dataclass(frozen=True)
class VideoInfo:
    """What `probe_video` finds. Functions that read a video take it in place of a path, and then
    don't look again."""

    path: Path
    duration: float
    """Seconds from the first frame that can be decoded to the end of the last one."""
    fps: float
    """Mean frames per second."""
    num_frames: int
    """Counted in files up to 64 MiB; as the header says, or an estimate, in larger ones."""
    height: int
    """Rows as shown, after the file's rotation."""
    width: int
    """Columns as shown, with square pixels, after the file's rotation."""
    peak_fps: float
    """Frames per second where they are densest: above `fps` only where the rate varies."""
    last: float
    """Seconds at which the last frame begins."""
    origin: int | None
    """Time stamp of the first frame that can be decoded, in the stream's units; None where frames
    carry none."""
    seekable: bool
    """Whether FFmpeg can go to a time in the file; otherwise it is decoded from the start."""


def probe_video(path: str | Path) -> VideoInfo:
    """Length, rate and size of a video, by the time stamps of its frames rather than by what its
    header claims.

    Its first frame is decoded. A file that is cut off lasts as long as what is left of it. What
    will not be shown, or not as a player shows it, is logged as a warning that names the file,
    once: a start that can't be decoded, HDR, interlacing, other video streams, a file of which only
    a part is looked at.

    Raises:
        VideoError: for a file that is missing, empty, damaged, holds no video, or claims to last
            over 11 days.
    """
    path = Path(path)
    for from_key, at_end in ((True, True), (True, False), (False, False)):
        with open_video(path) as (container, stream):
            if at_end and os.path.getsize(path) <= SCAN_BYTES:
                continue
            look = _Look(path, container, stream, from_key=from_key)
            info = look.to_end(jump=at_end)
            cut_off = info is not None and look.may_be_cut_off(info)
        if info is not None:
            return _without_broken_end(info) if cut_off else info
    raise VideoError(f"{path} holds no frame that can be decoded; remove it, or make it again")


class _Look:
    """One look at an open file: its first frame, and the time stamps of packets in the stream's
    units."""

    def __init__(
        self,
        path: Path,
        container: InputContainer,
        stream: VideoStream,
        *,
        from_key: bool,
    ) -> None:
        self._path = path
        self._container = container
        self._stream = stream
        self._clock = Clock(container, stream)
        self._stamps: list[int] = []
        # Lengths of the frames in front that have none.
        self._unstamped: list[int] = []
        # Where the frame that is shown last ends.
        self._end = 0
        self._complete = False
        # Whether frames had to be told apart that the container holds in one piece, with one time
        # stamp.
        self._split = False
        self._rest = self._noted(packets(container, stream, self._clock, from_key=from_key))
        decoded = decode(decoder_of(stream), self._rest)
        self._frame: VideoFrame | None = next((frame for frame, _ in decoded), None)

    def to_end(self, *, jump: bool) -> VideoInfo | None:
        """What the file is; None where no frame was found, or not the end.

        Args:
            jump: whether to go to the end rather than read up to it.
        """
        if self._frame is None or not (self._stamps or self._unstamped):
            return None
        begun = self._end
        if jump:
            with suppress(FFmpegError):
                self._container.seek(self._claimed_end(), stream=self._stream)
                source = packets(self._container, self._stream, self._clock, from_key=False)
                self._rest = self._noted(source)
        for _ in self._rest:
            pass
        if jump and self._end == begun:
            # The file is cut off, or its format has no way to the end.
            return None
        self._tell(self._frame)
        if not (jump or self._complete):
            _, end = self._times()
            tell_once(f"{self._path} is so long that only its first {end:.3f} s are used")
        return self._info(self._frame, counted=not jump)

    def may_be_cut_off(self, info: VideoInfo) -> bool:
        """Whether the header claims more than was found, or is of a kind that can't tell."""
        if not info.seekable or self._container.format.flags & Flags.ts_discont.value:
            return info.seekable
        claimed = (self._claimed_end() - (info.origin or 0)) * self._clock.base
        return claimed > info.duration + 1.5 * self._clock.period

    def _noted(self, source: Iterator[Packet]) -> Iterator[Packet]:
        """Pass packets on and note their time stamps, within bounds of their number and size."""
        read = 0
        for packet in islice(source, SCAN_PACKETS):
            # Discarded packets lie outside the part of the file that its edit list shows.
            if not (packet.is_corrupt or packet.is_discard):
                self._note(packet)
            self._split = self._split or packet.pos is None
            yield packet
            read += packet.size
            if read > READ_BYTES:
                return
        self._complete = next(source, None) is None

    def _note(self, packet: Packet) -> None:
        length = round(self._clock.length(packet) / self._clock.base)
        stamp = self._clock.stamp(packet)
        if stamp is not None:
            self._end = max(self._end, stamp + length) if self._stamps else stamp + length
            self._stamps.append(stamp)
        elif not self._stamps or self._unstamped:
            # Some formats have no time stamps at all, some none below 0.
            self._unstamped.append(length)

    def _claimed_end(self) -> int:
        """The last time stamp, as the header has it."""
        stream, container = self._stream, self._container
        if stream.duration is not None:
            end = (stream.start_time or 0) + stream.duration
        else:
            micros = (container.start_time or 0) + (container.duration or 0)
            end = int(micros / av.time_base / self._clock.base)
        return min(end, 2**62)

    def _times(self) -> tuple[np.ndarray, float]:
        """(seconds at which frames begin, rising and from 0 on; seconds at which the last one
        ends)."""
        origin = None if self._frame is None else self._clock.stamp(self._frame)
        stamps = np.unique(np.array(self._stamps, dtype=np.int64))
        ends = np.cumsum(np.array(self._unstamped, dtype=np.int64))
        lead = int(ends[-1]) if len(ends) else 0
        if origin is None or self._clock.decoding_times:
            # Decoding times of frames come later than those of their packets, by a constant.
            origin = int(stamps[0]) if len(stamps) else 0
        else:
            stamps, ends, lead = stamps[stamps >= origin], ends[:0], 0
        units = np.concatenate([ends - self._unstamped[: len(ends)], stamps - origin + lead])
        last = lead + (self._end - origin if len(stamps) else 0)
        return units * self._clock.base, last * self._clock.base

    def _info(self, frame: VideoFrame, *, counted: bool) -> VideoInfo:
        """Raises VideoError where the time stamps can't be true."""
        path, clock, stream = self._path, self._clock, self._stream
        times, end = self._times()
        if not end <= MAX_SECONDS:
            raise VideoError(
                f"{path} claims to last {end:.3g} s; up to {MAX_SECONDS:g} s are allowed: its time "
                "stamps are damaged, make it again or remove it"
            )
        duration = max(end, 1e-6)
        rate = float(stream.average_rate or stream.guessed_rate or 0)
        header = stream.frames if stream.frames > 0 else round(duration * rate)
        count = max(len(times) if counted else header, 1)
        # The header's rate is the exact one where frames bear it out.
        fps = rate if abs(rate * duration - count) < 0.5 and rate > 0 else count / duration
        height, width = shown_size(stream, frame)
        origin = clock.stamp(frame)
        flags = self._container.format.flags
        guessed = bool(flags & _READ_THROUGH or clock.restarts or origin is None)
        # From the middle of such a piece on, time stamps would be given to the wrong frames.
        guessed = guessed or (self._split and bool(flags & Flags.ts_discont.value))
        return VideoInfo(
            path,
            duration,
            fps,
            count,
            height,
            width,
            peak_fps=_peak_fps(times, fps),
            last=float(times[-1]) if len(times) else 0.0,
            origin=origin,
            seekable=not guessed,
        )

    def _tell(self, frame: VideoFrame) -> None:
        """Log what of the file is not shown as a player would."""
        path, clock, begin = self._path, self._clock, self._stream.start_time
        origin = clock.stamp(frame)
        if not (begin is None or origin is None or clock.decoding_times):
            lost = (origin - begin) * clock.base
            if lost > 1.5 * clock.period:
                tell_once(
                    f"{path} begins without a key frame: its first {lost:.3f} s can't be decoded "
                    "and are left out"
                )
        if frame.interlaced_frame:
            tell_once(
                f"{path} is interlaced: every second row of a frame is taken, which is one moment; "
                "deinterlace it where finer rows matter"
            )
        if clock.restarts:
            tell_once(
                f"{path} has time stamps that start again {clock.restarts} times; its parts follow "
                "one another"
            )


def _without_broken_end(info: VideoInfo) -> VideoInfo:
    """The same, up to the last frame that can be decoded: in a file that is cut off, the last
    packets may not be."""
    final = None
    for margin in SEEK_MARGINS:
        with open_video(info.path) as (container, stream):
            if final is None and seek(container, stream, info.origin, max(info.last - margin, 0.0)):
                following = timed_frames(container, stream, info.origin, sought=True)
                for frame in islice(following, TAIL_FRAMES):
                    final = frame
    if final is None or final.seconds >= info.last:
        return info
    lost = max(round((info.last - final.seconds) * info.fps), 1)
    end = final.seconds + final.length
    count = max(info.num_frames - lost, 1)
    return replace(info, duration=end, last=final.seconds, num_frames=count)


def _peak_fps(seconds: np.ndarray, fps: float) -> float:
    """Frames per second where frames at these times are densest, single ones apart; `fps` where
    they are even."""
    if len(seconds) < 3:
        return fps
    densest = 1 / float(np.quantile(np.diff(seconds), 0.1))
    return densest if densest > UNEVEN * fps else fps
