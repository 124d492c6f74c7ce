"""What is to be cached: every clip of every file, its bucket and its caption, decided once.

The plan lies in the cache, so that a run that was killed goes on with the same one. Files that come
later make another part of it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from freqformer.media import ENDINGS as VIDEO_ENDINGS
from freqformer.media import VideoError, list_files, probe_video
from freqformer.training.cache.buckets import Bucket, Buckets
from freqformer.training.cache.captions import Captions
from freqformer.training.cache.errors import CacheError
from freqformer.training.cache.pictures import ENDINGS, picture_size

logger = logging.getLogger(__name__)

WORKERS = 4
"""Threads that look at files."""


@dataclass(frozen=True)
class PlannedClip:
    """A part of a video, or a picture."""

    file: str
    """From the folder of the videos, with forward slashes."""
    start: float
    """Seconds from the first frame that can be decoded."""
    bucket: Bucket
    caption: str
    """Empty in a cache without text."""

    @property
    def is_picture(self) -> bool:
        """Whether the file is one."""
        return is_picture(self.file)

    def __str__(self) -> str:
        return self.file if self.is_picture else f"{self.file} from {self.start:.3f} s"


@dataclass(frozen=True)
class Skipped:
    """What is left out, and why."""

    file: str
    reason: str


@dataclass(frozen=True)
class Part:
    """What one call of the command found."""

    clips: tuple[PlannedClip, ...]
    skipped: tuple[Skipped, ...] = ()
    sizes: Mapping[str, int] = field(default_factory=dict)
    """Bytes of every file."""

    def to_record(self) -> dict[str, Any]:
        """As JSON holds it; `from_record` reads it back."""
        return {
            "clips": [[c.file, c.start, list(c.bucket.size), c.caption] for c in self.clips],
            "skipped": [[one.file, one.reason] for one in self.skipped],
            "sizes": dict(self.sizes),
        }

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Part:
        """Raises as Python does for values of another kind."""
        return cls(
            tuple(
                PlannedClip(file, start, Bucket(*size), caption)
                for file, start, size, caption in record["clips"]
            ),
            tuple(Skipped(file, reason) for file, reason in record["skipped"]),
            dict(record["sizes"]),
        )


def is_picture(name: str) -> bool:
    """Whether a file is taken for a picture, by its ending."""
    return name.lower().rpartition(".")[2] in ENDINGS


def find_files(place: Path) -> tuple[Path, list[str]]:
    """The folder of the videos and pictures at a place, and their paths from it, sorted.

    Raises:
        VideoError: where there are none.
    """
    endings = (*VIDEO_ENDINGS.split(), *ENDINGS)
    lacks = f"no video and no picture; put files that end in {', '.join(endings)} into it"
    files = list_files(place, endings, lacks)
    folder = place if place.is_dir() else place.parent
    return folder, sorted(path.relative_to(folder).as_posix() for path in files)


def new_files(folder: Path, files: Sequence[str], parts: Iterable[Part]) -> list[str]:
    """The files that no part holds; a file that was left out counts as new once it has changed.

    Raises:
        CacheError: for files that were cached and have changed since.
    """
    sizes: dict[str, int] = {}
    cached: set[str] = set()
    for part in parts:
        sizes |= part.sizes
        cached |= {clip.file for clip in part.clips}
    changed = [name for name in files if name in sizes and _size(folder / name) != sizes[name]]
    if wrong := [name for name in changed if name in cached]:
        raise CacheError(
            f"{folder} holds {len(wrong)} files that have changed since they were cached, like"
            f" {wrong[:3]}; put changed videos under new names, or choose another output folder"
        )
    again = set(changed)
    return [name for name in files if name not in sizes or name in again]


def check_captions(captions: Captions, parts: Iterable[Part]) -> None:
    """Raise CacheError for clips whose caption is not the one that was cached."""
    for part in parts:
        for clip in part.clips:
            now = captions.by_file.get(clip.file)
            if now is not None and now != clip.caption:
                raise CacheError(
                    f"{clip.file} has another caption than when it was cached; choose another"
                    " output folder to cache it anew"
                )


def make_part(
    folder: Path,
    files: Sequence[str],
    buckets: Buckets,
    captions: Captions | None,
    on_file: Callable[[], None],
) -> Part:
    """Look at every file and cut it into clips.

    Args:
        folder: of the files.
        files: paths from it; all have captions, where there are any.
        buckets: to choose from.
        captions: of the files, what has no other half is kept as left out; None for a cache without
            text.
        on_file: called after each.
    """
    by_file = {} if captions is None else captions.by_file
    skipped = [] if captions is None else list(_unmatched(captions))
    clips: list[PlannedClip] = []

    def look(name: str) -> list[PlannedClip] | Skipped:
        found = _clips_of(folder, name, buckets, by_file.get(name, ""))
        on_file()
        return found

    with ThreadPoolExecutor(WORKERS) as pool:
        for found in pool.map(look, files):
            if isinstance(found, Skipped):
                logger.warning("skipped: %s", found.reason)
                skipped.append(found)
            else:
                clips += found
    return Part(tuple(clips), tuple(skipped), {name: _size(folder / name) for name in files})


def _unmatched(captions: Captions) -> Iterator[Skipped]:
    for name in captions.without_file:
        yield Skipped(name, f"{name}: a caption without a video")
    for name in captions.without_caption:
        yield Skipped(name, f"{name}: no caption")


def _clips_of(
    folder: Path, name: str, buckets: Buckets, caption: str
) -> list[PlannedClip] | Skipped:
    path = folder / name
    try:
        if is_picture(name):
            bucket = buckets.of_picture(*picture_size(path))
            return [PlannedClip(name, 0.0, bucket, caption)]
        info = probe_video(path)
    except VideoError as error:
        return Skipped(name, str(error))
    fitting = buckets.of_video(info.height, info.width, info.duration)
    if fitting is None:
        return Skipped(
            name,
            f"{path} lasts {info.duration:.3f} s, and the shortest clip takes more than"
            f" {buckets.shortest:.3f} s: ask for fewer frames, or more of them a second",
        )
    return [PlannedClip(name, s, fitting, caption) for s in buckets.starts(fitting, info.duration)]


def _size(path: Path) -> int:
    return path.stat().st_size
