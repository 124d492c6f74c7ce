"""One process at a time in an output folder, and a second one is told who it is."""

from __future__ import annotations

import errno
import logging
import os
import shlex
import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from freqformer._files.errors import ErrorType, FileError, cause_and_remedy
from freqformer._files.reading import read_json

logger = logging.getLogger(__name__)

LOCK_NAME = ".freqformer.lock"
MARK_NAME = ".freqformer-output.json"
"""Of `output_folder`."""
HOLDER_NAME = ".freqformer.lock.json"
"""A file of its own: what is in a lock file may be lost when another process opens it."""
_UNSUPPORTED = {errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK}


class HeldError(Exception):
    """Another process holds the lock."""


@contextmanager
def locked(folder: Path, *, error: ErrorType = FileError) -> Iterator[None]:
    """Keep other processes out of an output folder while the block runs; the system frees it when
    this process dies.

    Args:
        folder: made if need be, and removed again where the block leaves nothing in it; may be a
            link to one.
        error: to raise.

    Raises:
        error: where another process holds it, naming its host, number, command and since when; or
            where the folder can't be written.
    """
    # writing.py needs `hold` of this file.
    from freqformer._files.writing import write_json

    with ExitStack() as stack:
        made = not folder.exists()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(hold(folder / LOCK_NAME))
        except HeldError:
            raise error(f"{folder} is {told_holder(folder / HOLDER_NAME)}") from None
        except OSError as cause:
            raise error(f"{folder} can't be written: {cause_and_remedy(cause)}") from cause
        write_json(folder / HOLDER_NAME, describe_holder(), error=error)
        try:
            yield
        finally:
            with suppress(OSError):
                (folder / HOLDER_NAME).unlink()
                if made and {path.name for path in folder.iterdir()} <= {LOCK_NAME, MARK_NAME}:
                    for path in folder.iterdir():
                        path.unlink()
                    folder.rmdir()


@contextmanager
def hold(path: Path) -> Iterator[None]:
    """Hold the lock of a lock file, without waiting.

    Raises:
        HeldError: where another holds it.
        OSError: where the file can't be opened.
    """
    from filelock import FileLock, Timeout

    if path.is_symlink():
        # Some versions of filelock would empty the file that it leads to.
        raise OSError(errno.ELOOP, "it is a symbolic link", str(path))
    lock = FileLock(path, timeout=0, thread_local=False)
    try:
        lock.acquire()
    except Timeout:
        raise HeldError from None
    except (NotImplementedError, OSError) as error:
        if isinstance(error, OSError) and error.errno not in _UNSUPPORTED:
            raise
        logger.warning(
            "%s lies on a file system without locks; see to it that no second process writes there",
            path,
        )
    try:
        yield
    finally:
        lock.release()


def describe_holder() -> dict[str, Any]:
    """This process, for others to read."""
    return {
        "host": socket.gethostname(),
        "process": os.getpid(),
        "since": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])[:500],
    }


def told_holder(path: Path) -> str:
    """Who holds a lock, in words, from the file with what `describe_holder` gave; ends with the
    remedy."""
    try:
        holder = read_json(path, remedy="", most_bytes=1 << 16)
        who = "process {process} on {host} since {since}: {command}".format_map(holder)
    except (FileError, KeyError):
        who = "another process"
    return f"in use by {who}; wait until that ends, stop it, or choose another output folder"
