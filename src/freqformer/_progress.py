"""The progress bar of commands and of long calls: on standard error, drawn by rich."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from freqformer._optional import needs

if TYPE_CHECKING:
    from rich.progress import Progress


class ProgressBar:
    """One bar.

    Args:
        bar: with one task; None draws nothing.
    """

    def __init__(self, bar: Progress | None) -> None:
        self._bar = bar

    @property
    def is_drawn(self) -> bool:
        """Whether anything is shown at all."""
        return self._bar is not None

    @property
    def on_terminal(self) -> bool:
        """Whether the bar moves; a file gets lines alone."""
        return self._bar is not None and self._bar.console.is_terminal

    def advance(self) -> None:
        """One more is done."""
        if self._bar is not None:
            self._bar.advance(self._bar.task_ids[0])

    def update(self, *, completed: float | None = None, text: str | None = None) -> None:
        """Set how much is done, and the text behind the bar; None leaves either."""
        if self._bar is None:
            return
        if completed is not None:
            self._bar.update(self._bar.task_ids[0], completed=completed)
        if text is not None:
            self._bar.update(self._bar.task_ids[0], text=text)

    def print(self, line: str, *, style: str | None = None) -> None:
        """A line above the bar."""
        if self._bar is not None:
            self._bar.console.print(line, style=style, highlight=style is None)


@contextmanager
def progress_bar(
    title: str,
    total: float | None,
    *,
    enabled: bool = True,
    counted: str | None = None,
    text: str = "",
    transient: bool = False,
) -> Iterator[ProgressBar]:
    """A bar from here to the end of the block.

    Args:
        title: before the bar.
        total: what is to be done; None where that is not known.
        enabled: whether to draw it.
        counted: what is counted, like "batches"; None shows a percentage.
        text: behind the bar at first.
        transient: whether it goes at the end.
    """
    if not enabled:
        yield ProgressBar(None)
        return
    with needs("train"):
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TaskProgressColumn,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

    share = TaskProgressColumn() if counted is None else MofNCompleteColumn()
    columns = (
        TextColumn(title),
        BarColumn(),
        share,
        *(() if counted is None else (TextColumn(counted),)),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[text]}"),
    )
    console = Console(stderr=True, soft_wrap=True)
    with Progress(*columns, console=console, transient=transient) as bar:
        bar.add_task(title, total=total, text=text)
        yield ProgressBar(bar)
