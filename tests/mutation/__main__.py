"""Mutation check: every fault of `faults.py` and `package_faults.py` in a copy of the package, and
which test notices.
`make mutations` runs it.

    python -m tests.mutation [--again] [--only WORD] [--commit NAME] [--output FILE]

The tests are those of `make test`, in Triton's interpreter, and stop at the first failure; the test
that failed must pass on an unchanged copy. Results are written after every fault, with the commit
that they are of; without --again a run leaves out those that were caught before, in a file that has
not changed since. Faults in the Gluon launches need a Hopper GPU: `tests.mutation.gluon` runs them,
and this says what it found.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.mutation import gluon
from tests.mutation.faults import KERNEL_FAULTS, ROOT, Fault, digest, faulty
from tests.mutation.package_faults import PACKAGE_FAULTS

FAULTS: tuple[Fault, ...] = (*KERNEL_FAULTS, *PACKAGE_FAULTS)

RESULTS = Path(__file__).parent / "results.json"
TIMEOUT = 1800
"""Seconds after which a run of tests is stopped."""


def run_tests(package: Path, tests: str) -> subprocess.CompletedProcess[str]:
    """The tests against the package in a folder, up to the first failure."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(package),
        "TRITON_INTERPRET": "1",
        "OMP_NUM_THREADS": "1",
    }
    options = ["-x", "-v", "--tb=no", "-p", "no:cacheprovider"]
    return subprocess.run(
        [sys.executable, "-m", "pytest", *options, tests],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )


def check(fault: Fault, clean: Path) -> dict[str, Any]:
    """What the tests say of a fault; `clean` is the unchanged package. SystemExit where they don't
    run as they should."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        package = Path(folder)
        shutil.copytree(ROOT / "src", package, dirs_exist_ok=True)
        (package / Path(fault.path).relative_to("src")).write_text(faulty(fault), encoding="utf-8")
        done = run_tests(package, fault.tests)
    failed = re.search(r"^(?:FAILED|ERROR) (\S+?::.+?)(?: - .*)?$", done.stdout, re.MULTILINE)
    if done.returncode < 0:
        # A read out of range may end the process: the test that ran then has noticed it.
        *_, failed = re.finditer(
            r"^(\S+?::.+?)(?: (?:PASSED|SKIPPED).*)?$", done.stdout, re.MULTILINE
        )
    elif done.returncode > 1 or (done.returncode == 1) != (failed is not None):
        raise SystemExit(
            f"fault {fault.name!r}: pytest ended with "
            f"{done.returncode}\n{done.stdout[-3000:]}{done.stderr[-3000:]}"
        )
    test = None
    if failed is not None:
        test = failed.group(1).strip()
        without = run_tests(clean, test)
        if without.returncode:
            raise SystemExit(f"{test} fails without a fault too\n{without.stdout[-3000:]}")
    return {
        "name": fault.name,
        "file": fault.path,
        "old": fault.old,
        "new": fault.new,
        "of": digest(fault),
        "caught_by": test,
        "seconds": round(time.monotonic() - began, 1),
    }


def check_import(package: Path) -> None:
    """SystemExit unless tests import the copy."""
    command = [sys.executable, "-c", "import freqformer; print(freqformer.__file__)"]
    environment = {**os.environ, "PYTHONPATH": str(package)}
    found = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=True
    ).stdout
    if not found.startswith(str(package)):
        raise SystemExit(
            f"tests import {found.strip()} and not the copy in {package}: remove what comes before "
            "PYTHONPATH"
        )


def read(path: Path) -> dict[Fault, dict[str, Any]]:
    """Faults of the list that were caught before."""
    if not path.is_file():
        return {}
    before = json.loads(path.read_text(encoding="utf-8"))["faults"]
    caught = {
        (found["name"], found["old"], found["new"]): found for found in before if found["caught_by"]
    }
    keys = {fault: (fault.name, fault.old, fault.new) for fault in FAULTS}
    return {fault: caught[key] for fault, key in keys.items() if key in caught}


def to_run(done: dict[Fault, dict[str, Any]], again: bool, only: str) -> list[Fault]:
    """Faults without a result of today's file; of those whose file or name holds a word.

    Raises:
        ValueError: where none holds it.
    """
    meant = [fault for fault in FAULTS if only in f"{fault.path} {fault.name}"]
    if not meant:
        raise ValueError(f"only is {only!r}; a part of a fault's file or name is allowed")
    return [
        fault
        for fault in meant
        if again or fault not in done or done[fault].get("of") != digest(fault)
    ]


def write(path: Path, done: dict[Fault, dict[str, Any]]) -> int:
    """Results so far, in the order of the list; returns how many faults were caught."""
    results = [done[fault] for fault in FAULTS if fault in done]
    caught = sum(found["caught_by"] is not None for found in results)
    partial = path.with_suffix(".part")
    text = {"command": "make mutations", "caught": caught, "faults": results}
    partial.write_text(json.dumps(text, indent=1) + "\n", encoding="utf-8")
    partial.replace(path)
    return caught


def of_gluon() -> str:
    """What is known of the faults that this doesn't run."""
    told = (
        f"{len(gluon.FAULTS)} faults in the Gluon launches need a Hopper GPU and were not run here"
    )
    known = gluon.read(gluon.RESULTS)
    commits = ", ".join(sorted({found["commit"] for found in known.values()}))
    last = f"last time {len(known)} were caught, at {commits}" if known else "none has run anywhere"
    return f"{told}; {last}: {gluon.COMMAND}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--output", type=Path, default=RESULTS, help="file of the results")
    parser.add_argument("--commit", help="of this code, where there is no git")
    parser.add_argument(
        "--again", action="store_true", help="run faults that were caught before too"
    )
    parser.add_argument("--only", default="", help="run faults whose file or name holds this")
    arguments = parser.parse_args()
    git = ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"]
    commit = (
        arguments.commit
        or subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    )
    for fault in FAULTS:
        faulty(fault)
    done = read(arguments.output)
    faults = to_run(done, arguments.again, arguments.only)
    with tempfile.TemporaryDirectory() as folder:
        clean = Path(folder)
        shutil.copytree(ROOT / "src", clean, dirs_exist_ok=True)
        check_import(clean)
        for number, fault in enumerate(faults, 1):
            done[fault] = {**check(fault, clean), "commit": commit}
            write(arguments.output, done)
            found = done[fault]["caught_by"] or "NOT CAUGHT"
            print(f"{number}/{len(faults)} {fault.name}: {found}", flush=True)
    caught = write(arguments.output, done)
    print(f"{caught} of {len(FAULTS)} faults caught")
    print(of_gluon())
    if caught < len(FAULTS):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
