"""The quality study: trains attention variants alike and writes one result per variant, seed and
number of steps.

    PYTHONPATH=src:. python -m benchmarks.quality --variants window,router --seeds 0,1 --steps 700
    --minutes 9 PYTHONPATH=src:. python -m benchmarks.quality --report

Runs that have a result, in the output folder or among the committed ones, are skipped: the same
command goes on where it stopped. On a machine of several GPUs start it once for each
(`CUDA_VISIBLE_DEVICES=1 python -m ...`): processes with one output folder share the runs.
`--report` rebuilds the tables and figures of docs/quality.md from the committed results and needs
no GPU.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from benchmarks.quality.report import RESULTS, read_results, tokens_of, write_report
from benchmarks.quality.study import Run, execute
from benchmarks.quality.variants import SIZES, VARIANTS, Size, chosen
from filelock import FileLock, Timeout

from benchmarks import record

Execute = Callable[[Run], dict[str, Any]]


def main(arguments: list[str] | None = None, size: Size | None = None) -> int:
    """Run the command line; returns the exit status, 1 where a run failed."""
    given = _parser().parse_args(arguments)
    if given.report:
        print(f"wrote {write_report()}")
        return 0
    device = torch.device(given.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise SystemExit(
            "device is 'cuda' and there is none; pass --device cpu, which takes hours, or use a GPU"
        )
    runs = [
        Run(name, chosen(name), seed, given.steps, size or SIZES[given.tokens])
        for seed in map(int, given.seeds.split(","))
        for name in given.variants.split(",")
    ]
    graph = device.type == "cuda" and not given.no_graph
    machine = record.machine(given.commit)
    folders = list(dict.fromkeys([given.output, RESULTS]))
    return study(
        runs,
        partial(execute, device=device, graph=graph, compiled=given.compile),
        folders,
        machine,
        given.minutes,
    )


def study(
    runs: list[Run],
    execute: Execute,
    folders: list[Path],
    machine: dict[str, Any],
    minutes: float | None,
) -> int:
    """Do the runs that have no result yet, and write each as soon as it is done.

    Args:
        runs: in this order.
        execute: does one and returns its result.
        folders: the first is for the results; a run that has one in any of them is skipped.
        machine: goes into every result, with the command that repeats it.
        minutes: no run begins that is predicted to end later than this; None for no limit.

    Returns: the exit status, 1 where a run failed. The others are done all the same.
    """
    folders[0].mkdir(parents=True, exist_ok=True)
    began, failed = time.perf_counter(), 0
    for run in runs:
        name = _file_name(run)
        try:
            with FileLock(folders[0] / f"{name}.lock", timeout=0):
                reason = _reason_to_skip(
                    run, folders, None if minutes is None else began + 60 * minutes
                )
                if reason:
                    print(reason, flush=True)
                    continue
                result = execute(run)
                command = _command(run, compiled=result.get("compiled", False))
                (folders[0] / name).write_text(
                    json.dumps(result | {"machine": machine | {"command": command}}) + "\n"
                )
        except Timeout:
            print(f"{name} is being made by another process", flush=True)
            continue
        except Exception:  # of a kernel's compiler too: the other runs don't depend on this one
            traceback.print_exc()
            failed = 1
            continue
        mean = sum(result["losses"].values()) / len(result["losses"])
        print(
            f"{name}: loss {mean:.4f}, {result['step_ms']:.1f} ms a step, {result['seconds']:.0f} "
            "s",
            flush=True,
        )
    return failed


def _reason_to_skip(run: Run, folders: list[Path], end: float | None) -> str | None:
    if any((folder / _file_name(run)).exists() for folder in folders):
        return f"{_file_name(run)} is there already"
    predicted = predicted_seconds(
        run, [result for folder in folders for result in read_results(folder)]
    )
    if end is not None and time.perf_counter() + predicted > end:
        return (
            f"{run.name}, seed {run.seed}, would take {predicted:.0f} s, more than the limit leaves"
        )
    return None


def _is_longer(run: Run) -> bool:
    return run.size == SIZES["64k"]


def _file_name(run: Run) -> str:
    return f"{run.name}{'-64k' if _is_longer(run) else ''}-{run.steps}-{run.seed}.json"


def _command(run: Run, *, compiled: bool) -> str:
    command = (
        f"PYTHONPATH=src:. python -m benchmarks.quality --variants {run.name} --seeds "
        f"{run.seed} --steps {run.steps}"
    )
    return (
        command + (" --tokens 64k" if _is_longer(run) else "") + (" --compile" if compiled else "")
    )


def predicted_seconds(run: Run, results: list[dict[str, Any]]) -> float:
    """Seconds that a run will take, by the earlier ones: of its variant and steps, else its
    variant, else the slowest.

    0 where there is none.
    """
    alike = [result for result in results if tokens_of(result) == run.size.grid.num_tokens]
    own = [result for result in alike if result["variant"] == run.name]
    same = [result for result in own if result["steps"] == run.steps]
    known = same or own or alike
    seconds = [
        result["seconds"] + (run.steps - result["steps"]) * result["step_ms"] / 1e3
        for result in known
    ]
    return max(seconds, default=0.0)


def _parser() -> argparse.ArgumentParser:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.quality",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--variants", default=",".join(VARIANTS), help="names, with commas; all by default"
    )
    parser.add_argument("--tokens", choices=tuple(SIZES), default="16k", help="of a clip")
    parser.add_argument("--seeds", default="0", help="numbers, with commas")
    parser.add_argument("--steps", type=int, default=700)
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the results")
    parser.add_argument("--minutes", type=float, help="begin no run that would end later")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument(
        "--no-graph",
        action="store_true",
        help="launch every step anew rather than as one CUDA graph",
    )
    parser.add_argument(
        "--compile", action="store_true", help="compile the model's blocks for training"
    )
    parser.add_argument("--commit", help="of this code, where the machine has no git")
    parser.add_argument(
        "--report", action="store_true", help="rebuild docs/quality.md from the results"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
