"""Doing tasks one after the other until all are done or the time is up.

Processes with the same folders share the tasks: each is done by the one that locks it first.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.quality import state
from benchmarks.quality.building import build
from benchmarks.quality.runs import How
from benchmarks.quality.study import execute, stopped_at, train
from benchmarks.quality.tasks import Result, Task, is_done
from filelock import FileLock, Timeout

from freqformer._files import write_json

Measure = Callable[[Any, Task, How], Result | None]
"""Measures a trained model; None where the time was up, and what there is waits in the folder."""


@dataclass(frozen=True)
class Places:
    """Where results are, and what stands in each."""

    folders: list[Path]
    """The first is for new results; a task that has one in any of them is skipped."""
    machine: dict[str, Any]
    """Card, versions and commit."""
    processes: int = 1
    """How many share the card. A step's time is that of one card shared by so many."""


def work(tasks: list[Task], how: How, places: Places, measures: dict[str, Measure]) -> int:
    """Do the tasks that have no result yet, and write each result as soon as it is done.

    Args:
        tasks: in this order.
        how: on what, for how long, and where what stops is kept.
        places: of results.
        measures: what does a task other than training, by name.

    Returns: the exit status, 1 where a task failed. The others are done all the same.
    """
    failed = 0
    places.folders[0].mkdir(parents=True, exist_ok=True)
    for place, task in enumerate(tasks):
        if is_done(task, places.folders):
            print(f"{_told(task)} is there already", flush=True)
            continue
        if how.over:
            print(f"{_told(task)} waits: the time is up", flush=True)
            break
        try:
            with FileLock(_lock(task, places), timeout=0):
                later = [other for other in tasks[place:] if other.needs_weights]
                _do(task, later, how, places, measures)
        except Timeout:
            print(f"{_told(task)} is being made by another process", flush=True)
        except Exception:  # of a kernel's compiler too: the other tasks don't depend on this one
            traceback.print_exc()
            failed = 1
        _drop_weights(tasks, how, places)
    return failed


def _told(task: Task) -> str:
    return task.run.stem if task.do == "train" else f"{task.do} of {task.run.stem}"


def _lock(task: Task, places: Places) -> Path:
    """One for all tasks of a run, which share its state."""
    return places.folders[0] / f"{task.run.stem}.lock"


def _do(
    task: Task, later: list[Task], how: How, places: Places, measures: dict[str, Measure]
) -> None:
    if is_done(task, places.folders):  # by another process, before the lock was ours
        print(f"{_told(task)} is there already", flush=True)
        return
    if task.do == "train":
        wanted = [other for other in later if other.run == task.run]
        keep = any(not is_done(other, places.folders) for other in wanted)
        result = execute(task.run, how, keep=keep)
    else:
        model = trained_model(task, how)
        result = None if model is None else measures[task.do](model, task, how)
    if result is None:
        print(f"{_told(task)} stopped: the same command goes on with it", flush=True)
        return
    shared = {} if places.processes == 1 else {"processes": places.processes}
    command = task.command + (" --compile" if result.get("compiled") else "")
    machine = places.machine | {"command": command}
    path = task.path(places.folders[0])
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, result | shared | {"machine": machine}, indent=None)
    if task.do == "train":
        _forget_stopped(task, how)
    print(_sentence(task, result), flush=True)


def _sentence(task: Task, result: Result) -> str:
    if task.do != "train":
        return f"{_told(task)} is done"
    loss = sum(result["losses"].values()) / len(result["losses"])
    step, seconds = result["step_ms"], result["seconds"]
    return f"{_told(task)}: loss {loss:.4f}, {step:.1f} ms a step, {seconds:.0f} s"


def trained_model(task: Task, how: How) -> Any:
    """The trained model of a task's run, from kept weights or by training it; None where the time
    was up before."""
    run, folder = task.run, how.folder
    path = None if folder is None else folder / state.KEPT / f"{run.stem}.safetensors"
    if path is not None and path.exists():
        model: Any = build(run.variant, run.size, run.seed)
        model.to(how.device).eval()
        state.load_weights(model, state.read(path, run.record).tensors)
        return model
    trained = train(run, how)
    if trained is not None and path is not None:
        state.write(path, state.weights_of(trained.model), run.record)
        _forget_stopped(task, how)
    return None if trained is None else trained.model


def _forget_stopped(task: Task, how: How) -> None:
    if how.folder is not None:
        stopped_at(task.run, how.folder).unlink(missing_ok=True)


def _drop_weights(tasks: list[Task], how: How, places: Places) -> None:
    """Remove weights of models that no task measures any more."""
    if how.folder is None:
        return
    waiting = {
        task.run.stem for task in tasks if task.needs_weights and not is_done(task, places.folders)
    }
    for path in (how.folder / state.KEPT).glob("*.safetensors"):
        if path.stem not in waiting:
            path.unlink(missing_ok=True)
