"""Processor seconds of `freqformer sample shipped` alone, and on a machine with busy processes
beside it.

PYTHONPATH=src python benchmarks/busy_machine.py [--beside 8] [--steps 30] [--wait-policy ACTIVE]

On a machine that is shared, threads of OpenMP that wait by spinning use up the time of those that
work. The command sets OMP_WAIT_POLICY where the user has not; `--wait-policy ACTIVE` shows what it
was like before.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LIMIT = 1.3
"""Times the processor seconds that are allowed beside other load."""
SPIN = "import os\nparent = os.getppid()\nwhile os.getppid() == parent: sum(range(10_000))"
"""Until this benchmark ends, however it ends."""


@contextmanager
def load(processes: int) -> Iterator[None]:
    """So many processes that never wait."""
    running = [subprocess.Popen([sys.executable, "-c", SPIN]) for _ in range(processes)]
    try:
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()


def sample(steps: int, policy: str | None) -> tuple[float, float]:
    """Processor and wall-clock seconds of one command, as typed by someone who set nothing."""
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("OMP_", "GOMP_", "KMP_"))
    }
    if policy is not None:
        environment["OMP_WAIT_POLICY"] = policy
    with tempfile.TemporaryDirectory() as folder:
        target = str(Path(folder, "x.mp4"))
        command = [
            sys.executable,
            "-m",
            "freqformer",
            "sample",
            "shipped",
            "-o",
            target,
            "--steps",
            str(steps),
        ]
        start = time.perf_counter()
        process = subprocess.Popen(
            command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
        return usage.ru_utime + usage.ru_stime, time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--beside", type=int, default=8, help="busy processes; 8 by default")
    parser.add_argument("--steps", type=int, default=30, help="denoising steps; 30 by default")
    parser.add_argument(
        "--wait-policy",
        choices=("ACTIVE", "PASSIVE"),
        help="of OpenMP; the command's own where left out",
    )
    asked = parser.parse_args()
    sample(1, asked.wait_policy)  # fills the disk's cache
    alone, alone_wall = sample(asked.steps, asked.wait_policy)
    with load(asked.beside):
        beside, beside_wall = sample(asked.steps, asked.wait_policy)
    print(f"load of the machine before: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    print(f"alone:                 {alone:6.1f} CPU-s in {alone_wall:6.1f} s")
    print(f"beside {asked.beside:2} busy ones:  {beside:6.1f} CPU-s in {beside_wall:6.1f} s")
    print(f"times as much:         {beside / alone:6.2f}  (at most {LIMIT})")
    if asked.wait_policy is None and beside > LIMIT * alone:
        sys.exit("above the limit")


if __name__ == "__main__":
    main()
