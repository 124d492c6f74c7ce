"""Eager frequency attention on a CPU beside torch's dense attention: time of one layer, and peak
memory by length.

    python benchmarks/eager_cpu.py [--runs 5] [--output FOLDER]

Default configuration, 8 heads of 64 split 3/2/3 over LOW, MID and HIGH, float32, with one thread
and with torch's default. Prints two tables and writes eager_cpu.json. Runs alternate between the
two, so that both meet the same load of the machine; medians are given, of wall time and of the
process's CPU time. Other work on the same cores slows several threads more than one, since they
wait for one another: the load average is in the file. Every length's memory is measured in a fresh
process, since a peak never falls.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

import record
from freqformer import FreqFormerConfig, Grid, frequency_attention

HEADS, HEAD_DIM = 8, 64
CONFIG = FreqFormerConfig(summary_tokens=256)
ALLOCATION = [0, 0, 0, 1, 1, 2, 2, 2]
GRID = Grid(num_frames=16, height=32, width=32)
LENGTHS = (4, 8, 16, 32, 64)
"""Frames of 32 x 32 tokens: 4,096 to 65,536 tokens."""
LEAST = {"forward": 3.5, "forward and backward": 3.0}
"""Least speed-up over dense attention."""
MOST_MEMORY = 12.0
"""Largest peak at the longest length, in bytes of query, key, value and output."""


def inputs(grid: Grid) -> tuple[Tensor, Tensor, Tensor]:
    """Standard normal query, key and value (1, N, H, D) that require gradients."""
    draw = torch.Generator().manual_seed(0)
    shape = (1, grid.num_tokens, HEADS, HEAD_DIM)
    query, key, value = (torch.randn(shape, generator=draw).requires_grad_() for _ in range(3))
    return query, key, value


def frequency(grid: Grid, tensors: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    query, key, value = tensors
    return frequency_attention(
        query, key, value, grid=grid, allocation=ALLOCATION, config=CONFIG, impl="eager"
    )


def dense(tensors: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    query, key, value = (x.transpose(1, 2) for x in tensors)
    return F.scaled_dot_product_attention(query, key, value).transpose(1, 2)


def seconds(call: Callable[[], Tensor], *, backward: bool) -> tuple[float, float]:
    """Wall and CPU seconds of one call."""
    wall, cpu = time.perf_counter(), time.process_time()
    with torch.set_grad_enabled(backward):
        out = call()
    if backward:
        out.backward(torch.ones_like(out))
    return time.perf_counter() - wall, time.process_time() - cpu


def time_layer(runs: int, threads: int) -> dict[str, dict[str, float]]:
    """Median seconds of both and their ratio, for each direction."""
    torch.set_num_threads(threads)
    tensors, results = inputs(GRID), {}
    calls = {"frequency": lambda: frequency(GRID, tensors), "dense": lambda: dense(tensors)}
    for name, backward in (("forward", False), ("forward and backward", True)):
        times: dict[str, list[tuple[float, float]]] = {which: [] for which in calls}
        for _ in range(runs + 1):
            for which, call in calls.items():
                times[which].append(seconds(call, backward=backward))
        row: dict[str, float] = {}
        for index, clock in enumerate(("wall", "cpu")):
            # The first run of each warms up.
            middle = {
                which: median(run[index] for run in taken[1:]) for which, taken in times.items()
            }
            row |= {f"{which}_{clock}_s": value for which, value in middle.items()}
            row[f"speedup_{clock}"] = middle["dense"] / middle["frequency"]
        results[name] = row
    return results


def memory_bytes(which: str) -> int:
    """Memory that the process holds now (VmRSS), or held at most (VmHWM; getrusage would give the
    parent's peak too)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(which)) * 1024


def peak_memory(frames: int) -> dict[str, float]:
    """Peak memory of forward and backward, its inputs and gradients included, in this process."""

    def layer(grid: Grid) -> None:
        out = frequency(grid, inputs(grid))
        out.backward(torch.ones_like(out))

    layer(Grid(1, 32, 32))  # loads libraries
    before, grid = memory_bytes("VmRSS"), Grid(frames, 32, 32)
    layer(grid)
    peak = memory_bytes("VmHWM") - before
    held = 4 * grid.num_tokens * HEADS * HEAD_DIM * 4
    return {"tokens": grid.num_tokens, "peak_bytes": peak, "of_query_key_value_out": peak / held}


def measure_memory() -> list[dict[str, float]]:
    """`peak_memory` of every length, each in a process of its own."""
    rows = []
    for frames in LENGTHS:
        command = [sys.executable, __file__, "--frames", str(frames)]
        ran = subprocess.run(command, capture_output=True, text=True, check=True)
        rows.append(json.loads(ran.stdout))
    return rows


def machine() -> dict[str, Any]:
    """What the figures depend on."""
    git = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    names = [
        line.split(":")[1].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if "model name" in line
    ]
    return {
        "cpu": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_average": os.getloadavg()[0],
        "torch": torch.__version__,
        "python": platform.python_version(),
        "commit": subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip(),
        "command": " ".join(["python", *record.typed_arguments()]),
    }


def report(speeds: dict[int, dict[str, dict[str, float]]], memory: list[dict[str, float]]) -> None:
    print(f"\n{GRID.num_tokens:,} tokens, {HEADS} heads of {HEAD_DIM}, float32, medians")
    print(
        f"{'threads':>7}  "
        f"{'':22}{'frequency s':>12}{'dense s':>9}{'speed-up':>10}{'by CPU time':>13}{'wanted':>8}"
    )
    for threads, rows in speeds.items():
        for name, row in rows.items():
            print(
                f"{threads:>7}  {name:22}{row['frequency_wall_s']:12.3f}{row['dense_wall_s']:9.3f}"
                f"{row['speedup_wall']:9.2f}x{row['speedup_cpu']:12.2f}x{LEAST[name]:7.1f}x"
            )
    print("\nPeak memory of forward and backward")
    print(f"{'tokens':>8}{'MiB':>8}{'x bytes of q, k, v, out':>25}")
    for row in memory:
        print(
            f"{row['tokens']:8,}{row['peak_bytes'] / 2**20:8.0f}"
            f"{row['of_query_key_value_out']:24.2f}x"
        )
    print(f"wanted at {memory[-1]['tokens']:,} tokens: at most {MOST_MEMORY:.0f}x")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--runs", type=int, default=5, help="timed runs of each, after one that warms up"
    )
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument(
        "--frames",
        type=int,
        help="print the peak memory of this many frames as JSON, and nothing else",
    )
    arguments = parser.parse_args()
    if arguments.frames:
        print(json.dumps(peak_memory(arguments.frames)))
        return
    memory = measure_memory()
    threads = torch.get_num_threads()
    speeds = {n: time_layer(arguments.runs, n) for n in sorted({1, threads})}
    report(speeds, memory)
    arguments.output.mkdir(parents=True, exist_ok=True)
    results = {
        "machine": machine(),
        "speed": speeds[threads],
        "speed_one_thread": speeds[1],
        "memory": memory,
        "wanted": {**LEAST, "memory": MOST_MEMORY},
    }
    path = arguments.output / "eager_cpu.json"
    path.write_text(json.dumps(results, indent=1) + "\n")
    print(f"\n{path}")


if __name__ == "__main__":
    main()
