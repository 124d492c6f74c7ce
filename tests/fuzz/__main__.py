"""Fuzzing: damaged files, records and command lines must end in a result or in a typed error. `make
fuzz` runs it.

    python -m tests.fuzz [--minutes N] [--seed N] [--targets NAME ...] [--inputs N] [--failures
    FOLDER] [--output FILE]

Typed errors are ValueError, its subclasses and OSError, and of a command line a status of 0 or 2
without a traceback. An input may take 10 s of processor time and 2 GiB of memory. Every target runs
in a process of its own. Failing inputs are kept; what is mended goes into `tests/fuzz/corpus.json`,
which a test feeds again.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from tests.fuzz.attempt import ACCEPTED, FAILURES, REFUSED, UNTYPED, Outcome
from tests.fuzz.child import HANG, keep
from tests.fuzz.targets import TARGETS

ROOT = Path(__file__).parents[2]
NUMBERS_PER_SEED = 10**9
"""Inputs of one seed, before those of the next begin."""
PREPARATION = 300.0
"""Seconds in which a target must be ready."""
COLUMNS = (REFUSED, ACCEPTED, *FAILURES)


def fuzz_target(name: str, order: dict[str, Any], failures: Path) -> Counter[str]:
    """What became of a target's inputs; a process that dies of one is followed by another for the
    rest."""
    totals: Counter[str] = Counter()
    end = time.monotonic() + order["seconds"]
    first, last = order["first"], order["first"] + order["inputs"]
    while first < last and (first == order["first"] or time.monotonic() < end):
        state = failures / f"{name}.state"
        state.unlink(missing_ok=True)
        left = {
            "target": name,
            "first": first,
            "inputs": last - first,
            "seconds": end - time.monotonic(),
        }
        ended, said = _run({**left, "state": str(state)})
        if not state.is_file():
            raise SystemExit(
                f"target {name} could not be prepared: the process ended with {ended}\n{said}"
            )
        noted = json.loads(state.read_text(encoding="utf-8"))
        state.unlink()
        totals.update(noted["counts"])
        if noted["running"] is None:
            break
        # The input can be made again from its number, in the environment of its target.
        died = Outcome(UNTYPED, f"the process ended with {ended}\n{said}")
        keep(failures, name, noted["running"], None, died)
        totals[UNTYPED] += 1
        first = noted["running"] + 1
    return totals


def _run(order: dict[str, Any]) -> tuple[int | str, str]:
    """How a process with this order ended, and the last that it said."""
    command = [sys.executable, "-m", "tests.fuzz.child", json.dumps(order)]
    environment = {
        "OMP_NUM_THREADS": "1",
        "OMP_WAIT_POLICY": "PASSIVE",
        "TRITON_INTERPRET": "1",
        **os.environ,
    }
    with tempfile.TemporaryFile() as said:
        limit = PREPARATION + max(order["seconds"], 0.0) + 2 * HANG
        try:
            ended: int | str = subprocess.run(
                command, cwd=ROOT, env=environment, stdout=said, stderr=said, timeout=limit
            ).returncode
        except subprocess.TimeoutExpired:
            ended = f"no end in {limit:.0f} s"
        said.seek(0)
        return ended, said.read()[-5000:].decode("utf-8", "replace")


def table(results: dict[str, Counter[str]]) -> str:
    """What became of the inputs, a line per target."""
    lines = [f"{'target':<18}{'inputs':>10}" + "".join(f"{column:>10}" for column in COLUMNS)]
    for name, counts in {**results, "all": sum(results.values(), Counter[str]())}.items():
        lines.append(
            f"{name:<18}{counts.total():>10,}"
            + "".join(f"{counts[column]:>10,}" for column in COLUMNS)
        )
    return "\n".join(lines)


def _commit() -> str:
    """What is fuzzed."""
    git = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
    return subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()


def write(
    path: Path, arguments: argparse.Namespace, commit: str, results: dict[str, Counter[str]]
) -> None:
    """The results as JSON, with what they are of."""
    command = f"python -m tests.fuzz --minutes {arguments.minutes:g} --seed {arguments.seed}"
    targets = {
        name: {"inputs": counts.total(), **{c: counts[c] for c in COLUMNS}}
        for name, counts in results.items()
    }
    record = {"command": command, "commit": commit, "targets": targets}
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def parse(given: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.fuzz", description=__doc__.splitlines()[0] if __doc__ else None
    )
    parser.add_argument(
        "--minutes",
        type=float,
        default=5.0,
        help="of all targets together, without their preparation",
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="other inputs with each, the same ones with the same"
    )
    parser.add_argument(
        "--targets", nargs="+", choices=list(TARGETS), default=list(TARGETS), metavar="NAME"
    )
    parser.add_argument(
        "--inputs", type=int, default=NUMBERS_PER_SEED, help="of each target at most"
    )
    parser.add_argument(
        "--failures", type=Path, help="folder of failing inputs; a new one where left out"
    )
    parser.add_argument("--output", type=Path, help="JSON file of the counts")
    return parser.parse_args(given)


def main(given: list[str]) -> int:
    """The exit status: 1 where an input failed."""
    arguments = parse(given)
    failures = Path(arguments.failures or tempfile.mkdtemp(prefix="freqformer-fuzz-")).absolute()
    failures.mkdir(parents=True, exist_ok=True)
    order = {
        "first": arguments.seed * NUMBERS_PER_SEED,
        "inputs": min(arguments.inputs, NUMBERS_PER_SEED),
        "seconds": 60 * arguments.minutes / len(arguments.targets),
    }
    commit = (
        _commit() if arguments.output is not None else ""
    )  # now: it may be another one when all is done
    results: dict[str, Counter[str]] = {}
    for name in arguments.targets:
        print(f"{name} …", file=sys.stderr, flush=True)
        results[name] = fuzz_target(name, order, failures)
    print(table(results))
    if arguments.output is not None:
        write(arguments.output, arguments, commit, results)
    if any(counts[kind] for counts in results.values() for kind in FAILURES):
        print(f"failing inputs are in {failures}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
