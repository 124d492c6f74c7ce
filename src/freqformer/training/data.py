"""Clips from video files: which part of which file clip `index` is, and what happens when a file is bad."""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch

from freqformer.media import VideoError, VideoInfo, list_videos, probe_video, read_clip, to_unit
from freqformer.training.config import DataConfig
from freqformer.training.loader import BadFile, Clip, ClipSource
from freqformer.training.seeding import derive_generator, derive_seed

logger = logging.getLogger(__name__)

BAD_SHARE = 0.05
"""Share of files that may be bad before a run stops."""
ATTEMPTS = 16
"""Windows that are tried for one clip. Where 5% of windows are bad, all of them fail once in 10**20 clips."""


@dataclass(frozen=True)
class _Window:
    """One of the equal parts of the possible starts of a clip in a file; seconds."""

    path: Path
    start: float
    length: float


@dataclass(frozen=True)
class _Memory:
    """All frames of one video, at their own rate."""

    frames: torch.Tensor
    fps: float


def _probe(path: Path) -> VideoInfo | BadFile:
    try:
        return probe_video(path)
    except VideoError as error:
        return BadFile(path, str(error))


class ClipFolder(ClipSource):
    """Clips of a video file, or of all videos in a folder.

    Every file is opened once at first. Possible starts are cut into windows one clip long; an epoch visits every window
    once, in random order, and the start inside the window is random. A file that can't be decoded is named in the log, and
    another window stands in, chosen by the seed and the clip's index alone. A file shorter than a clip is left out.

    Args:
        config: where the videos are and what a clip is; `config.path` is needed.
        seed: of the order and the starts.

    Raises:
        VideoError: where there is no video, more than 5% of the files are bad (the message lists them), or every file is
            shorter than a clip.
    """

    def __init__(self, config: DataConfig, seed: int) -> None:
        if config.path is None:
            raise ValueError("path is None; a video file or a folder is allowed: SyntheticClips needs no files")
        self.config, self.seed = config, seed
        self.bad_files: dict[Path, str] = {}
        """Files that could not be read so far, and why."""
        files = list_videos(config.path)
        self.num_files = len(files)
        with ThreadPoolExecutor(config.workers) as pool:
            found = list(pool.map(_probe, files))
            for failure in (result for result in found if isinstance(result, BadFile)):
                self._note(failure)
            self._stop_if_too_many()
            infos = [result for result in found if isinstance(result, VideoInfo)]
            self._windows = [window for info in infos for window in self._cut(info)]
            self._memory = self._decode_all(infos, pool)
        if not self._windows:
            raise VideoError(
                f"{config.path} holds no video as long as a clip ({self._length:g} s); lower num_frames or raise fps"
            )
        self._order = lru_cache(maxsize=2)(self._permutation)

    @property
    def _length(self) -> float:
        return self.config.num_frames / self.config.fps

    def load(self, index: int) -> Clip:
        """Clip `index`, or the one that stands in where its file is bad. Raises VideoError when 16 windows in a row are."""
        failures: list[BadFile] = []
        for attempt in range(ATTEMPTS):
            generator = derive_generator(self.seed, "clip", index, attempt)
            share, other = torch.rand(2, generator=generator, dtype=torch.float64).tolist()
            window = self._windows[int(other * len(self._windows)) if attempt else self._place(index)]
            try:
                return Clip(self._read(window, share), tuple(failures))
            except VideoError as error:
                failures.append(BadFile(window.path, str(error)))
        raise VideoError(f"{ATTEMPTS} clips in a row can't be read: " + "; ".join(failure.reason for failure in failures))

    def report(self, clip: Clip) -> None:
        """Name the bad files that a clip met; raises VideoError with the list when they are more than 5% of all."""
        for failure in clip.failures:
            self._note(failure)
        self._stop_if_too_many()

    def fingerprint(self) -> str:
        """Differs with the names and lengths of the files, with what a clip is, and with the seed."""
        windows = (f"{window.path.name} {window.start:.6f} {window.length:.6f}" for window in self._windows)
        return f"{derive_seed(self.seed, *windows):x}"

    def _cut(self, info: VideoInfo) -> list[_Window]:
        """The windows of a video; none where it is shorter than a clip."""
        config = self.config
        if info.duration <= (config.num_frames - 1) / config.fps:
            logger.warning("%s lasts %.3f s and a clip %.3f s; it is left out", info.path, info.duration, self._length)
            return []
        span, count = max(info.duration - self._length, 0.0), max(int(info.duration / self._length), 1)
        return [_Window(info.path, span * i / count, span / count) for i in range(count)]

    def _decode_all(self, infos: list[VideoInfo], pool: ThreadPoolExecutor) -> dict[Path, _Memory]:
        """All frames of all videos, where they fit into `config.cache_mib`."""
        config = self.config
        frames = sum(int(info.duration * info.fps) for info in infos)
        if frames * config.height * config.width * 3 > config.cache_mib * 2**20:
            return {}

        def decode(info: VideoInfo) -> _Memory | None:
            count = max(int(info.duration * info.fps), 1)
            try:
                return _Memory(self._decode(info.path, 0.0, count, info.fps), info.fps)
            except VideoError:
                # Some of its clips may be whole, so it is judged clip by clip.
                return None

        memories = zip(infos, pool.map(decode, infos), strict=True)
        return {info.path: memory for info, memory in memories if memory is not None}

    def _place(self, index: int) -> int:
        """The window of a clip: the permutations of the epochs, one after the other."""
        epoch, place = divmod(index, len(self._windows))
        return int(self._order(epoch)[place])

    def _permutation(self, epoch: int) -> torch.Tensor:
        return torch.randperm(len(self._windows), generator=derive_generator(self.seed, "epoch", epoch))

    def _read(self, window: _Window, share: float) -> torch.Tensor:
        config, start = self.config, window.start + share * window.length
        memory = self._memory.get(window.path)
        if memory is None:
            return to_unit(self._decode(window.path, start, config.num_frames, config.fps))
        times = start + torch.arange(config.num_frames) / config.fps
        return to_unit(memory.frames[(times * memory.fps).round().long().clamp_max(len(memory.frames) - 1)])

    def _decode(self, path: Path, start: float, num_frames: int, fps: float) -> torch.Tensor:
        size = {"height": self.config.height, "width": self.config.width}
        return read_clip(path, start=start, num_frames=num_frames, fps=fps, **size)

    def _note(self, failure: BadFile) -> None:
        if failure.path not in self.bad_files:
            self.bad_files[failure.path] = failure.reason
            logger.warning("skipped, another clip stands in: %s", failure.reason)

    def _stop_if_too_many(self) -> None:
        if len(self.bad_files) > BAD_SHARE * self.num_files:
            reasons = "\n".join(f"  {reason}" for reason in self.bad_files.values())
            raise VideoError(
                f"{len(self.bad_files)} of {self.num_files} videos in {self.config.path} can't be read; at most "
                f"{BAD_SHARE:.0%} may be bad: remove or repair\n{reasons}"
            )
