"""What the GPU benchmarks share: medians, the profiler's launches, and result files that say how
they were made."""

from __future__ import annotations

import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"


def median_ms(call: Callable[[], object], repeats: int = 20, warmup: int = 3) -> float:
    """Median device time of one call in milliseconds, by events."""
    for _ in range(warmup):
        call()
    events = [
        (torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True))
        for _ in range(repeats)
    ]
    for start, end in events:
        start.record()
        call()
        end.record()
    torch.cuda.synchronize()
    times = sorted(start.elapsed_time(end) for start, end in events)
    return times[len(times) // 2]


def capture(call: Callable[[], object]) -> torch.cuda.CUDAGraph:
    """A CUDA graph of one call, warmed up."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph


def launches(call: Callable[[], object]) -> list[tuple[str, float]]:
    """Everything that one call runs on the device, in order: name and microseconds, by the
    profiler."""
    from torch.profiler import ProfilerActivity, profile

    call()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA], acc_events=True) as recorded:
        call()
        torch.cuda.synchronize()
    return [
        (event.name, event.device_time)
        for event in recorded.events() or ()
        if event.device_type.name == "CUDA"
    ]


def workspace(call: Callable[[], torch.Tensor]) -> int:
    """Most bytes that one call held on the device at once, beside its inputs and its output."""
    out = call()
    size = out.numel() * out.element_size()
    del out
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before - size


def machine(commit: str | None) -> dict[str, Any]:
    """The GPU, the versions, the commit and the command of this run; git knows the commit if
    None."""
    import triton

    # Folders outside the project are where this machine keeps its packages.
    own = [
        place
        for place in os.environ.get("PYTHONPATH", "").split(os.pathsep)
        if place and not os.path.isabs(place)
    ]
    path = [f"PYTHONPATH={os.pathsep.join(own)}"] if own else []
    git = ["git", "-C", str(RESULTS.parent), "rev-parse", "HEAD"]
    commit = (
        commit or subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    )
    return {
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "torch": torch.__version__,
        "triton": triton.__version__,
        "python": platform.python_version(),
        "cudnn": torch.backends.cudnn.version(),
        "commit": commit,
        "command": " ".join([*path, "python", shlex.join(typed_arguments())]),
    }


def typed_arguments() -> list[str]:
    """What was typed, without where results go and the commit, which differ by machine and are
    recorded apart."""
    # `python -m module` puts the module's file, with this machine's folders, where the module was
    # typed.
    module = getattr(sys.modules["__main__"], "__spec__", None)
    kept = sys.argv[:1] if module is None else ["-m", module.name.removesuffix(".__main__")]
    words = iter(sys.argv[1:])
    for word in words:
        if word in ("--output", "--commit"):
            next(words, None)
        else:
            kept.append(word)
    return kept


def save(name: str, results: dict[str, Any], folder: Path, commit: str | None) -> Path:
    """Write the results and the machine as `folder/name.json`, whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    unfinished = folder / f".{name}.{os.getpid()}"
    unfinished.write_text(json.dumps({"machine": machine(commit), **results}, indent=1) + "\n")
    unfinished.replace(path)
    return path
