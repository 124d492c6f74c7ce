"""How long tasks will take, by the runs that there are: to fit them into the time of a GPU."""

from __future__ import annotations

from pathlib import Path

from benchmarks.quality.report import read_results
from benchmarks.quality.sizes import name_of
from benchmarks.quality.summary import DEFAULT
from benchmarks.quality.tasks import Result, Task, identity, is_done

START_SECONDS = 25.0
"""Of a run before its first step, where its blocks are compiled for the first time, and for its
validation."""


def predicted_seconds(task: Task, results: list[Result]) -> float | None:
    """Seconds of one training run: its steps at the least time of a step that the variant took at
    this size, else the default; None where neither ran.

    Args:
        task: whose run it is.
        results: of training.
    """
    run = task.run
    for name in (run.name, DEFAULT):
        known = [
            one["step_ms"]
            for one in results
            if (one["variant"], identity(one)[3]) == (name, name_of(run.size))
        ]
        if known:
            return START_SECONDS + run.steps * min(known) / 1e3
    return None


def listed(tasks: list[Task], folders: list[Path]) -> str:
    """A line for each task that has no result, with the seconds of its run, and their sum."""
    results = [one for folder in folders for one in read_results(folder)]
    lines, total = [], 0.0
    for task in tasks:
        if is_done(task, folders):
            continue
        seconds = predicted_seconds(task, results) if task.do == "train" else None
        told = "?" if seconds is None else f"{seconds:.0f} s"
        total += seconds or 0.0
        name = task.run.stem if task.do == "train" else f"{task.do} of {task.run.stem}"
        lines.append(f"{told:>8}  {total:>8.0f} s  {name}")
    return "\n".join(["    it      all so far  task", *lines])
