"""Putting a new folder in the place of an old one, where all that the old one holds is ours."""

from __future__ import annotations

import os
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from freqformer._files.checksums import MANIFEST_NAME, own_files, read_manifest
from freqformer._files.errors import ErrorType, FileError
from freqformer._files.syncing import remove


def exchange(new: Path, target: Path, old: Path, error: ErrorType) -> None:
    """Put a new folder in the place of an old one; a folder with files can't be renamed over."""
    try:
        if os.path.lexists(target):
            target.rename(old)
        new.rename(target)
    except BaseException as cause:
        if os.path.lexists(old) and not os.path.lexists(target):
            _put_back(old, target, cause, error)
        raise
    if os.path.lexists(old):
        remove(old)


def _put_back(old: Path, target: Path, cause: BaseException, error: ErrorType) -> None:
    try:
        old.rename(target)
    except OSError as second:
        raise error(
            f"{target} can't be written: {cause}; and what was there can't be put back: {second}. "
            f"It is whole, as {old}: move it to {target}"
        ) from cause


def refuse_foreign(target: Path, kind: str, known: Sequence[str], error: ErrorType) -> None:
    """Raise `error` where a folder that would be replaced holds anything that no earlier run of
    ours wrote."""
    if not os.path.lexists(target):
        return
    if not target.is_dir():
        raise error(f"{target} is a file; choose another folder, or move it away")
    foreign = _foreign(target, kind, known)
    if foreign:
        named = ", ".join([*foreign[:3], *(["…"] if len(foreign) > 3 else [])])
        raise error(
            f"{target} holds what this package did not write there as its own {kind} ({named}) and "
            "is "
            "kept as it is; choose another folder, or move it away"
        )


def _foreign(folder: Path, kind: str, known: Sequence[str]) -> list[str]:
    """Names of the files in a folder that are not part of what was written there."""
    found, listed = [], set()
    for one in (folder, *(path.parent for path in folder.glob(f"*/{MANIFEST_NAME}"))):
        try:
            record = read_manifest(one, remedy="")
        except FileError:
            # A damaged manifest vouches for nothing, but it is none of the user's own files.
            record = None
        if record is not None and (one != folder or record.get("kind") == kind):
            listed.update(one / name for name in record["files"])
        found += own_files(one)
    names = [path.relative_to(folder).as_posix() for path in found if path not in listed]
    return [name for name in names if not any(fnmatchcase(name, pattern) for pattern in known)]
