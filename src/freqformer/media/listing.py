"""Which files of a folder are videos."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from freqformer.media.opening import VideoError

logger = logging.getLogger(__name__)

ENDINGS = (
    "3gp asf avi flv gif m2ts m2v m4v mkv mov mp4 mpeg mpg mts mxf nut ogv ts vob webm wmv y4m"
)
"""File name endings that `list_videos` takes for videos in a folder. A file named itself may end in
anything."""


def list_videos(path: str | Path) -> list[Path]:
    """A video file as [file]; the videos of a folder and its subfolders, sorted by path.

    Links are followed, a folder that several links lead to once. Hidden files and folders are left
    out, and so are folders that can't be read, each named in the log.

    Raises:
        VideoError: where there is nothing at the path, or no video in the folder.
    """
    endings = ENDINGS.split()
    lacks = f"no video; put files that end in {', '.join(endings)} into it"
    return list_files(path, endings, lacks)


def list_files(path: str | Path, endings: Sequence[str], lacks: str) -> list[Path]:
    """As `list_videos`, for files of other endings.

    Args:
        path: a file, of any ending, or a folder.
        endings: in lower case, without dots.
        lacks: what a folder without such files lacks, and what helps.

    Raises:
        VideoError: where there is nothing at the path, or no such file in the folder.
    """
    path = Path(path)
    if os.path.isfile(path):
        return [path]
    if not os.path.isdir(path):
        raise VideoError(f"{path} does not exist; give a video file, or a folder with videos in it")
    found = sorted(
        file
        for file in _files(path)
        if file.suffix.lower().removeprefix(".") in endings and os.path.isfile(file)
    )
    if not found:
        raise VideoError(f"{path} holds {lacks}")
    return found


def _files(folder: Path) -> Iterator[Path]:
    """All files below a folder but hidden ones."""
    seen: set[tuple[int, int]] = set()
    for place, folders, files in os.walk(folder, onerror=_tell, followlinks=True):
        status = os.stat(place)
        identity = (status.st_dev, status.st_ino)
        if identity in seen:
            # Links can lead in circles.
            folders.clear()
            continue
        seen.add(identity)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(place, name) for name in files if not name.startswith("."))


def _tell(error: OSError) -> None:
    logger.warning("skipped, the folder can't be read: %s: %s", error.filename, error.strerror)
