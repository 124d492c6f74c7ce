"""Clips from video files: which part of which file clip `index` is, and what happens when a file is
bad."""

from __future__ import annotations

import logging
from bisect import bisect_right
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from pathlib import Path

import torch

from freqformer.media import (
    DecodedVideo,
    VideoError,
    VideoInfo,
    decode_video,
    list_videos,
    probe_video,
    read_clip,
    to_unit,
)
from freqformer.training.config import DataConfig
from freqformer.training.loader import ClipSource, listed
from freqformer.training.samples import PIXEL_CHANNELS, BadFile, TrainingSample
from freqformer.training.seeding import derive_generator, derive_seed

logger = logging.getLogger(__name__)

ATTEMPTS = 16
"""Windows that are tried at random for one clip, before every file is tried in turn."""
MAX_WINDOWS = 2**20
"""Of one file."""


@dataclass(frozen=True)
class _Windows:
    """The equal parts into which the possible starts of a clip in a file are cut."""

    info: VideoInfo
    count: int
    span: float
    """Seconds of possible starts."""

    def start(self, place: int, share: float) -> float:
        """Seconds at which a clip begins that lies at this share, from 0 to 1, of a window."""
        return self.span * (place + share) / self.count


class ClipFolder(ClipSource):
    """Clips of a video file, or of all videos in a folder.

    Every file is looked at once at first. Possible starts are cut into windows one clip long; an
    epoch visits every window once, in random order, and the start inside the window is random. A
    file that can't be read is named in the log and left out, at first and while training: another
    window then stands in, chosen by the seed and the clip's index alone. A file shorter than a clip
    is left out and named too. Which frames a clip shows does not depend on `config.cache_mib`.

    Args:
        config: where the videos are and what a clip is; `config.path` is needed.
        seed: of the order and the starts.

    Raises:
        VideoError: where there is no video, or none that can be read and is as long as a clip; the
            message has the reasons.
    """

    def __init__(self, config: DataConfig, seed: int) -> None:
        if config.path is None:
            raise ValueError(
                "path is None; a video file or a folder is allowed: SyntheticClips needs no files"
            )
        self.config, self.seed = config, seed
        self.bad_files: dict[Path, str] = {}
        """Files that could not be read so far, and why."""
        files = list_videos(config.path)
        self.num_files = len(files)
        with ThreadPoolExecutor(config.workers) as pool:
            infos = self._index(files, pool)
            self._files = [self._cut(info) for info in infos]
            self._ends = list(accumulate(one.count for one in self._files))
            self._memory = self._decode_all(infos, pool)
        self._order = lru_cache(maxsize=2)(self._permutation)

    @property
    def num_windows(self) -> int:
        """Clips of an epoch."""
        return self._ends[-1]

    @property
    def _length(self) -> float:
        return self.config.num_frames / self.config.fps

    @property
    def channels(self) -> int:
        """Of pixels."""
        return PIXEL_CHANNELS

    def load(self, index: int) -> TrainingSample:
        """Clip `index`, or the one that stands in where its file is bad. Raises VideoError where no
        file can be read."""
        failures: dict[Path, str] = {}
        for window, share in self._candidates(index):
            windows, place = self._window(window)
            try:
                return TrainingSample(
                    self._read(windows.info, windows.start(place, share)),
                    failures=tuple(BadFile(path, reason) for path, reason in failures.items()),
                )
            except VideoError as error:
                failures.setdefault(windows.info.path, str(error))
        raise VideoError(
            f"none of the {len(self._files)} videos in {self.config.path} can be read any more: "
            "look "
            f"whether they are still there\n{listed(list(failures.values()))}"
        )

    def report(self, sample: TrainingSample) -> None:
        """Name the bad files that a sample met, each once."""
        for failure in sample.failures:
            if failure.path not in self.bad_files:
                self.bad_files[failure.path] = failure.reason
                logger.warning("skipped, another clip stands in: %s", failure.reason)

    def fingerprint(self) -> str:
        """Differs with the names and lengths of the files, with what a clip is, and with the
        seed."""
        files = (
            f"{one.info.path.name} {one.count} {one.span:.6f} {self._length:.6f}"
            for one in self._files
        )
        return f"{derive_seed(self.seed, *files):x}"

    def _index(self, files: list[Path], pool: ThreadPoolExecutor) -> list[VideoInfo]:
        """What is known of the files that clips can come from; raises VideoError where there is
        none."""
        config = self.config
        found = list(pool.map(_probe, files))
        bad = [one for one in found if isinstance(one, BadFile)]
        infos = [one for one in found if isinstance(one, VideoInfo)]
        long = [info for info in infos if info.duration > (config.num_frames - 1) / config.fps]
        short = [
            f"{info.path} lasts {info.duration:.3f} s and a clip {self._length:.3f} s"
            for info in infos
            if info.duration <= (config.num_frames - 1) / config.fps
        ]
        self.bad_files = {one.path: one.reason for one in bad}
        reasons = [one.reason for one in bad]
        if not long:
            raise VideoError(
                f"{config.path} holds no video that can be read and is as long as a clip "
                f"({self._length:g} s); lower num_frames, raise fps, or repair the "
                f"files\n{listed(reasons + short)}"
            )
        for what, lines in (
            ("can't be read and are", reasons),
            ("are shorter than a clip and", short),
        ):
            if lines:
                logger.warning(
                    "%d of %d videos in %s %s left out:\n%s",
                    len(lines),
                    len(files),
                    config.path,
                    what,
                    listed(lines),
                )
        return long

    def _cut(self, info: VideoInfo) -> _Windows:
        """The windows of a video that lasts as long as a clip."""
        # More windows than frames would repeat clips, however long a frame is said to last.
        most = min(info.num_frames, MAX_WINDOWS)
        count = min(max(int(info.duration / self._length), 1), most)
        return _Windows(info, count, max(info.duration - self._length, 0.0))

    def _decode_all(
        self,
        infos: list[VideoInfo],
        pool: ThreadPoolExecutor,
    ) -> dict[Path, DecodedVideo]:
        """All frames of all videos, where they fit into `config.cache_mib`."""
        config = self.config
        frames = sum(info.num_frames for info in infos)
        if frames * config.height * config.width * PIXEL_CHANNELS > config.cache_mib * 2**20:
            return {}

        def decode(info: VideoInfo) -> DecodedVideo | None:
            try:
                return decode_video(info, height=config.height, width=config.width)
            except VideoError:
                # Some of its clips may be whole, so it is judged clip by clip.
                return None

        decoded = zip(infos, pool.map(decode, infos), strict=True)
        return {info.path: video for info, video in decoded if video is not None}

    def _candidates(self, index: int) -> Iterator[tuple[int, float]]:
        """(window, share of it at which a clip starts) for clip `index`: its own first, then what
        stands in for it."""
        for attempt in range(ATTEMPTS):
            generator = derive_generator(self.seed, "clip", index, attempt)
            share, other = torch.rand(2, generator=generator, dtype=torch.float64).tolist()
            yield int(other * self.num_windows) if attempt else self._place(index), share
        generator = derive_generator(self.seed, "clip", index, ATTEMPTS)
        for file in torch.randperm(len(self._files), generator=generator).tolist():
            share, place = torch.rand(2, generator=generator, dtype=torch.float64).tolist()
            windows = self._files[file]
            yield self._ends[file] - windows.count + int(place * windows.count), share

    def _window(self, number: int) -> tuple[_Windows, int]:
        """The file of a window, and the window's place in it."""
        file = bisect_right(self._ends, number)
        windows = self._files[file]
        return windows, number - (self._ends[file] - windows.count)

    def _place(self, index: int) -> int:
        """The window of a clip: the permutations of the epochs, one after the other."""
        epoch, place = divmod(index, self.num_windows)
        return int(self._order(epoch)[place])

    def _permutation(self, epoch: int) -> torch.Tensor:
        generator = derive_generator(self.seed, "epoch", epoch)
        return torch.randperm(self.num_windows, generator=generator)

    def _read(self, info: VideoInfo, start: float) -> torch.Tensor:
        config = self.config
        clip = {"start": start, "num_frames": config.num_frames, "fps": config.fps}
        memory = self._memory.get(info.path)
        if memory is not None:
            return to_unit(memory.clip(**clip))
        return to_unit(read_clip(info, **clip, height=config.height, width=config.width))


def _probe(path: Path) -> VideoInfo | BadFile:
    try:
        return probe_video(path)
    except VideoError as error:
        return BadFile(path, str(error))
