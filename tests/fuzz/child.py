"""A process that fuzzes one target: what it has done is in its state file at any moment, so that it
may die of an input."""

from __future__ import annotations

import contextlib
import faulthandler
import json
import logging
import os
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.fuzz.attempt import FAILURES, Outcome, attempt, limit_memory
from tests.fuzz.targets import TARGETS, Target, generator

HANG = 60.0
"""Seconds after which a process that waits, and so takes no processor time, is ended with a trace
of where."""

STDERR = 2
"""Where traces go, which `quiet` silences for Python alone."""


def fuzz(target: Target, name: str, order: dict[str, Any], state: Path) -> None:
    """Inputs from `order["first"]` on, until the time or the number of inputs is over.

    Args:
        target: of this name.
        order: `first`, the number of the first input; `inputs`, how many at most; `seconds`, how
            long.
        state: written before every input (its number, as `running`) and in the end (`running` is
            null).
    """
    counts: Counter[str] = Counter()
    end = time.monotonic() + order["seconds"]
    number = order["first"]
    with state.open("wb", buffering=0) as file:
        while number < order["first"] + order["inputs"] and time.monotonic() < end:
            _note(file, number, counts)
            faulthandler.dump_traceback_later(HANG, exit=True, file=STDERR)
            given = target.make(generator(name, number))
            outcome = attempt(target.feed, given)
            faulthandler.cancel_dump_traceback_later()
            counts[outcome.kind] += 1
            if outcome.kind in FAILURES:
                keep(state.parent, name, number, given, outcome)
            number += 1
        _note(file, None, counts)


def keep(folder: Path, name: str, number: int, given: Any, outcome: Outcome) -> Path:
    """Write a failing input, whole, with what became of it."""
    path = folder / f"{name}-{number}.json"
    record = {
        "target": name,
        "number": number,
        "kind": outcome.kind,
        "text": outcome.text,
        "input": given,
    }
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return path


def _note(file: Any, running: int | None, counts: Counter[str]) -> None:
    text = json.dumps({"running": running, "counts": counts})
    file.seek(0)
    file.write(text.ljust(256).encode())


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """What libraries print of every input is no news."""
    from diffusers.utils import logging as of_diffusers

    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    of_diffusers.disable_progress_bar()
    try:
        with (
            warnings.catch_warnings(),
            open(os.devnull, "w", encoding="utf-8") as nowhere,
            contextlib.redirect_stdout(nowhere),
            contextlib.redirect_stderr(nowhere),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
        of_diffusers.enable_progress_bar()


def main() -> None:
    order = json.loads(sys.argv[1])
    name, state = order["target"], Path(order["state"])
    faulthandler.enable(STDERR)
    with tempfile.TemporaryDirectory() as folder, quiet():
        target = TARGETS[name](Path(folder))
        limit_memory()
        try:
            fuzz(target, name, order, state)
        finally:
            os.chdir(state.parent)  # a target may have gone into the folder that ends here


if __name__ == "__main__":
    main()
