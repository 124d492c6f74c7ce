"""The folder beside a target that is being written.

Beside a target that is being written stands `.freqformer-HOST-PROCESS-XXXXXXXX/`, with a random end
and open to its owner alone. It holds what is new, meanwhile the old folder too, a lock that this
process holds, and a mark that says whose it is. A killed process leaves it behind; the next one
that writes in the same place finds its lock free, puts back an old folder that has no successor,
and removes the rest. Nothing else is ever removed.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import socket
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from freqformer._files.errors import ErrorType, FileError
from freqformer._files.locking import HeldError, describe_holder, hold, told_holder
from freqformer._files.reading import read_json
from freqformer._files.syncing import remove

logger = logging.getLogger(__name__)

PREFIX = ".freqformer-"
MARK_NAME = "mark.json"
LOCK_NAME = "lock"
FORMAT = "freqformer-workspace-1"
_NAME = re.compile(re.escape(PREFIX) + r"(?P<host>[0-9a-f]{8})-(?P<process>\d{1,10})-\w{8}")
NEW = "new"
OLD = "old"


@contextmanager
def workspace(target: Path, *, alone: ErrorType | None = None) -> Iterator[Path]:
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
            remove(path)
    if not os.path.lexists(place / OLD):
        remove(place / MARK_NAME)


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
                if _mark(place) == mark:
                    _restore(place, parent / mark["target"])
            # Where its owner ended meanwhile, the lock file that was made here anew may have kept
            # it from removing the folder.
            if not os.path.lexists(place / MARK_NAME):
                shutil.rmtree(place)
        except FileNotFoundError:
            # Its owner removed it meanwhile.
            continue
        except HeldError:
            continue
        except OSError as error:
            logger.warning("%s, left of a stopped process, can't be removed: %s", place, error)


def _restore(place: Path, target: Path) -> None:
    """Put back the old folder of a dead process's workspace, if it has no successor, and remove
    the rest."""
    old = place / OLD
    if os.path.lexists(old) and not os.path.lexists(target):
        old.rename(target)
        logger.warning("%s was put back: its writer was stopped halfway", target)
    remove(old)
    _empty(place)


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
