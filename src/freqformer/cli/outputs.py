"""Places that commands write to, refused before any work where nothing can be written there."""

from __future__ import annotations

import os
from pathlib import Path


def check_folder(path: Path) -> None:
    """Raise ValueError where `--output` can't become a folder to write into."""
    if path.exists() and not path.is_dir():
        raise ValueError(f"--output is {path}, which is a file; name a folder")
    _check_above(path, path if path.exists() else _nearest_above(path))


def check_file(path: Path) -> None:
    """Raise ValueError where `--output` can't become a file."""
    if path.is_dir():
        example = path / f"new{path.suffix}"
        raise ValueError(
            f"--output is {path}, which is a folder; name a file in it, like {example}"
        )
    _check_above(path, _nearest_above(path))


def _nearest_above(path: Path) -> Path:
    """The lowest folder above that exists, or the file that stands there instead."""
    return next(above for above in path.absolute().parents if above.exists())


def _check_above(path: Path, place: Path) -> None:
    if not place.is_dir() or not os.access(place, os.W_OK):
        what = "can't be written to" if place.is_dir() else "is a file"
        raise ValueError(f"--output is {path}, but {place} {what}; choose another folder")
