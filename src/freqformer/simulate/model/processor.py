"""The hardware profile of the processor at hand, measured in a few seconds."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

REPEATS = 7
"""Best of so many runs: other work on the machine only ever slows one down."""


def cpu_profile() -> dict[str, Any]:
    """Measure this machine's processor: the fields of a hardware profile, float32."""
    side = 2048
    a, b = torch.randn(side, side), torch.randn(side, side)
    small = torch.randn(1 << 18)
    large = torch.randn(1 << 26)
    target = torch.empty_like(large)
    seconds = {
        "matrix_flops": _best(lambda: torch.mm(a, b)),
        "vector_flops": _best(lambda: [small.mul_(1.0001) for _ in range(64)]) / 64,
        "memory_bandwidth": _best(lambda: target.copy_(large)),
        "launch_s": _best(lambda: [small[:1].add_(0) for _ in range(1000)]) / 1000,
    }
    sources = dict.fromkeys(
        seconds,
        f"measured by `freqformer fit-hardware --measure-cpu`, torch {torch.__version__}",
    )
    sources |= dict.fromkeys(
        ("memory_bytes", "l2_bytes", "processors"), "as the operating system reports it"
    )
    cache = _largest_cache()
    if cache is None:
        cache, sources["l2_bytes"] = 32 << 20, "assumption: the operating system does not say"
    return {
        "title": f"{_processor()}, {torch.get_num_threads()} threads, float32",
        "element_size": 4,
        "matrix_flops": _rounded(2 * side**3 / seconds["matrix_flops"]),
        "vector_flops": _rounded(small.numel() / seconds["vector_flops"]),
        "memory_bandwidth": _rounded(2 * large.numel() * 4 / seconds["memory_bandwidth"]),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "l2_bytes": cache,
        "processors": torch.get_num_threads(),
        "launch_s": _rounded(seconds["launch_s"]),
        "interconnect": None,
        "sources": sources,
    }


def cpu_profile_text() -> str:
    """Measure this machine's processor; its profile as JSON, for `freqformer simulate --hardware
    FILE.json`."""
    return json.dumps(cpu_profile(), indent=2, allow_nan=False) + "\n"


def _best(work: Callable[[], object]) -> float:
    work()
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _largest_cache() -> int | None:
    """Bytes of the last-level cache; None where the system does not say."""
    units = {"K": 1 << 10, "M": 1 << 20}
    sizes = [
        int(text[:-1]) * units[text[-1]]
        for file in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")
        if (text := file.read_text(encoding="utf-8").strip())[-1] in units
    ]
    return max(sizes, default=None)
