"""Files and folders that are whole or absent: made in a workspace beside their place, synced, then
renamed."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from freqformer._files.checksums import write_manifest
from freqformer._files.errors import ErrorType, FileError, cause_and_remedy
from freqformer._files.replacing import exchange, refuse_foreign
from freqformer._files.syncing import sync, sync_tree
from freqformer._files.workspace import NEW, OLD, workspace


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
            place = stack.enter_context(workspace(target))
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
            refuse_foreign(target, kind, known, error)
            place = stack.enter_context(workspace(target, alone=error))
            new = place / NEW
            new.mkdir()
        with _told(target, error, place):
            yield new
        with _told(target, error):
            write_manifest(new, kind)
            sync_tree(new)
            refuse_foreign(target, kind, known, error)
            exchange(new, target, place / OLD, error)
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
        refuse_foreign(folder, kind, known, error)
        with workspace(_real_parent(folder)) as place:
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
