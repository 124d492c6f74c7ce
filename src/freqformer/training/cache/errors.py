"""The error of a cache."""

from __future__ import annotations

from freqformer._files import FileError


class CacheError(FileError):
    """A cache can't be written, read or used; the message names the file and the remedy."""
