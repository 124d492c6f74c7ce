"""Several ranks on one machine, for tests: a script is run once on each, over gloo.

The script's process is given FOLDER RANK RANKS, and calls `join` first.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch
from torch import distributed as dist

ROOT = Path(__file__).parents[2]


def run_ranks(script: str, ranks: int, folder: Path, *arguments: str, seconds: int = 240) -> None:
    """Run `tests/support/SCRIPT` on so many ranks; AssertionError with the first one's words where
    one fails."""
    folder.mkdir(parents=True, exist_ok=True)
    # What the environment names comes first, so that a faulty copy of the package is met.
    named = [x for x in [os.environ.get("PYTHONPATH")] if x]
    paths = [*named, str(ROOT / "src"), str(ROOT)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)}
    started = [
        subprocess.Popen(
            [
                *(sys.executable, str(ROOT / "tests" / "support" / script)),
                *(str(folder), str(rank), str(ranks), *arguments),
            ],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(ranks)
    ]
    try:
        said = [process.communicate(timeout=seconds)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    failed = [rank for rank, process in enumerate(started) if process.returncode]
    assert not failed, f"ranks {failed} failed: {said[failed[0]][-4000:]}"


def join() -> tuple[Path, int, int]:
    """Take part in the group of this script's ranks: (folder, rank, ranks)."""
    folder = Path(sys.argv[1])
    rank, ranks = int(sys.argv[2]), int(sys.argv[3])
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks)}
    # What accelerate asks for, though the ranks meet in a file.
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": "0", "ACCELERATE_USE_CPU": "true"}
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=ranks
    )
    return folder, rank, ranks
