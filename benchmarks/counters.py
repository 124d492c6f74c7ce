"""What holds the attention launch back on a Hopper GPU, by Nsight Compute's hardware counters: how
busy the tensor cores are, and what warps wait for.

Needs a CUDA GPU whose counters may be read, and `ncu` of the CUDA toolkit:

    PYTHONPATH=src python benchmarks/counters.py [--output FOLDER]

Profiles the launches of kernel.py on all and on a tenth of the blocks, and the gradients of
backward.py on a tenth, one call of each, and writes counters.json. Clocks are left as they are.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

import record
from backward import BackwardProblem, gradients_of
from counters_table import KERNELS, named, read_counters
from kernel import Problem, launch_of

HEAD_DIM = 128
SECTIONS = ("SpeedOfLight", "WarpStateStats", "SchedulerStats", "ComputeWorkloadAnalysis",
            "MemoryWorkloadAnalysis", "Occupancy", "LaunchStats")  # fmt: skip


def launch() -> None:
    """What is profiled."""
    for density in (1.0, 0.1):
        launch_of(Problem.random(density, HEAD_DIM))()
    gradients_of(BackwardProblem.random(0.1))()
    torch.cuda.synchronize()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--output", type=Path, default=record.RESULTS)
    parser.add_argument("--commit", help="of this code, where the machine has no git")
    parser.add_argument("--launch", action="store_true", help="only launch, for ncu to profile")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("no CUDA GPU: this benchmark measures one")
    if arguments.launch:
        launch()
        return
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "ncu.csv"
        sections = [word for section in SECTIONS for word in ("--section", section)]
        told = ["--clock-control", "none", "-k", f"regex:{KERNELS}", *sections]
        written = ["--page", "details", "--csv", "--log-file", str(log)]
        subprocess.run(["ncu", *told, *written, sys.executable, __file__, "--launch"], check=True)
        kernels = named(read_counters(log.read_text(encoding="utf-8")))
    print(record.save("counters", {"kernels": kernels}, arguments.output, arguments.commit))


if __name__ == "__main__":
    main()
