"""Mutation check of the Gluon launches, on a Hopper GPU: every fault of `gluon_faults.py` and
`gluon_backward_faults.py` in a copy of the package, and which check of `gluon_checks.py` notices.

    python -m tests.mutation.gluon [--commit NAME] [--output FILE] [--seconds 200]

Several faults run at once, each in a process of its own: one whose kernel never ends, or reads
where it may not, takes no other with it. The checks must pass on the unchanged package first.
Results are written after every fault, and printed as JSON at the end; what had no time left is
named there, and without --again a later run takes it up. --compile needs no GPU and says of every
fault whether it compiles: one that doesn't would be caught by any test.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import torch
from tests.mutation.faults import ROOT, faulty
from tests.mutation.gluon_backward_faults import BACKWARD_FAULTS
from tests.mutation.gluon_faults import FORWARD_FAULTS, GluonFault

FAULTS: tuple[GluonFault, ...] = (*FORWARD_FAULTS, *BACKWARD_FAULTS)
RESULTS = Path(__file__).parent / "gluon_results.json"
COMMAND = "python -m tests.mutation.gluon"
PATIENCE = 70
"""Seconds after which a process counts as one whose kernel never ends; it waits for less itself."""
COMPILING = 900
"""Seconds that compiling alone may take, on a slow machine."""


def run_checks(
    package: Path, checks: tuple[str, ...], cache: Path, *, compiles: bool
) -> dict[str, Any]:
    """How checks of the package in a folder end: `ended` is passed, failed, hung, crashed or
    broken."""
    environment = {
        **{name: x for name, x in os.environ.items() if name != "TRITON_INTERPRET"},
        "PYTHONPATH": f"{package}{os.pathsep}{ROOT}",
        "TRITON_CACHE_DIR": str(cache),
        "OMP_NUM_THREADS": "1",
    }
    option = ["--compile"] if compiles else []
    command = [sys.executable, "-m", "tests.support.gluon_checks", *option, *checks]
    try:
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            timeout=COMPILING if compiles else PATIENCE,
        )
    except subprocess.TimeoutExpired:
        return {"ended": "hung", "how": f"no end after {PATIENCE} s"}
    lines = done.stdout.splitlines()
    if done.returncode in (0, 1, 2) and lines and lines[-1].startswith("{"):
        return json.loads(lines[-1])
    if done.returncode < 0:
        return {"ended": "crashed", "how": f"signal {-done.returncode}"}
    return {"ended": "broken", "how": (done.stdout + done.stderr)[-600:]}


def check(fault: GluonFault, folder: Path, *, compiles: bool) -> dict[str, Any]:
    """What the checks say of a fault."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(dir=folder) as copy:
        package = Path(copy)
        shutil.copytree(ROOT / "src", package, dirs_exist_ok=True)
        (package / Path(fault.path).relative_to("src")).write_text(faulty(fault), encoding="utf-8")
        found = run_checks(package, fault.checks, folder / "cache", compiles=compiles)
    caught = found["ended"] in ("failed", "hung", "crashed")
    return {
        "name": fault.name,
        "file": fault.path,
        "old": fault.old,
        "new": fault.new,
        "caught_by": found.get("check", fault.checks[0]) if caught else None,
        **{name: found[name] for name in ("ended", "how") if name in found},
        "seconds": round(time.monotonic() - began, 1),
    }


def check_unchanged(folder: Path, workers: int) -> None:
    """SystemExit unless every check passes without a fault; fills the compiler's cache."""
    package = folder / "unchanged"
    shutil.copytree(ROOT / "src", package)
    names = dict.fromkeys(name for fault in FAULTS for name in fault.checks)
    with ThreadPoolExecutor(workers) as pool:
        given = {
            name: pool.submit(run_checks, package, (name,), folder / "cache", compiles=False)
            for name in names
        }
    for name, result in given.items():
        if result.result()["ended"] != "passed":
            raise SystemExit(f"{name!r} fails without a fault too: {result.result()}")
        print(f"{name}: passes without a fault", flush=True)


def read(path: Path) -> dict[str, dict[str, Any]]:
    """Faults of the list as they are that were caught before, by name."""
    if not path.is_file():
        return {}
    faults = {fault.name: (fault.old, fault.new) for fault in FAULTS}
    before = json.loads(path.read_text(encoding="utf-8"))["faults"]
    return {
        x["name"]: x
        for x in before
        if x["caught_by"] and faults.get(x["name"]) == (x["old"], x["new"])
    }


def write(path: Path, done: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Results so far, in the order of the list; returns them."""
    results = [done[fault.name] for fault in FAULTS if fault.name in done]
    told = {
        "command": COMMAND,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "torch": torch.__version__,
        "caught": sum(found["caught_by"] is not None for found in results),
        "missed": [found["name"] for found in results if found["ended"] == "passed"],
        "broken": [found["name"] for found in results if found["ended"] == "broken"],
        "not_run": [fault.name for fault in FAULTS if fault.name not in done],
        "faults": results,
    }
    partial = path.with_suffix(".part")
    partial.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    partial.replace(path)
    return told


def run_all(given: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Results of all faults that there is time for."""
    last = time.monotonic() + given.seconds
    done = {} if given.again else read(given.output)
    check_unchanged(folder, given.workers)

    def one(fault: GluonFault) -> dict[str, Any] | None:
        if time.monotonic() > last:
            return None
        return check(fault, folder, compiles=False)

    left = [fault for fault in FAULTS if fault.name not in done]
    with ThreadPoolExecutor(given.workers) as pool:
        for ended in as_completed([pool.submit(one, fault) for fault in left]):
            found = ended.result()
            if found is None:
                continue
            done[found["name"]] = {**found, "commit": given.commit}
            write(given.output, done)
            print(f"{found['name']}: {found['ended']} {found.get('how', '')[:200]!r}", flush=True)
    return write(given.output, done)


def compile_all(given: argparse.Namespace, folder: Path) -> list[str]:
    """Names of the faults that don't compile; none is run, and no results are written."""
    with ThreadPoolExecutor(given.workers) as pool:
        found = list(pool.map(lambda fault: check(fault, folder, compiles=True), FAULTS))
    for result in found:
        print(f"{result['name']}: {result.get('how', 'compiles')}", flush=True)
    return [result["name"] for result in found if result["ended"] != "passed"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--output", type=Path, default=RESULTS, help="file of the results")
    parser.add_argument("--commit", help="of this code, where there is no git")
    parser.add_argument("--again", action="store_true", help="run what was caught before too")
    parser.add_argument("--compile", action="store_true", help="compile only, without a GPU")
    parser.add_argument("--workers", type=int, default=max(1, min(14, (os.cpu_count() or 2) - 2)))
    parser.add_argument("--seconds", type=float, default=1e9, help="after which none is begun")
    given = parser.parse_args()
    if given.commit is None:
        git = ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"]
        given.commit = subprocess.run(
            git, capture_output=True, text=True, check=True
        ).stdout.strip()
    hopper = torch.cuda.is_available() and torch.cuda.get_device_capability() == (9, 0)
    if not (given.compile or hopper):
        raise SystemExit("no Hopper GPU is here: run it where there is one, or add --compile")
    for fault in FAULTS:
        faulty(fault)
    with tempfile.TemporaryDirectory() as folder:
        if given.compile:
            broken = compile_all(given, Path(folder))
            print(json.dumps({"broken": broken, "of": len(FAULTS)}))
            raise SystemExit(bool(broken))
        told = run_all(given, Path(folder))
    summary = {name: x for name, x in told.items() if name != "faults"}
    print(json.dumps({**summary, "of": len(FAULTS)}))
    if told["broken"] or told["not_run"] or told["missed"]:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
