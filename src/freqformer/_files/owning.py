"""Output folders that hold files of the user's too: locked, and with nothing of theirs
overwritten."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from freqformer._files.errors import ErrorType, FileError
from freqformer._files.locking import MARK_NAME, locked
from freqformer._files.reading import read_json
from freqformer._files.writing import write_json

FORMAT = "freqformer-output-1"


@contextmanager
def output_folder(
    folder: Path,
    command: str,
    names: Sequence[str],
    *,
    earlier: Sequence[str] = (),
    error: ErrorType = FileError,
) -> Iterator[None]:
    """Hold the lock of an output folder, and mark it, so that the same command may write there
    again.

    Args:
        folder: made if need be.
        command: that writes there, like "demo".
        names: of the files that it writes.
        earlier: names of what the command leaves that nobody else does; a folder with one of them
            is taken as its own, though versions before left no mark.
        error: to raise.

    Raises:
        error: as `locked`, and where a file of one of the names is there that the command did not
            write.
    """
    with locked(folder, error=error):
        commands = _commands(folder / MARK_NAME)
        known = command in commands or any(os.path.lexists(folder / name) for name in earlier)
        found = [name for name in names if os.path.lexists(folder / name)]
        if found and not known:
            raise error(
                f"{folder} holds {', '.join(found)}, which no freqformer {command} wrote, and is "
                "kept as it "
                "is; choose another output folder, or move them away"
            )
        if command not in commands:
            write_json(
                folder / MARK_NAME,
                {"format": FORMAT, "commands": [*commands, command]},
                error=error,
            )
        yield


def _commands(mark: Path) -> list[str]:
    """The commands that wrote to a folder; none where its mark is missing or can't be read."""
    try:
        record = read_json(mark, remedy="", most_bytes=1 << 16)
    except FileError:
        return []
    commands = record.get("commands")
    if record.get("format") != FORMAT or not isinstance(commands, list):
        return []
    return [str(command) for command in commands]
