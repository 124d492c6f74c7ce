"""A call of the benchmark of several GPUs goes on after rows that end its processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
CALL = """
import sys, time
import torch
from torch import distributed as dist
sys.path.insert(0, "benchmarks")
import distributed
from distributed_measure import measured

def full():
    raise torch.OutOfMemoryError("out of memory. Tried to allocate 9 GiB. GPU 0 has 1")

def exchange():
    dist.all_reduce(torch.ones(1))

def rows(sizes):
    return {
        "full-one": lambda host: measured(full, "one", 1, host),
        # The other rank is left in an exchange that nobody comes to.
        "full-all": lambda host: measured(
            (lambda: full) if dist.get_rank() else (lambda: exchange), "all", 1, host
        ),
        "stuck-all": lambda host: measured(lambda: lambda: time.sleep(60), "all", 1, host),
        "good-all": lambda host: measured(lambda: exchange, "all", 1, host),
    }

distributed.all_rows = rows
distributed.record.RESULTS = distributed.Path(sys.argv[sys.argv.index("--output") + 1])
distributed.main()
"""


def call(folder: Path, *arguments: str) -> str:
    script = folder / "call.py"
    script.write_text(CALL)
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1"]
    ranks = ["--nproc-per-node", "2", "--max-restarts", "3", str(script)]
    done = subprocess.run(
        [sys.executable, *torchrun, *ranks, "--output", str(folder), "--commit", "x", *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT / "src"), str(ROOT)))},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def rows_of(file: Path) -> dict[str, dict]:
    return {row["row"]: row for row in json.loads(file.read_text())["distributed"]}


def test_what_fails_is_noted_and_the_rest_is_measured(tmp_path: Path) -> None:
    """Memory that ran out on one GPU or on one of all, and a row that hangs."""
    said = call(tmp_path, "--row-seconds", "5")
    found = rows_of(tmp_path / "distributed" / "1.json")
    assert "3 rows measured, 1 failed, 0 left" in said
    assert "9 GiB" in found["full-one"]["out_of_memory"]
    assert "9 GiB" in found["full-all"]["out_of_memory"]
    assert found["stuck-all"]["failed"] == "its process ended, or it took more than 5 s"
    assert found["good-all"]["ms"] > 0
