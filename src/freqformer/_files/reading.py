"""Reading files that anybody may have written: in bounds of size, depth and numbers, with errors
that name the file."""

from __future__ import annotations

import json
import math
import stat
from pathlib import Path
from typing import Any, TypeVar

from freqformer._files.errors import ErrorType, FileError

MOST_BYTES = 64 << 20
"""Of a JSON file; the largest that this package writes, a calibration's errors, take a few MB."""
MOST_DEPTH = 32
_TOO_DEEP = f"nested more than {MOST_DEPTH} deep"
LARGEST_INTEGER = (1 << 63) - 1

Kind = TypeVar("Kind", dict, list)


def read_bytes(
    path: Path,
    *,
    remedy: str,
    most_bytes: int = MOST_BYTES,
    error: ErrorType = FileError,
) -> bytes:
    """The content of a regular file.

    Args:
        path: of the file; a link to one is followed.
        remedy: ends the message of an error.
        most_bytes: largest size.
        error: to raise.

    Raises:
        error: for a file that is missing, no regular file (a pipe would be waited for), too large
            or not readable.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise error(f"{path} is no regular file; {remedy}")
        if status.st_size > most_bytes:
            size = f"{status.st_size:,} bytes; {most_bytes:,} at most are allowed"
            raise error(f"{path} has {size}: {remedy}")
        return path.read_bytes()
    except OSError as cause:
        raise error(f"{path} can't be read ({cause.strerror or cause}); {remedy}") from cause


def read_json(
    path: Path,
    *,
    remedy: str,
    kind: type[Kind] = dict,
    most_bytes: int = MOST_BYTES,
    error: ErrorType = FileError,
) -> Kind:
    """The value in a JSON file.

    Args:
        path: of the file.
        remedy: ends the message of an error.
        kind: `dict` or `list`, what the file must hold.
        most_bytes: largest size.
        error: to raise.

    Raises:
        error: as `read_bytes`, and for what is no JSON in UTF-8, holds something else, is nested
            more than 32 deep, or has numbers beyond 64 bits or that are not finite.
    """
    content = read_bytes(path, remedy=remedy, most_bytes=most_bytes, error=error)
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as cause:
        why = _TOO_DEEP if isinstance(cause, RecursionError) else cause
        raise error(f"{path} can't be read ({why}); {remedy}") from cause
    if not isinstance(value, kind):
        wanted = "an object" if kind is dict else "a list"
        raise error(f"{path} holds {_short(value)}; {wanted} is allowed: {remedy}")
    if problem := _beyond_bounds(value):
        raise error(f"{path} can't be read ({problem}); {remedy}")
    return value


def _beyond_bounds(value: Any) -> str | None:
    """What a parsed value has that no file of ours has; looked for without recursion."""
    level = [value]
    for _ in range(MOST_DEPTH):
        inner: list[Any] = []
        for one in level:
            if isinstance(one, dict):
                inner += one.values()
            elif isinstance(one, list):
                inner += one
            elif isinstance(one, int) and abs(one) > LARGEST_INTEGER:
                return "an integer beyond 64 bits"
            elif isinstance(one, float) and not math.isfinite(one):
                return "a number that is not finite"
        if not inner:
            return None
        level = inner
    return _TOO_DEEP


def _short(value: Any) -> str:
    text = repr(value) if not isinstance(value, dict | list) else type(value).__name__
    return text if len(text) <= 60 else f"{text[:60]}…"
