"""How rows of benchmarks/distributed.py are measured: on one GPU or all, what of NCCL is hidden,
and what is compared with.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch import distributed as dist

import record
from distributed_calls import Ranks
from freqformer.attention import parallel
from freqformer.distributed import exchange
from freqformer.distributed.collective import start_all_to_all, wait

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
On = Literal["one", "all"]


@dataclass(frozen=True, eq=False)
class Host:
    """The GPUs of one host: a mesh of all ranks, and how these talk."""

    mesh: Any
    ranks: Ranks


class LostRank(Exception):
    """Memory ran out, or something failed, where other ranks may wait for this one for ever: all
    begin anew."""

    def __init__(self, found: dict[str, Any]) -> None:
        super().__init__(str(found))
        self.found = found


def median_ms(call: Callable[[], object], rounds: int) -> float:
    """Median milliseconds of a call on this rank."""
    if DEVICE == "cuda":
        return record.median_ms(call, repeats=rounds, warmup=2)
    call()
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        call()
        times.append(1e3 * (time.perf_counter() - began))
    return sorted(times)[len(times) // 2]


def measured(
    make: Callable[[], Callable[[], object]],
    on: On,
    rounds: int,
    host: Host,
    *,
    spans: bool = True,
) -> dict[str, Any]:
    """Milliseconds of the slowest rank and the largest peak; unless `spans` is False its longest
    kernels, and of all ranks what NCCL takes and what of that is hidden; or that memory ran out.

    Raises:
        LostRank: where memory ran out on all GPUs.
    """
    found: dict[str, Any] = {}
    if on == "all" or dist.get_rank() == 0:
        try:
            found = _measured_here(make(), on, rounds, host, spans)
        except torch.OutOfMemoryError as error:
            found = {"out_of_memory": str(error).split(". GPU")[0]}
    if on == "all" and "out_of_memory" in found:
        raise LostRank(found)
    gc.collect()
    if DEVICE == "cuda":
        torch.cuda.empty_cache()
    return _of_all([one for one in host.ranks.gathered(found) if one])


def _measured_here(
    call: Callable[[], object], on: On, rounds: int, host: Host, spans: bool
) -> dict[str, Any]:
    if DEVICE == "cuda":
        torch.cuda.reset_peak_memory_stats()
    if on == "all":
        host.ranks.gathered("ready")
    found: dict[str, Any] = {"ms": median_ms(call, rounds)}
    if DEVICE == "cuda":
        found["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
        if spans:
            seen = device_spans(call)
            found["kernels_ms"] = longest(seen)
            if on == "all":
                found |= communication(seen)
    return found


def _of_all(found: list[dict[str, Any]]) -> dict[str, Any]:
    """The slowest rank's milliseconds, and the largest peak."""
    for one in found:
        if "out_of_memory" in one:
            return one
    slowest = max(found, key=lambda one: one["ms"])
    peaks = {name: max(one[name] for one in found) for name in ("peak_gib",) if name in slowest}
    return slowest | peaks


NAME = 80
"""Characters of a kernel's name that are kept."""
Span = tuple[str, float, float]
"""Name, begin and end in microseconds of something that ran on the GPU."""


def device_spans(call: Callable[[], object]) -> list[Span]:
    """All that one call runs on this rank's GPU, by the profiler."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA], acc_events=True) as recorded:
        call()
        torch.cuda.synchronize()
    return [
        (event.name, event.time_range.start, event.time_range.end)
        for event in recorded.events() or ()
        if event.device_type.name == "CUDA"
    ]


def longest(spans: list[Span], most: int = 16) -> dict[str, float]:
    """Milliseconds of the kernels that take longest, all calls of one together, by name."""
    total: dict[str, float] = {}
    for name, begin, end in spans:
        total[name[:NAME]] = total.get(name[:NAME], 0.0) + (end - begin) / 1e3
    return dict(sorted(total.items(), key=lambda entry: -entry[1])[:most])


def communication(spans: list[Span]) -> dict[str, float]:
    """Milliseconds of NCCL's kernels, `nccl_ms`, and how many of them something else runs in,
    `hidden_ms`."""
    nccl = _merged([(begin, end) for name, begin, end in spans if "nccl" in name.lower()])
    others = _merged([(begin, end) for name, begin, end in spans if "nccl" not in name.lower()])
    hidden = sum(
        max(0.0, min(end, other_end) - max(begin, other_begin))
        for begin, end in nccl
        for other_begin, other_end in others
    )
    return {
        "nccl_ms": sum(end - begin for begin, end in nccl) / 1e3,
        "hidden_ms": hidden / 1e3,
    }


def _merged(spans: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """The same time in spans that don't overlap, in order."""
    merged: list[tuple[float, float]] = []
    for begin, end in sorted(spans):
        if merged and begin <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((begin, end))
    return merged


# What is compared with: no overlap, and heads in order


@contextmanager
def waited() -> Iterator[None]:
    """All-to-alls are waited for where they start."""

    def start(*given: Any) -> Tensor:
        return wait(start_all_to_all(*given))

    exchange.start_all_to_all = start
    try:
        yield
    finally:
        exchange.start_all_to_all = start_all_to_all


@contextmanager
def heads_in_order() -> Iterator[None]:
    """Heads go to ranks as they are numbered, whatever they cost."""
    dealt = parallel.deal_heads

    def in_order(costs: Tensor, ranks: int) -> tuple[Tensor, ...]:
        return torch.arange(len(costs), device=costs.device).tensor_split(ranks)

    parallel.deal_heads = in_order
    try:
        yield
    finally:
        parallel.deal_heads = dealt


WITHOUT: dict[str | None, Callable[[], AbstractContextManager[None]]] = {
    None: nullcontext,
    "waited": waited,
    "in-order": heads_in_order,
}
