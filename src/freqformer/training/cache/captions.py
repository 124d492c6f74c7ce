"""Captions of videos: `.txt` beside each, `captions.jsonl`, or `videos2caption.json`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from freqformer._files import read_bytes, read_json
from freqformer._validate import shown
from freqformer.training.cache.errors import CacheError

LINES_FILE = "captions.jsonl"
LIST_FILE = "videos2caption.json"
PATH_NAMES = ("path", "video", "file_name", "file")
CAPTION_NAMES = ("cap", "caption", "text", "prompt")
MOST_BYTES = 1 << 20
"""Of a `.txt` file."""
_REMEDY = "repair or remove it"


@dataclass(frozen=True)
class Captions:
    """The captions of files, and what has no other half."""

    by_file: Mapping[str, str] = field(default_factory=dict)
    """By the file's path from the folder, with forward slashes."""
    without_file: tuple[str, ...] = ()
    """What names a video that isn't there, each with where it is."""
    without_caption: tuple[str, ...] = ()
    """Files that have none."""

    @property
    def problems(self) -> list[str]:
        """A line for each of both."""
        return [
            *(f"{name}: a caption without a video" for name in self.without_file),
            *(f"{name}: no caption" for name in self.without_caption),
        ]


def read_captions(folder: Path, files: Sequence[str]) -> Captions:
    """The captions of these files.

    Args:
        folder: where the files are, and a list of captions, if there is one.
        files: paths from the folder, with forward slashes.

    Raises:
        CacheError: for a list that can't be read, naming file and line; for two captions of one
            file; for both kinds of list at once.
    """
    lists = [name for name in (LINES_FILE, LIST_FILE) if (folder / name).is_file()]
    if len(lists) > 1:
        raise CacheError(f"{folder} holds {' and '.join(lists)}; one list of captions is allowed")
    known = set(files)
    found: dict[str, str] = {}
    orphans = []
    for where, name, caption in _listed(folder, lists):
        path = _within(folder, name)
        if path in found and found[path] != caption:
            raise CacheError(f"{where} is a second caption of {path}; one is allowed: {_REMEDY}")
        if path in known:
            found[path] = caption
        else:
            orphans.append(f"{where} ({name})")
    for path in files:
        beside = (folder / path).with_suffix(".txt")
        if not beside.is_file():
            continue
        caption = _text(beside)
        if found.setdefault(path, caption) != caption:
            raise CacheError(
                f"{beside} is a second caption of {path}; one is allowed: {_REMEDY}, or take the"
                f" file out of {lists[0]}"
            )
    stems = {(folder / path).with_suffix("") for path in files}
    alone = (path for path in sorted(folder.rglob("*.txt")) if path.with_suffix("") not in stems)
    orphans += [str(path) for path in alone if not _hidden(path.relative_to(folder))]
    missing = tuple(path for path in files if path not in found)
    return Captions(found, tuple(orphans), missing)


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _within(folder: Path, name: str) -> str:
    """A listed path from the folder, with forward slashes."""
    path = Path(name)
    if path.is_absolute() and path.is_relative_to(folder.absolute()):
        path = path.relative_to(folder.absolute())
    return path.as_posix()


def _text(path: Path) -> str:
    content = read_bytes(path, remedy=_REMEDY, most_bytes=MOST_BYTES, error=CacheError)
    try:
        return content.decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise CacheError(f"{path} is no text in UTF-8 ({error}); {_REMEDY}") from error


def _listed(folder: Path, lists: Sequence[str]) -> list[tuple[str, str, str]]:
    """(where it is written, path, caption) of every entry of the folder's list."""
    if not lists:
        return []
    path = folder / lists[0]
    if path.name == LIST_FILE:
        entries = read_json(path, remedy=_REMEDY, kind=list, error=CacheError)
        return [_entry(f"{path}, entry {n}", one) for n, one in enumerate(entries, 1)]
    content = read_bytes(path, remedy=_REMEDY, error=CacheError)
    try:
        lines = content.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise CacheError(f"{path} is no text in UTF-8 ({error}); {_REMEDY}") from error
    found = []
    for number, line in enumerate(lines, 1):
        where = f"{path}, line {number}"
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise CacheError(f"{where} is no JSON ({error}): {shown(line)}; {_REMEDY}") from error
        found.append(_entry(where, value))
    return found


def _entry(where: str, value: Any) -> tuple[str, str, str]:
    """Raises CacheError for an entry of another kind."""
    inner = value if isinstance(value, dict) else {}
    path = next((inner[name] for name in PATH_NAMES if name in inner), None)
    caption = next((inner[name] for name in CAPTION_NAMES if name in inner), None)
    if isinstance(caption, list) and len(caption) == 1:
        (caption,) = caption
    if not isinstance(path, str) or not isinstance(caption, str):
        raise CacheError(
            f'{where} is {shown(value)}; {{"path": ..., "cap": ...}} with text in both is'
            f" allowed: {_REMEDY}"
        )
    return where, path, caption.strip()
