"""`make locks` and `make check-locks`: pins of every dependency, for each release of torch.

A lock (requirements/torch-X.txt) holds for every platform and Python below, by markers. Its pins
follow torch's own: Triton and CUDA's libraries have the releases that this torch asks for. pip
takes it as constraints, so that a build of torch for CPUs, which asks for none of them, fits too.

Resolving reads metadata from the plain registry: no setting, cache or local wheel of this machine
has a say, since one of those once hid that no other machine could install.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from pathlib import Path

ROOT = Path(__file__).parents[1]
LOCKS = ROOT / "requirements"
SIZES = LOCKS / "download.json"
EXTRAS = ("all", "dev", "docs")
PYTHONS = ("3.11", "3.12", "3.13", "3.14")
PLATFORMS = {
    "linux-x86_64": "x86_64-manylinux_2_28",
    "linux-aarch64": "aarch64-manylinux_2_28",
    "macos-arm64": "aarch64-apple-darwin",
    "windows-amd64": "x86_64-pc-windows-msvc",
}
MACOS = "14.0"
"""The oldest macOS for which torch has builds since 2.13."""
TORCH: dict[str, tuple[str, ...]] = {
    # Triton 3.6's interpreter makes numbers of arrays of one element, which numpy 2.4 refuses.
    "2.11": ("numpy<2.4",),
    "2.12": (),
    "2.13": (),
    "2.14": (),
    "2.15": (),
}
"""Releases of torch, and what else their locks must hold to."""
NETWORK = ("SSL_CERT_FILE", "SSL_CERT_DIR", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")
"""What a machine may need to reach any registry at all."""
IN_PARALLEL = 8
MEASURED_ON = "3.12"
CUDA_ONLY = re.compile(r"torch$|nvidia-|cuda-")
"""Packages that a build of torch for CPUs replaces or doesn't ask for."""


class ResolutionError(Exception):
    """Requirements that exclude one another; the message is the resolver's own."""


@dataclass(frozen=True)
class Machine:
    """Where something is to be installed: names of PLATFORMS and PYTHONS."""

    platform: str
    python: str

    def arguments(self) -> list[str]:
        return ["--python-platform", PLATFORMS[self.platform], "--python-version", self.python]


MACHINES = tuple(Machine(*names) for names in product(PLATFORMS, PYTHONS))


class Resolver:
    """uv, in an environment of its own."""

    def __init__(self, home: Path, source: Sequence[str] = ()) -> None:
        self._source = tuple(source)
        kept = {name: value for name, value in os.environ.items() if name.upper() in NETWORK}
        self._environment = {
            **kept,
            "PATH": os.environ["PATH"],
            "HOME": str(home),
            "UV_CACHE_DIR": str(home / "cache"),
            "UV_CUSTOM_COMPILE_COMMAND": "make locks",
            "MACOSX_DEPLOYMENT_TARGET": MACOS,
        }

    def resolve(self, project: Path, *arguments: str, extras: Sequence[str] = EXTRAS) -> str:
        """What installing `project` installs, as text.

        Raises:
            ResolutionError: where requirements exclude one another, or metadata can't be had.
        """
        command = [
            sys.executable,
            "-m",
            "uv",
            "pip",
            "compile",
            "--no-config",
            "--system-certs",
            "--quiet",
        ]
        # Without one named, uv looks for an interpreter of the version to resolve for, and
        # downloads it.
        command += ["--python", sys.executable, "--no-python-downloads"]
        # A package without a wheel would be built from source, which a stranger's machine may not
        # be able to.
        command += ["--only-binary", ":all:", "--no-annotate", *self._source, *arguments]
        command += [f"--extra={extra}" for extra in extras]
        done = subprocess.run(
            [*command, str(project)],
            capture_output=True,
            text=True,
            env=self._environment,
            cwd=ROOT,
            check=False,
        )
        if done.returncode:
            raise ResolutionError(done.stderr.strip())
        return done.stdout


@contextmanager
def isolated(source: Sequence[str] = ()) -> Iterator[Resolver]:
    """A resolver with an empty home; `source` are uv's arguments for a place other than the
    registry."""
    with tempfile.TemporaryDirectory() as home:
        yield Resolver(Path(home), source)


def lock_path(torch: str) -> Path:
    return LOCKS / f"torch-{torch}.txt"


def make_lock(resolver: Resolver, torch: str) -> str:
    """The text of the lock for a release of torch: its newest patch, and the newest of all else."""
    with tempfile.TemporaryDirectory() as folder:
        wanted = Path(folder) / "wanted.txt"
        wanted.write_text("\n".join((f"torch=={torch}.*", *TORCH[torch])), encoding="utf-8")
        # One version for all machines, wherever one exists: what is tested here is what others get.
        everywhere = ("--universal", "--fork-strategy", "fewest", "--python-version", PYTHONS[0])
        return resolver.resolve(ROOT / "pyproject.toml", *everywhere, "--constraint", str(wanted))


def pinned(lock: str) -> set[str]:
    """The names of the packages of a lock."""
    return {
        line.partition("==")[0]
        for line in lock.splitlines()
        if "==" in line and not line.startswith("#")
    }


def conflict(resolver: Resolver, project: Path, lock: Path | None, machine: Machine) -> str | None:
    """Why `project` can't be installed on `machine` with the pins of `lock`, None where it can."""
    constraints = [] if lock is None else ["--constraint", str(lock)]
    try:
        resolved = resolver.resolve(project, *machine.arguments(), *constraints)
    except ResolutionError as error:
        return str(error)
    loose = pinned(resolved) - pinned(lock.read_text(encoding="utf-8")) if lock else set()
    return (
        f"{lock} pins no version of {', '.join(sorted(loose))}: run `make locks`" if loose else None
    )


def download_sizes(resolver: Resolver, torch: str, platform: str) -> dict[str, int]:
    """Bytes to download: "all", and "without_torch" and the libraries that its CUDA build asks
    for."""
    machine = Machine(platform, MEASURED_ON)
    lock = ["--constraint", str(lock_path(torch)), "--format", "pylock.toml"]
    packages = tomllib.loads(
        resolver.resolve(ROOT / "pyproject.toml", *machine.arguments(), *lock)
    )["packages"]
    sizes = {
        package["name"]: package["wheels"][0]["size"] for package in packages if "wheels" in package
    }
    rest = sum(size for name, size in sizes.items() if not CUDA_ONLY.match(name))
    return {"all": sum(sizes.values()), "without_torch": rest}


def make() -> int:
    with isolated() as resolver:
        sizes = {}
        for torch in TORCH:
            lock_path(torch).write_text(make_lock(resolver, torch), encoding="utf-8")
            sizes[torch] = {
                platform: download_sizes(resolver, torch, platform) for platform in PLATFORMS
            }
            print(f"{lock_path(torch).relative_to(ROOT)}", flush=True)
    SIZES.write_text(json.dumps(sizes, indent=2) + "\n", encoding="utf-8")
    return 0


def check() -> int:
    """Resolves every lock, and the project without one, for every machine; 1 where one fails."""
    cases = list(product((*TORCH, None), MACHINES))
    with isolated() as resolver, ThreadPoolExecutor(IN_PARALLEL) as pool:

        def answer(case: tuple[str | None, Machine]) -> str | None:
            torch, machine = case
            return conflict(
                resolver, ROOT / "pyproject.toml", lock_path(torch) if torch else None, machine
            )

        answers = list(pool.map(answer, cases))
    failed = [(case, text) for case, text in zip(cases, answers, strict=True) if text]
    for (torch, machine), text in failed:
        print(
            f"torch {torch or 'of any release'}, {machine.platform}, Python "
            f"{machine.python}:\n{text}\n"
        )
    print(
        f"{len(cases) - len(failed)} of {len(cases)} combinations of torch, platform and Python "
        "resolve"
    )
    return 1 if failed else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Pins of every dependency")
    parser.add_argument("action", choices=("make", "check"))
    sys.exit({"make": make, "check": check}[parser.parse_args().action]())
