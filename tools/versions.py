"""`make test-versions`: the suite's core on every release of torch that pyproject.toml allows.

Each release gets an environment of its own from its lock, which holds the Triton that this torch
asks for, and the lowest diffusers that is allowed beside the newest. An environment is deleted when
its tests are done: one with CUDA's libraries takes 6 GB. What passed is kept in
requirements/tested.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tomllib
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
LOCKS = ROOT / "requirements"
RESULTS = LOCKS / "tested.json"
FOLDER = ROOT / "build" / "versions"
COMMAND = "make test-versions"
GROUPS = {
    "operations": [
        "tests/ops/merge",
        "tests/ops/prologue",
        "tests/ops/selection",
        "tests/ops/test_jit.py",
    ],
    "interpreter": [
        "tests/test_fused.py",
        "tests/test_fused_backward.py::test_every_branch[all learned, bfloat16]",
        "tests/test_fused_backward.py::test_every_branch[gains]",
        "tests/test_fused_backward.py::test_every_branch[LOW branch, all learned]",
        "tests/test_fused_backward.py::test_operations_are_registered",
        "tests/test_fused_backward.py::test_compiled_graphs",
        "tests/test_tracing.py",
    ],
    "layer": ["tests/attention"],
    "model": ["tests/models/test_pipeline.py", "tests/models/test_transformer.py"],
    "training": ["tests/training/test_trainer.py", "tests/training/test_state.py"],
    "plug-in": ["tests/integrations"],
}
"""What is run on each release. Gluon's kernels need a GPU and have tests of their own."""
PACKAGES = ("torch", "triton", "diffusers", "numpy")


@dataclass(frozen=True)
class Case:
    """What is installed: the lock of a release of torch, and diffusers where it isn't the
    lock's."""

    torch: str
    diffusers: str | None = None

    @property
    def name(self) -> str:
        return self.torch if self.diffusers is None else f"{self.torch}, diffusers {self.diffusers}"


def pin(lock: str, package: str) -> str:
    """The version of a package in the text of a lock."""
    return re.findall(rf"^{package}==([^\s;]+)", lock, re.MULTILINE)[0]


def lowest_diffusers() -> str:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"][
        "optional-dependencies"
    ]
    (bound,) = [
        requirement for requirement in extras["model"] if requirement.startswith("diffusers")
    ]
    return re.findall(r">=([\d.]+)", bound)[0]


def cases(torch: Sequence[str]) -> list[Case]:
    """Every release with the lock's diffusers, and with the lowest where that is another."""
    lowest, found = lowest_diffusers(), []
    for release in torch:
        newest = pin((LOCKS / f"torch-{release}.txt").read_text(encoding="utf-8"), "diffusers")
        found += [Case(release)] if newest == lowest else [Case(release), Case(release, lowest)]
    return found


def install(case: Case, folder: Path) -> Path:
    """Make the environment of a case, or take the one that was kept; returns its Python."""
    python, made = folder / "bin" / "python", folder / "made"
    if made.exists():
        return python
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    pip = [str(python), "-m", "pip", "install", "--disable-pip-version-check"]
    lock = str(LOCKS / f"torch-{case.torch}.txt")
    subprocess.run([*pip, "--constraint", lock, "--editable", ".[all,dev]"], cwd=ROOT, check=True)
    if case.diffusers:
        subprocess.run([*pip, f"diffusers=={case.diffusers}"], cwd=ROOT, check=True)
    made.touch()
    return python


def installed(python: Path) -> dict[str, str]:
    code = (
        "import json, importlib.metadata as m, sys; print(json.dumps({name: m.version(name) "
        "for name in sys.argv[1:]}))"
    )
    done = subprocess.run(
        [str(python), "-c", code, *PACKAGES], capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


def run_group(python: Path, tests: Sequence[str], report: Path) -> dict[str, int]:
    """Run tests in an environment; how many passed, failed and were skipped, and the seconds."""
    environment = {
        **os.environ,
        "TRITON_INTERPRET": "1",
        "OMP_WAIT_POLICY": "PASSIVE",
        "PYTHONPATH": str(ROOT / "src"),
    }
    report.unlink(missing_ok=True)
    parallel = ["-n", "auto", "--maxprocesses", "8", "--dist", "loadfile"]
    command = [str(python), "-m", "pytest", "-q", *parallel, "--junitxml", str(report), *tests]
    subprocess.run(command, cwd=ROOT, env=environment, check=False)
    if not report.exists():  # pytest itself did not start or did not end
        return {"passed": 0, "failed": 1, "skipped": 0, "seconds": 0}
    (suite,) = ElementTree.parse(report).getroot().iter("testsuite")
    total, skipped = int(suite.attrib["tests"]), int(suite.attrib["skipped"])
    failed = int(suite.attrib["failures"]) + int(suite.attrib["errors"])
    seconds = round(float(suite.attrib["time"]))
    return {
        "passed": total - failed - skipped,
        "failed": failed,
        "skipped": skipped,
        "seconds": seconds,
    }


def commit() -> str:
    git = ["git", "-C", str(ROOT)]
    head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    changed = subprocess.run(
        [*git, "status", "--porcelain", "src", "tests"], capture_output=True, text=True, check=False
    )
    return head.stdout.strip() + (" with changes" if changed.stdout.strip() else "")


def run_case(case: Case, *, keep: bool) -> dict[str, Any]:
    folder = FOLDER / case.name.replace(", ", "-").replace(" ", "-")
    python = install(case, folder)
    try:
        groups = {
            name: run_group(python, tests, FOLDER / "report.xml") for name, tests in GROUPS.items()
        }
        return {
            "versions": installed(python),
            "python": platform.python_version(),
            "machine": f"{platform.system()} {platform.machine()}",
            "commit": commit(),
            "passed": all(group["failed"] == 0 < group["passed"] for group in groups.values()),
            "groups": groups,
        }
    finally:
        if not keep:
            shutil.rmtree(folder)


def table(results: dict[str, Any]) -> str:
    """The results as text, a line for each case."""
    rows = [["torch", "Triton", "diffusers", "numpy", *GROUPS]]
    for result in results.values():
        counts = [
            f"{group['passed']}/{group['passed'] + group['failed']}"
            for group in result["groups"].values()
        ]
        versions = result["versions"]
        rows.append([*(versions[name] for name in PACKAGES), *counts])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def main() -> int:
    locks = sorted(path.stem.removeprefix("torch-") for path in LOCKS.glob("torch-*.txt"))
    parser = argparse.ArgumentParser(description="The suite's core on each release of torch")
    parser.add_argument(
        "torch", nargs="*", default=locks, help=f"releases, of {', '.join(locks)}; all if none"
    )
    parser.add_argument(
        "--keep", action="store_true", help=f"keep the environments in {FOLDER.relative_to(ROOT)}"
    )
    asked = parser.parse_args()
    FOLDER.mkdir(parents=True, exist_ok=True)
    results = json.loads(RESULTS.read_text(encoding="utf-8"))["cases"] if RESULTS.exists() else {}
    ran = cases(asked.torch)
    for case in ran:
        results[case.name] = run_case(case, keep=asked.keep)
        ordered = {"command": COMMAND, "cases": dict(sorted(results.items()))}
        RESULTS.write_text(json.dumps(ordered, indent=2) + "\n", encoding="utf-8")
    print(table({case.name: results[case.name] for case in ran}))
    return 0 if all(results[case.name]["passed"] for case in ran) else 1


if __name__ == "__main__":
    sys.exit(main())
