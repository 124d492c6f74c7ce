"""Where a command's document goes: a file, or stdout where its path is `-`."""

from __future__ import annotations

from pathlib import Path

import typer

STDOUT = "-"
"""A path that stands for stdout."""


def is_stdout(path: Path | None) -> bool:
    """Whether a document goes to stdout, so that everything else must go to stderr."""
    return str(path) == STDOUT


def write_document(path: Path, text: str) -> None:
    """Write a document, whole or not at all.

    Raises:
        ValueError: where it can't be written, naming the path and what helps.
    """
    if is_stdout(path):
        typer.echo(text, nl=False)
        return
    from freqformer._files import write_text

    write_text(path, text)
