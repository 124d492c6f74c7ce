"""Whole attention layers with projections, forward and with backward: the default, its windows
alone, thirds, the source's method and dense attention; the operation in them; and the same rows of
an earlier commit, in turn.

    PYTHONPATH=src:. python benchmarks/layers.py [--beside FOLDER --beside-commit COMMIT]

FOLDER holds the `freqformer` of the earlier commit. Each version runs in a process of its own, and
rounds go through all rows of both, so that clocks and heat fall on both; ratios are medians over
rounds. A row's result is compared between versions before it is timed. Writes layers.json after
every size; `python benchmarks/layers_table.py FILE` prints its table. `--quick` is a try on the CPU
in Triton's interpreter.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import torch

import record

HERE = Path(__file__).parent
ROWS = (
    "layer default",
    "layer windows",
    "layer thirds",
    "layer paper",
    "operation default",
    "operation windows",
    "operation thirds",
    "layer dense",
    "operation dense",
)
COUNTED = ("layer default", "layer timestep", "layer frozen", "layer fixed gates", "layer windows")
"""Rows whose launches are counted, at the first size."""
SIZES: list[dict[str, Any]] = [
    {"grid": [16, 64, 64], "heads": 8, "head_dim": 128},
    {"grid": [30, 48, 80], "heads": 24, "head_dim": 128},
    {"grid": [64, 64, 64], "heads": 8, "head_dim": 128},
    {"grid": [256, 64, 64], "heads": 8, "head_dim": 128},
]
QUICK_SIZES: list[dict[str, Any]] = [{"grid": [2, 3, 4], "heads": 3, "head_dim": 16}]
PASSES = {"forward": False, "forward and backward": True}
MOST_ROUNDS, LEAST_ROUNDS = 15, 3
SHARE = 0.12
"""Of the time left that the rounds of one pass of one size take, where LEAST_ROUNDS take less."""
BATCH_MS = 60.0
"""Time that a row's calls of one round take, about, at least one call."""
LIMIT_SECONDS = 10.0
"""Dense attention whose one pass would take longer isn't measured."""
SLOW_SECONDS = 2.0
"""Dense attention that takes longer is timed once."""
LARGEST_DIFFERENCE = 0.02
"""Relative, between the results of two versions, above which a row isn't timed."""


class Process:
    """One version of the code in a process of its own."""

    def __init__(self, source: str, quick: bool) -> None:
        path = os.pathsep.join(filter(None, [source, os.environ.get("PYTHONPATH")]))
        environment = os.environ | {"PYTHONPATH": path}
        if quick:
            environment |= {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
        self.process = subprocess.Popen(
            [sys.executable, str(HERE / "layer_worker.py"), source],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def send(self, do: str, **told: Any) -> None:
        """Tell it what to do next."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"do": do, **told}) + "\n")
        self.process.stdin.flush()

    def answer(self) -> dict[str, Any]:
        """What it found; SystemExit where it has ended."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"the process ended with {self.process.wait()}; its error is above")
        return json.loads(line)

    def ask(self, do: str, **told: Any) -> dict[str, Any]:
        """Send, and wait for the answer."""
        self.send(do, **told)
        return self.answer()

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()


@dataclass
class Deadline:
    """The time that the whole run may take."""

    end: float

    @property
    def left(self) -> float:
        """Seconds."""
        return self.end - time.monotonic()


@dataclass
class Bench:
    """Both versions and what is found."""

    versions: dict[str, Process]
    rows: list[str]
    deadline: Deadline
    results: dict[str, Any]
    most_rounds: int
    dense_rate: dict[str, float] = field(default_factory=dict)
    """Seconds of a pass by heads * tokens^2, of the last size measured."""
    made: set[str] = field(default_factory=set)
    """Rows that the processes hold."""

    def skip(self, size: str, row: str, why: str) -> None:
        """Say that a row isn't measured."""
        self.results["skipped"].append({"size": size, "row": row, "why": why})
        print(f"{size}: {row} skipped: {why}", flush=True)

    def size(self, size: dict[str, Any]) -> None:
        """Measure one size."""
        tokens = math.prod(size["grid"])
        title = f"{tokens:,} x {size['heads']}"
        print(f"{title}: {self.deadline.left:.0f} s left", flush=True)
        found: dict[str, Any] = {**size, "tokens": tokens}
        work = size["heads"] * tokens**2
        for name, backward in PASSES.items():
            checked = self._prepare(size, title, name, work)
            seconds = SHARE * self.deadline.left
            found[name] = self._rounds(checked, backward, seconds)
            for row, values in found[name].items():
                if "dense" in row:
                    self.dense_rate[f"{row} {name}"] = values["ms"] / 1e3 / work
                print(f"{title} {name}: {row} {_told(values)}", flush=True)
        self.results["sizes"][title] = found
        self._drop()

    def _prepare(
        self, size: dict[str, Any], title: str, name: str, work: int
    ) -> dict[str, dict[str, dict[str, Any]]]:
        """Make and check every row: by row and version, what its check found."""
        ready: dict[str, dict[str, dict[str, Any]]] = {}
        for row in self.rows:
            place = f"{row}, {name}"
            if self.deadline.left < 0:
                self.skip(title, place, "the run's time is over")
                continue
            estimate = self.dense_rate.get(f"{row} {name}", 0.0) * work
            if estimate > LIMIT_SECONDS:
                why = f"one pass would take {estimate:.0f} s, more than {LIMIT_SECONDS:g}"
                self.skip(title, place, why)
                continue
            checks = self._check(size, row, PASSES[name])
            failed = [check["failed"] for check in checks.values() if "failed" in check]
            if failed:
                self.skip(title, place, failed[0])
                continue
            apart = _difference(checks)
            self.results["differences"].setdefault(title, {})[place] = apart
            if apart > LARGEST_DIFFERENCE:
                self.skip(title, place, f"the versions' results differ by {apart:.3f}")
                continue
            ready[row] = checks
        return ready

    def _check(self, size: dict[str, Any], row: str, backward: bool) -> dict[str, dict[str, Any]]:
        """One run by every version that has the row, at the same time: kernels are compiled."""
        kind, name = row.split(" ", 1)
        asked = {version: p for version, p in self.versions.items() if _has(version, row)}
        for process in asked.values():
            if row not in self.made:
                process.send("make", **size, row=name, kind=kind)
            process.send("check", name=row, backward=backward)
        answers: dict[str, dict[str, Any]] = {}
        for version, process in asked.items():
            if row not in self.made:
                made = process.answer()
                self.results["configs"].setdefault(version, {})[name] = made["config"]
                self.results["impl"].setdefault(version, {})[row] = made["impl"]
            answers[version] = process.answer()
        self.made.add(row)
        return answers

    def _drop(self) -> None:
        self.made.clear()
        for process in self.versions.values():
            process.ask("drop")

    def _rounds(
        self, checked: dict[str, dict[str, dict[str, Any]]], backward: bool, seconds: float
    ) -> dict[str, dict[str, Any]]:
        """Go through all rows and versions again and again: by row, times and ratios."""
        times: dict[str, dict[str, list[float]]] = {
            row: {version: [] for version in checks} for row, checks in checked.items()
        }
        repeats: dict[tuple[str, str], int] = {}
        start = time.monotonic()
        for round_ in range(self.most_rounds):
            over = time.monotonic() - start > seconds or self.deadline.left < 0
            if round_ >= LEAST_ROUNDS and over:
                break
            for row, versions in times.items():
                slow = max(versions["today"], default=0.0) > SLOW_SECONDS * 1e3
                if "dense" in row and (round_ >= LEAST_ROUNDS or slow):
                    continue
                order = list(versions) if round_ % 2 == 0 else list(versions)[::-1]
                for version in order:
                    count = repeats.get((row, version), 1)
                    asked = {"name": row, "backward": backward, "repeats": count}
                    ms = self.versions[version].ask("measure", **asked)["ms"]
                    versions[version].append(ms)
                    repeats[row, version] = max(1, min(10, int(BATCH_MS / ms)))
        return {row: self._summary(row, times, checked[row]) for row in times}

    def _summary(
        self, row: str, times: dict[str, dict[str, list[float]]], checks: dict[str, dict[str, Any]]
    ) -> dict[str, Any]:
        now = times[row]["today"]
        found: dict[str, Any] = {
            "ms": median(now),
            "rounds": now,
            "peak_bytes": checks["today"]["peak_bytes"],
        }
        kind, _ = row.split(" ", 1)
        windows = times.get(f"{kind} windows", {}).get("today")
        if windows is not None and "dense" not in row:
            found["times_windows"] = _ratio(now, windows)
        before = times[row].get("earlier")
        if before is not None:
            found |= {
                "earlier_ms": median(before),
                "earlier_rounds": before,
                "times_earlier": _ratio(now, before),
                "earlier_peak_bytes": checks["earlier"]["peak_bytes"],
            }
        return found

    def launches(self, size: dict[str, Any]) -> None:
        """Count the launches of a forward of each counted row."""
        for row in COUNTED:
            kind, name = row.split(" ", 1)
            for version, process in self.versions.items():
                process.ask("make", **size, row=name, kind=kind)
                counted = process.ask("launches", name=row)
                self.results["launches"].setdefault(version, {})[row] = counted
                told = counted.get("beside_projections", counted.get("failed"))
                print(f"launches, {version}: {row}: {told}", flush=True)
        self._drop()


def _difference(checks: dict[str, dict[str, Any]]) -> float:
    """Relative difference of the versions' results; 0 where there is one version."""
    first, *others = (check["sample"] for check in checks.values())
    return max((math.dist(first, other) / math.hypot(*first) for other in others), default=0.0)


def _has(version: str, row: str) -> bool:
    """Dense attention is torch's, whichever version calls it."""
    return version == "today" or "dense" not in row


def _ratio(above: list[float], below: list[float]) -> float:
    """Median over rounds; of rows that ran fewer rounds, over those that both ran."""
    return median(x / y for x, y in zip(above, below, strict=False))


def _told(values: dict[str, Any]) -> str:
    told = f"{values['ms']:.2f} ms in {len(values['rounds'])} rounds"
    for name in ("times_windows", "times_earlier"):
        if name in values:
            told += f", {values[name]:.3f} {name.replace('_', ' ')}"
    return told


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--beside", help="folder with the package of an earlier commit")
    parser.add_argument("--beside-commit", help="which commit that is")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=ROWS, help="all by default")
    parser.add_argument("--seconds", type=float, default=270, help="for the whole run; 270")
    parser.add_argument("--quick", action="store_true", help="one tiny size, on the CPU")
    parser.add_argument("--output", type=Path, default=record.RESULTS, help="for layers.json")
    parser.add_argument("--commit", help="of this code, where the machine has no git")
    arguments = parser.parse_args()
    sources = {"today": str(HERE.parent / "src")}
    if arguments.beside:
        sources["earlier"] = arguments.beside
    sizes = QUICK_SIZES if arguments.quick else SIZES
    if not arguments.quick and not torch.cuda.is_available():
        raise SystemExit("no CUDA GPU: this benchmark measures one; --quick is a try without")
    start = time.monotonic()
    with ExitStack() as stack:
        versions = {
            version: stack.enter_context(Process(source, arguments.quick))
            for version, source in sources.items()
        }
        results: dict[str, Any] = {
            "earlier_commit": arguments.beside_commit,
            "dtype": "float32" if arguments.quick else "bfloat16",
            "configs": {},
            "impl": {},
            "launches": {},
            "sizes": {},
            "differences": {},
            "skipped": [],
        }
        deadline = Deadline(start + arguments.seconds)
        rounds = 1 if arguments.quick else MOST_ROUNDS
        bench = Bench(versions, list(arguments.rows), deadline, results, rounds)
        for number, size in enumerate(sizes):
            bench.size(size)
            if number == 0 and not arguments.quick:
                bench.launches(size)
            results["seconds"] = time.monotonic() - start
            path = record.save("layers", results, arguments.output, arguments.commit)
            print(f"wrote {path} after {results['seconds']:.0f} s", flush=True)


if __name__ == "__main__":
    main()
