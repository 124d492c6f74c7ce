"""What two ranks call in which order, whether that changes a bit, and what they say of one that
stops answering or dies: to FOLDER/overlap-RANK.json. A script of `tests.support.ranks`."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from tests.support.ranks import join
from tests.support.recorded_calls import RecordedCalls
from tests.support.shared_layers import HEAD_DIM, HEADS, PAPER, RAGGED, SOFT, TIMESTEP
from torch import Tensor
from torch import distributed as dist

from freqformer.attention import FreqAttention
from freqformer.distributed import ContextParallel, exchange, make_mesh, parallelize, shard_tokens
from freqformer.distributed.collective import start_all_to_all, wait
from freqformer.grid import tile_layout

CONFIGS = {
    "default": SOFT,
    "paper": PAPER,
    "fixed": replace(SOFT, routing="fixed", allocation="thirds"),
}
TIMEOUT_S = 2.0


@contextmanager
def not_overlapped() -> Iterator[None]:
    """Every all-to-all is waited for where it starts."""

    def start(*given: Any) -> Tensor:
        return wait(start_all_to_all(*given))

    exchange.start_all_to_all = start
    try:
        yield
    finally:
        exchange.start_all_to_all = start_all_to_all


def call(name: str, mesh: Any, dtype: torch.dtype, around: Any = None) -> dict[str, Any]:
    """Output and gradients of one layer, as lists; the order of calls where `around` is None."""
    torch.manual_seed(0)
    layer: Any = FreqAttention(HEADS * HEAD_DIM, HEADS, CONFIGS[name])
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    layer = parallelize(layer.to(dtype), mesh)
    layer.router.float()
    draw = torch.Generator().manual_seed(1)
    hidden = torch.randn(3, RAGGED.num_tokens, HEADS * HEAD_DIM, generator=draw).to(dtype)
    layout = tile_layout(RAGGED, CONFIGS[name].tile)
    own = shard_tokens(hidden, layout, ContextParallel.of(mesh)).clone().requires_grad_()
    with RecordedCalls(layer) as recorded, around or nullcontext():
        out = layer(own, RAGGED, TIMESTEP, token_order="tile")
        recorded.calls.append("backward")
        out.square().sum().backward()
    found = {"output": out.detach(), "input": own.grad}
    found |= {name: x.grad for name, x in layer.named_parameters() if x.grad is not None}
    with torch.no_grad():
        found["without gradient"] = layer(own, RAGGED, TIMESTEP, token_order="tile")
    return {"calls": recorded.calls, "found": found}


def compared(name: str, mesh: Any, dtype: torch.dtype) -> dict[str, Any]:
    """The calls in order, and what differs in any bit where nothing overlaps."""
    found = call(name, mesh, dtype)
    waited = call(name, mesh, dtype, not_overlapped())
    differ = [key for key, x in found["found"].items() if not torch.equal(x, waited["found"][key])]
    same = torch.equal(found["found"]["output"], found["found"]["without gradient"])
    return {
        "calls": found["calls"],
        "calls waited for": waited["calls"],
        "differ": differ if same else [*differ, "without gradient"],
        "finite": all(bool(x.isfinite().all()) for x in found["found"].values()),
    }


def refusal_of(group: Any) -> str:
    """What an all-to-all with a rank that does not answer ends with."""
    try:
        wait(start_all_to_all(torch.zeros(4), [2, 2], [2, 2], group))
    except RuntimeError as error:
        return str(error)
    return ""


def stop_answering(folder: Path, rank: int) -> dict[str, str]:
    """One rank is silent for longer than the group's timeout, and then dies."""
    group = dist.new_group(timeout=timedelta(seconds=TIMEOUT_S))
    silent = folder / "silence is over"
    if rank == 1:
        while not silent.exists():
            time.sleep(0.05)
        os._exit(0)
    found = {"silent": refusal_of(group)}
    silent.touch()
    return found | {"dead": refusal_of(dist.group.WORLD)}


if __name__ == "__main__":
    folder, rank, ranks = join()
    exchange.SPLIT_TOKENS = 40  # the output comes back in two messages
    mesh = make_mesh(cp=ranks, device_type="cpu")
    found: dict[str, Any] = {name: compared(name, mesh, torch.float32) for name in CONFIGS}
    found["bf16"] = compared("default", mesh, torch.bfloat16)
    (folder / f"overlap-{rank}.json").write_text(json.dumps(found), encoding="utf-8")
    found |= stop_answering(folder, rank)
    (folder / f"overlap-{rank}.json").write_text(json.dumps(found), encoding="utf-8")
    os._exit(0)  # the group has lost a rank, and would wait for it
