"""Files and folders that are whole or absent: made in a folder of their own beside their place,
synced, then renamed.

Beside a target that is being written stands `.freqformer-HOST-PROCESS-XXXXXXXX/`, with a random end
and open to its owner alone. It holds what is new, meanwhile the old folder too, a lock that this
process holds, and a mark that says whose it is. A killed process leaves it behind; the next one
that writes in the same place finds its lock free, puts back an old folder that has no successor,
and removes the rest. Nothing else is ever removed.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import shutil
import socket
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from freqformer._files.checksums import MANIFEST_NAME, own_files, read_manifest, write_manifest
from freqformer._files.errors import ErrorType, FileError, cause_and_remedy
from freqformer._files.locking import HeldError, describe_holder, hold, told_holder
from freqformer._files.reading import read_json

logger = logging.getLogger(__name__)

PREFIX = ".freqformer-"
MARK_NAME = "mark.json"
LOCK_NAME = "lock"
FORMAT = "freqformer-workspace-1"
_NAME = re.compile(re.escape(PREFIX) + r"(?P<host>[0-9a-f]{8})-(?P<process>\d{1,10})-\w{8}")
NEW = "new"
OLD = "old"


@contextmanager
def writing_file(target: Path, *, error: ErrorType = FileError) -> Iterator[Path]:
    """A path to write to, of the same name in a folder beside; it becomes `target` once it is
    synced to disk.

    Args:
        target: at every moment absent, the whole old file, or the whole new one; its folder is made
            if need be. A link is replaced, what it leads to stays as it is.
        error: to raise.

    Raises:
        error: where it can't be written, with what helps. Other errors of the block pass.
    """
    with ExitStack() as stack:
        with _told(target, error):
            target = _real_parent(target)
            place = stack.enter_context(_workspace(target))
        new = place / target.name
        with _told(target, error, place):
            yield new
        with _told(target, error):
            sync(new)
            if target.is_dir() and not target.is_symlink():
                raise IsADirectoryError(errno.EISDIR, "it is a folder")
            new.replace(target)
            sync(target.parent)


@contextmanager
def writing_folder(
    target: Path,
    *,
    kind: str = "folder",
    known: Sequence[str] = (),
    error: ErrorType = FileError,
) -> Iterator[Path]:
    """A folder to fill, which gets a manifest and becomes `target` once it is synced to disk;
    removed on failure.

    Args:
        target: at every moment absent, the whole old folder, or the whole new one, but for the
            moment between two renames; its parent is made if need be. Where it is a link to a
            folder, that folder is replaced.
        kind: what it is; see `write_manifest`. An existing folder is replaced only if it is empty,
            or its manifest is of this kind and lists all that it holds.
        known: patterns of names that folders without manifest, of earlier versions, hold.
        error: to raise.

    Raises:
        error: where it can't be written, with what helps; where an existing folder holds anything
            else; where another process is writing it. Other errors of the block pass.
    """
    with ExitStack() as stack:
        with _told(target, error):
            target = Path(os.path.realpath(target))
            target.parent.mkdir(parents=True, exist_ok=True)
            _refuse_foreign(target, kind, known, error)
            place = stack.enter_context(_workspace(target, alone=error))
            new = place / NEW
            new.mkdir()
        with _told(target, error, place):
            yield new
        with _told(target, error):
            write_manifest(new, kind)
            _sync_tree(new)
            _refuse_foreign(target, kind, known, error)
            _exchange(new, target, place / OLD, error)
            sync(target.parent)


def remove_folder(
    folder: Path,
    *,
    kind: str,
    known: Sequence[str] = (),
    error: ErrorType = FileError,
) -> None:
    """Remove a folder that `writing_folder` made, whole or not at all.

    Args:
        folder: to remove; a link to one is removed, what it leads to stays.
        kind, known, error: as in `writing_folder`.

    Raises:
        error: where it holds anything else, or can't be removed.
    """
    with _told(folder, error):
        _refuse_foreign(folder, kind, known, error)
        with _workspace(_real_parent(folder)) as place:
            # Renamed first, so that a kill leaves no half of it under its name.
            folder.rename(place / NEW)


def write_bytes(path: Path, content: bytes, *, error: ErrorType = FileError) -> None:
    """Write a file, whole or not at all; as `writing_file`."""
    with writing_file(path, error=error) as new:
        new.write_bytes(content)


def write_text(path: Path, text: str, *, error: ErrorType = FileError) -> None:
    """Write a file in UTF-8, whole or not at all; as `writing_file`."""
    write_bytes(path, text.encode(), error=error)


def write_json(
    path: Path,
    value: Any,
    *,
    indent: int | None = 1,
    error: ErrorType = FileError,
) -> None:
    """Write a JSON file, whole or not at all; as `writing_file`. Numbers that are not finite are a
    ValueError."""
    write_text(path, json.dumps(value, indent=indent, allow_nan=False) + "\n", error=error)


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    if os.name == "nt" and path.is_dir():
        # Windows opens no folders.
        return
    handle = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def _told(target: Path, error: ErrorType, place: Path | None = None) -> Iterator[None]:
    """Errors of writing as `error`, with the target and what helps.

    Args:
        target: what is written.
        error: to raise.
        place: the workspace; errors of files elsewhere, which a caller's block reads, pass then.
    """
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, SafetensorError) as cause:
        name = getattr(cause, "filename", None)
        if place is not None and name is not None and place not in Path(name).parents:
            raise
        kept = "What was there before is still there"
        raise error(f"{target} can't be written: {cause_and_remedy(cause)}. {kept}") from cause


def _real_parent(target: Path) -> Path:
    parent = Path(os.path.realpath(target.parent))
    parent.mkdir(parents=True, exist_ok=True)
    return parent / target.name


@contextmanager
def _workspace(target: Path, *, alone: ErrorType | None = None) -> Iterator[Path]:
    """A folder beside the target that is provably ours while it is there; see the head of this
    file.

    Args:
        target: what will be written.
        alone: to raise where another process is writing the same target; None lets the last one
            win.
    """
    parent = target.parent
    _remove_leftovers(parent)
    place = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{_host()}-{os.getpid()}-", dir=parent))
    try:
        with hold(place / LOCK_NAME):
            try:
                mark = {"format": FORMAT, "target": target.name, **describe_holder()}
                (place / MARK_NAME).write_text(json.dumps(mark), encoding="utf-8")
                if alone is not None:
                    for other in _others(parent, place, target.name):
                        raise alone(f"{target} is {told_holder(other / MARK_NAME)}")
                yield place
            finally:
                _empty(place)
    finally:
        # Where an old folder could not be put back, the mark stays, so that the next writer can.
        if not os.path.lexists(place / MARK_NAME):
            shutil.rmtree(place, ignore_errors=True)


def _empty(place: Path) -> None:
    """Remove what a workspace holds, but for its lock, the mark last: a kill leaves what can be
    told to be ours. An old folder that waits to be put back stays, with the mark."""
    for path in place.iterdir():
        if path.name not in (LOCK_NAME, MARK_NAME, OLD):
            _remove(path)
    if not os.path.lexists(place / OLD):
        _remove(place / MARK_NAME)


def _exchange(new: Path, target: Path, old: Path, error: ErrorType) -> None:
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
        _remove(old)


def _put_back(old: Path, target: Path, cause: BaseException, error: ErrorType) -> None:
    try:
        old.rename(target)
    except OSError as second:
        raise error(
            f"{target} can't be written: {cause}; and what was there can't be put back: {second}. "
            f"It is whole, as {old}: move it to {target}"
        ) from cause


def _refuse_foreign(target: Path, kind: str, known: Sequence[str], error: ErrorType) -> None:
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


def _others(parent: Path, own: Path, name: str) -> Iterator[Path]:
    """Workspaces of other processes for the same target."""
    for place in parent.glob(f"{PREFIX}*"):
        mark = _mark(place)
        if place != own and mark is not None and mark["target"] == name:
            yield place


def _mark(place: Path) -> dict[str, Any] | None:
    """The mark of a workspace that this user's process on this machine made; None for anything
    else."""
    if place.is_symlink() or not (place / MARK_NAME).is_file() or (place / MARK_NAME).is_symlink():
        return None
    try:
        mark = read_json(place / MARK_NAME, remedy="", most_bytes=1 << 16)
        names = {path.name for path in place.iterdir()}
        owned = os.name == "nt" or place.stat().st_uid == os.getuid()
    except (FileError, OSError):
        return None
    name = mark.get("target")
    ours = mark.get("format") == FORMAT and mark.get("host") == socket.gethostname() and owned
    plain = isinstance(name, str) and name not in ("", ".", "..") and Path(name).name == name
    alone = LOCK_NAME in names <= {MARK_NAME, LOCK_NAME, NEW, OLD, name}
    return mark if ours and plain and alone else None


def _remove_leftovers(parent: Path) -> None:
    """Remove workspaces of processes that are dead, and put back an old folder that has no
    successor."""
    for place in parent.glob(f"{PREFIX}*"):
        mark = _mark(place)
        try:
            if mark is None:
                if _is_empty_leftover(place):
                    for path in place.iterdir():
                        path.unlink()
                    place.rmdir()
                continue
            with hold(place / LOCK_NAME):
                # Read again: until the lock was held, its owner may have been at work.
                if _mark(place) != mark:
                    continue
                old, target = place / OLD, parent / mark["target"]
                if os.path.lexists(old) and not os.path.lexists(target):
                    old.rename(target)
                    logger.warning("%s was put back: its writer was stopped halfway", target)
                _remove(old)
                _empty(place)
            shutil.rmtree(place)
        except HeldError:
            continue
        except OSError as error:
            logger.warning("%s, left of a stopped process, can't be removed: %s", place, error)


def _host() -> str:
    """This machine, in a few letters."""
    return f"{zlib.crc32(socket.gethostname().encode()):08x}"


def _is_empty_leftover(place: Path) -> bool:
    """Whether a workspace without mark is of a dead process of this machine, and holds nothing."""
    named = _NAME.fullmatch(place.name)
    # On Windows there is no signal that only asks.
    if named is None or named["host"] != _host() or place.is_symlink() or os.name == "nt":
        return False
    try:
        os.kill(int(named["process"]), 0)
    except ProcessLookupError:
        held = list(place.iterdir())
        names = {path.name for path in held}
        return names <= {LOCK_NAME, MARK_NAME} and all(path.lstat().st_size == 0 for path in held)
    except (OSError, OverflowError):
        return False
    return False


def _remove(path: Path) -> None:
    """Remove a file, a link or a folder; what links lead to stays."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


def _sync_tree(folder: Path) -> None:
    for directory, _, names in os.walk(folder):
        for name in names:
            sync(Path(directory, name))
        sync(Path(directory))
