"""One input given to one piece of the package, within bounds of time and memory, and what became of
it."""

from __future__ import annotations

import contextlib
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

try:
    import resource
except ImportError:  # Windows has neither limits nor alarms
    resource = None

SECONDS = 10.0
"""Processor time that an input may take."""
MEMORY = 2 << 30
"""Bytes that the process may grow by."""
ADDRESSES = 3 << 30
"""Bytes of address space above what the process has, past which the system refuses: threads reserve
some unused."""

ACCEPTED = "accepted"
REFUSED = "refused"
UNTYPED = "untyped"
SLOW = "slow"
LARGE = "large"
FAILURES = (UNTYPED, SLOW, LARGE)


@dataclass(frozen=True)
class Outcome:
    """What became of an input."""

    kind: str
    text: str = ""
    """Of a failure: the traceback, or what was measured. Of a refusal: the error."""


class _TooSlowError(BaseException):
    """Not an Exception, so that no code under test takes it for one of its own."""


def attempt(
    feed: Callable[[Any], None], given: Any, *, seconds: float = SECONDS, memory: int = MEMORY
) -> Outcome:
    """Feed an input.

    Args:
        feed: takes the input; raises ValueError or OSError to refuse it.
        given: the input.
        seconds: of processor time: what else the machine does is not the input's doing.
        memory: bytes.
    """
    before = peak_memory()
    try:
        with _alarm(seconds):
            feed(given)
        outcome = Outcome(ACCEPTED)
    except (ValueError, OSError) as error:
        outcome = Outcome(REFUSED, str(error))
    except _TooSlowError:
        outcome = Outcome(SLOW, traceback.format_exc())
    except MemoryError:
        outcome = Outcome(LARGE, traceback.format_exc())
    except Exception:
        outcome = Outcome(UNTYPED, traceback.format_exc())
    grown = peak_memory() - before
    if grown > memory and outcome.kind not in FAILURES:
        return Outcome(LARGE, f"{outcome.kind}, and the process grew by {grown / 2**20:,.0f} MiB")
    return outcome


def peak_memory() -> int:
    """The most bytes that this process has had in memory; 0 where the system does not say."""
    if resource is None:
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def limit_memory() -> None:
    """Have the system refuse this process much more memory than it has now: Linux alone tells how
    much that is."""
    status = Path("/proc/self/statm")
    if resource is not None and status.is_file():
        pages, *_ = status.read_text().split()
        most = int(pages) * resource.getpagesize() + ADDRESSES
        resource.setrlimit(resource.RLIMIT_AS, (most, most))


@contextlib.contextmanager
def _alarm(seconds: float) -> Iterator[None]:
    """Raise _TooSlowError after so many seconds of processor time."""

    def ring(*_: object) -> None:
        raise _TooSlowError(f"{seconds:g} s of processor time are over")

    before = signal.signal(signal.SIGPROF, ring)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
