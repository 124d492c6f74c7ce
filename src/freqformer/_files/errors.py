"""What went wrong with a file, and what helps: by the operating system's error number."""

from __future__ import annotations

import errno
import re
from typing import TypeAlias


class FileError(ValueError):
    """A file or folder can't be written, read or used; the message names it and the remedy."""


ErrorType: TypeAlias = type[ValueError]
"""What a caller wants raised."""

_IN_THE_WAY = "something else is there: move it away, or choose another place"
_NOT_ALLOWED = "choose a place that you may write to"
_REMEDIES = {
    errno.ENOSPC: "free space, or choose another place",
    errno.EFBIG: "raise the limit of a file's size (ulimit -f), or choose another place",
    errno.EACCES: _NOT_ALLOWED,
    errno.EPERM: _NOT_ALLOWED,
    errno.EROFS: _NOT_ALLOWED,
    errno.EEXIST: _IN_THE_WAY,
    errno.EISDIR: _IN_THE_WAY,
    errno.ENOTDIR: _IN_THE_WAY,
    errno.ENOTEMPTY: _IN_THE_WAY,
    errno.ELOOP: "a link leads back to itself: remove it, or choose another place",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.EIO: "check the disk, or choose another place",
}
if hasattr(errno, "EDQUOT"):
    _REMEDIES[errno.EDQUOT] = "free space in your quota, or choose another place"


def cause_and_remedy(error: Exception) -> str:
    """The operating system's words for an error of writing, and what helps against it."""
    number = getattr(error, "errno", None)
    text = getattr(error, "strerror", None) or str(error)
    if number is None and (told := re.search(r"os error (\d+)", str(error))):
        # safetensors writes files itself and gives the number in its text.
        number = int(told[1])
    remedy = _REMEDIES.get(number) if number is not None else None
    return f"{text}; {remedy or 'choose another place'}"
