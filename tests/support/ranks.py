"""Several ranks on one machine, for tests: a script is run once on each, over gloo.

The script's process is given FOLDER RANK RANKS, and calls `join` first.
"""

from __future__ import annotations

import importlib
import os
import runpy
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

import torch
from torch import distributed as dist

ROOT = Path(__file__).parents[2]


def run_ranks(script: str, ranks: int, folder: Path, *arguments: str, seconds: int = 240) -> None:
    """Run `tests/support/SCRIPT` on so many ranks; AssertionError with the first one's words where
    one fails.

    One process imports what the script does and splits into the ranks, since imports take longer
    than what most scripts do.
    """
    folder.mkdir(parents=True, exist_ok=True)
    # What the environment names comes first, so that a faulty copy of the package is met.
    named = [x for x in [os.environ.get("PYTHONPATH")] if x]
    paths = [*named, str(ROOT / "src"), str(ROOT)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)}
    started = subprocess.Popen(
        [sys.executable, "-m", "tests.support.ranks", script, str(ranks), str(folder), *arguments],
        env=environment,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        said, _ = started.communicate(timeout=seconds)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(started.pid, signal.SIGKILL)
        started.wait()
    assert not started.returncode, said


def split(script: str, ranks: int, folder: str, *arguments: str) -> None:
    """Be the process that splits into the ranks, and say which of them failed.

    Raises:
        SystemExit: with the words of the first one that failed.
    """
    importlib.import_module(f"tests.support.{script.removesuffix('.py')}")
    outputs = [tempfile.TemporaryFile("w+") for _ in range(ranks)]  # noqa: SIM115  ranks write
    children = []
    for rank, output in enumerate(outputs):
        children.append(os.fork())
        if not children[-1]:
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
            sys.argv = [script, folder, str(rank), str(ranks), *arguments]
            runpy.run_path(str(ROOT / "tests" / "support" / script), run_name="__main__")
            return
    ended = [os.waitpid(child, 0)[1] for child in children]
    failed = [rank for rank, status in enumerate(ended) if status]
    if failed:
        outputs[failed[0]].seek(0)
        raise SystemExit(f"ranks {failed} failed: {outputs[failed[0]].read()[-4000:]}")


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


if __name__ == "__main__":
    split(sys.argv[1], int(sys.argv[2]), *sys.argv[3:])
