"""Tables of a plan: made once by whoever reads them, kept by the plan, freed with it.

Each operation makes its own in `ops/NAME/tables.py`; here is what they share.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, wraps
from typing import Concatenate, ParamSpec, TypeVar

import torch
from torch import Tensor

from freqformer.plan import AttentionPlan

Others = ParamSpec("Others")
Table = TypeVar("Table")
_THREAD = threading.local()


def kept_by_plan(
    make: Callable[Concatenate[AttentionPlan, Others], Table],
) -> Callable[Concatenate[AttentionPlan, Others], Table]:
    """The function, run once for every plan and other arguments, which must be hashable.

    Results lie in `AttentionPlan.kept`. No other cache may hold them: a launch that was recorded
    reads them for as long as there is the plan, and not longer.
    """

    @wraps(make)
    def kept(plan: AttentionPlan, *others: Others.args, **named: Others.kwargs) -> Table:
        def made() -> Table:
            with torch.inference_mode(False):  # what is kept must also serve training
                return make(plan, *others, **named)

        key = (make, others, *named.items())
        if key not in plan.kept:
            cuda = any(isinstance(x, torch.device) and x.type == "cuda" for x in others)
            plan.kept.setdefault(key, _outside_of_graphs(made) if cuda else made())
        return plan.kept[key]

    return kept


def _outside_of_graphs(make: Callable[[], Table]) -> Table:
    """What it makes, in memory that belongs to no CUDA graph.

    While torch.compile warms a graph up, what its thread and stream allocate lies in the graph's
    pool, and later recordings write there. Another thread has neither.
    """
    if getattr(_THREAD, "is_other", False):
        # A table that another one is made of: the only worker would wait for itself.
        return make()
    return _other_thread(os.getpid()).submit(make).result()


@lru_cache(maxsize=1)
def _other_thread(process: int) -> ThreadPoolExecutor:
    """One thread for all tables of a process, since a new one brings a new team of OpenMP's
    threads with it; a forked process hasn't got its parent's."""

    def begin() -> None:
        _THREAD.is_other = True

    return ThreadPoolExecutor(1, "freqformer-tables", begin)


def upload(x: Tensor, device: torch.device, dtype: torch.dtype = torch.int32) -> Tensor:
    """x as kernels read it: in one piece of memory on the device, and no wider than it need be."""
    return x.to(dtype).contiguous().to(device)


@dataclass(frozen=True, eq=False)
class TileOrder:
    """Where tiles and their tokens lie, which every launch reads. Shape legend: N video tokens, T
    tiles."""

    offsets: Tensor
    """First token of every tile in tile order, and N: int32 (T + 1,)."""
    raster: Tensor
    """Raster place of every token in tile order, int32 (N,)."""


@kept_by_plan
def tile_order(plan: AttentionPlan, device: torch.device) -> TileOrder:
    """The plan's tile order on a device."""
    layout = plan.layout
    return TileOrder(upload(layout.offsets, device), upload(layout.raster_to_tile, device))
