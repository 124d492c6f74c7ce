"""Checksums: a manifest beside the files of a folder, and a seal on a JSON record itself."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from freqformer._files.errors import ErrorType, FileError
from freqformer._files.reading import read_json

logger = logging.getLogger(__name__)

MANIFEST_NAME = "freqformer-manifest.json"
FORMAT = "freqformer-manifest-1"
SEAL = "seal"
NEEDED = (".json", ".safetensors", ".jinja", ".model", ".txt")
"""Endings of files that loading depends on; damage to others is told and does no harm."""
_NAME = re.compile(r"(?!\.\.?(/|$))[^/\\:\0]+(/(?!\.\.?(/|$))[^/\\:\0]+)*")


def sealed(record: Mapping[str, Any]) -> dict[str, Any]:
    """A JSON-able record with a checksum over everything in it, for `check_seal`."""
    kept = {name: value for name, value in record.items() if name != SEAL}
    return {**kept, SEAL: _digest_of(kept)}


def check_seal(
    record: Mapping[str, Any],
    path: Path,
    *,
    remedy: str,
    error: ErrorType = FileError,
) -> None:
    """Raise `error`, naming the file, where a record read from it differs from what `sealed`
    gave."""
    kept = {name: value for name, value in record.items() if name != SEAL}
    if record.get(SEAL) != _digest_of(kept):
        raise error(f"{path} is damaged: its checksum does not fit what it holds; {remedy}")


def write_manifest(folder: Path, kind: str, paths: Iterable[Path] | None = None) -> None:
    """Write the manifest of a folder: size and SHA-256 of its files.

    Args:
        folder: what is in subfolders belongs to it, but for subfolders with a manifest of their
            own.
        kind: what the folder is, like "checkpoint"; `writing_folder` replaces folders of the same
            kind alone.
        paths: files in it to list; None lists all.
    """
    from freqformer._files.writing import write_json

    files = {}
    for path in own_files(folder) if paths is None else paths:
        name = path.relative_to(folder).as_posix()
        files[name] = {"bytes": path.stat().st_size, "sha256": _digest_of_file(path)}
    write_json(folder / MANIFEST_NAME, sealed({"format": FORMAT, "kind": kind, "files": files}))


def read_manifest(
    folder: Path,
    *,
    remedy: str,
    error: ErrorType = FileError,
) -> dict[str, Any] | None:
    """The manifest of a folder, checked in itself; None where it has none.

    Raises:
        error: for one that is damaged.
    """
    path = folder / MANIFEST_NAME
    if not os.path.lexists(path):
        return None
    record = read_json(path, remedy=remedy, error=error)
    check_seal(record, path, remedy=remedy, error=error)
    files = record.get("files")
    if record.get("format") != FORMAT or not isinstance(files, dict):
        raise error(f"{path} is no manifest of format {FORMAT!r}; {remedy}")
    if outside := [name for name in files if not _NAME.fullmatch(name)]:
        raise error(f"{path} names {outside[:3]}, outside its folder; {remedy}")
    return record


def check_manifest(folder: Path, *, remedy: str, error: ErrorType = FileError) -> bool:
    """Compare the files of a folder with its manifest and those of its subfolders.

    Files that loading does not depend on, like a card, are named in a warning of the log where they
    differ.

    Returns: whether there is a manifest.

    Raises:
        error: for files that are missing or differ, naming each.
    """
    record = read_manifest(folder, remedy=remedy, error=error)
    problems = []
    for name, written in (record or {"files": {}})["files"].items():
        if problem := _difference(folder / name, written):
            if name.endswith(NEEDED):
                problems.append(f"{folder / name} {problem}")
            else:
                logger.warning("%s %s", folder / name, problem)
    if problems:
        raise error(f"{'; '.join(problems)}: {remedy}")
    inner = sorted(path.parent for path in folder.glob(f"*/{MANIFEST_NAME}"))
    for one in inner:
        check_manifest(one, remedy=remedy, error=error)
    return record is not None or bool(inner)


def own_files(folder: Path) -> Iterator[Path]:
    """The files and links in a folder that its manifest lists, in a fixed order."""
    for directory, folders, names in os.walk(folder):
        here = Path(directory)
        if here != folder and MANIFEST_NAME in names:
            folders.clear()
            continue
        folders.sort()
        links = [name for name in folders if (here / name).is_symlink()]
        if here == folder:
            names = [name for name in names if name != MANIFEST_NAME]
        yield from (here / name for name in sorted([*names, *links]))


def _difference(path: Path, written: Any) -> str | None:
    """How a file differs from what was written; None where it doesn't."""
    if not path.is_file():
        return "is missing"
    try:
        size = path.stat().st_size
        if size != written["bytes"]:
            return f"has {size} bytes and {written['bytes']} bytes were written"
        if _digest_of_file(path) != written["sha256"]:
            return "is damaged: its checksum differs"
    except OSError as error:
        return f"can't be read ({error.strerror or error})"
    return None


def _digest_of(value: Any) -> str:
    # Through text and back: what was read gives what the record that was written gave.
    plain = json.loads(json.dumps(value))
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def _digest_of_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
