"""What Ctrl-C (SIGINT) and SIGTERM do: end at once, raise, or wait for the step that is being done.

Python raises KeyboardInterrupt wherever the main thread happens to be, and SIGTERM ends a process
without a word. Here either signal ends a command in the way that its moment allows, and a second
one never waits:

- `end_at_once` while a command starts and ends, when nothing is being written;
- `raising` around the body of a command: context managers tidy up;
- `between_steps` around a loop: the step is finished and kept first.

Standard library only: it is at work before torch is imported.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)
STDERR = 2
"""File descriptor. A handler may run in the middle of a print to sys.stderr, which can't be entered
twice."""
SHOW_CURSOR = b"\x1b[?25h"
"""A progress bar hides the cursor, and a process that ends at once does not get to show it
again."""


class Interrupted(KeyboardInterrupt):
    """A signal asked to stop.

    Args:
        number: of the signal.
        message: one line on what was kept and how to go on.
    """

    def __init__(self, number: int, message: str = "") -> None:
        super().__init__(message or f"stopped by {signal_name(number)}")
        self.signal = number

    @property
    def exit_status(self) -> int:
        """The status that shells give to a command that this signal ended: 130 or 143."""
        return exit_status(self.signal)


class StopRequest:
    """Whether a signal has asked a loop to stop."""

    def __init__(self) -> None:
        self.signal: int | None = None
        """The first signal that came; None so far."""

    @property
    def asked(self) -> bool:
        """Whether the loop should stop after this step."""
        return self.signal is not None

    def interrupted(self, message: str) -> Interrupted:
        """The exception to end with once all is kept; the message follows what stopped the loop."""
        assert self.signal is not None
        return Interrupted(self.signal, f"stopped by {signal_name(self.signal)}{message}")


def signal_name(number: int) -> str:
    """What a user calls it."""
    return "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name


def exit_status(number: int) -> int:
    """As shells count it."""
    return 128 + number


def end_at_once() -> None:
    """From now on a signal ends the process with one line and its exit status, without a traceback.

    Nothing takes it back: a process that ends has nothing to tidy up, either.
    """
    for number in SIGNALS:
        signal.signal(number, _Handler(lambda number, frame: _end(number)))


@contextmanager
def raising() -> Iterator[None]:
    """The first signal raises `Interrupted`, so that what is being written is removed; the second
    ends at once.

    It ends at once, too, where an exception would be lost: during an import, of which some are
    caught and passed over, and in a destructor.
    """
    seen: list[int] = []
    usual = sys.unraisablehook

    def handle(number: int, frame: FrameType | None) -> None:
        if seen or _importing(frame):
            _end(number)
        seen.append(number)
        message = "nothing half-written is left, and the same command begins again"
        raise Interrupted(number, f"stopped by {signal_name(number)}: {message}")

    def lost(unraisable: Any) -> None:
        if isinstance(unraisable.exc_value, Interrupted):
            _end(unraisable.exc_value.signal)
        usual(unraisable)

    with _handling(handle, over_others=True):
        sys.unraisablehook = lost
        try:
            yield
        finally:
            sys.unraisablehook = usual


@contextmanager
def between_steps(doing: str) -> Iterator[StopRequest]:
    """The first signal is a request that the loop looks at after every step; the second raises
    `Interrupted`.

    A handler that the caller has set for a signal stays, and so do all of them outside the main
    thread.

    Args:
        doing: what is finished first, to tell at once: a step may take a minute.
    """
    request = StopRequest()

    def handle(number: int, frame: FrameType | None) -> None:
        if request.asked:
            message = "without waiting, and what was kept before stays"
            raise Interrupted(number, f"stopped by {signal_name(number)} {message}")
        request.signal = number
        os.write(STDERR, f"\n{signal_name(number)}: {doing}; once more to stop now\n".encode())

    with _handling(handle, over_others=False):
        yield request


class _Handler:
    """A handler of this module, which another of this module may take the place of."""

    def __init__(self, handle: Callable[[int, FrameType | None], None]) -> None:
        self._handle = handle

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self._handle(number, frame)


@contextmanager
def _handling(
    handle: Callable[[int, FrameType | None], None], *, over_others: bool
) -> Iterator[None]:
    """Handle both signals until the end of the block.

    Args:
        handle: called with the signal's number and the frame that it interrupted.
        over_others: whether a handler that is neither Python's nor ours is replaced. A command does
            so: shells start background jobs with SIGINT ignored, and whoever sends it still means
            it.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    ours = _Handler(handle)
    before: dict[int, Any] = {}
    try:
        for number in SIGNALS:
            now = signal.getsignal(number)
            if (
                over_others
                or isinstance(now, _Handler)
                or now in (signal.SIG_DFL, signal.default_int_handler)
            ):
                before[number] = now
                signal.signal(number, ours)
        yield
    finally:
        for number, earlier in before.items():
            # None stands for a handler that was not set from Python, which can't be put back.
            signal.signal(number, signal.SIG_DFL if earlier is None else earlier)


def _importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            return True
        frame = frame.f_back
    return False


def _end(number: int) -> None:
    shown = SHOW_CURSOR if os.isatty(STDERR) else b""
    os.write(STDERR, shown + f"stopped by {signal_name(number)}\n".encode())
    os._exit(exit_status(number))
