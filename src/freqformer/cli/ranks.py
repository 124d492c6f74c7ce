"""Commands under torchrun: all ranks work, the first one speaks and writes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from freqformer.cli.devices import chosen_device


def is_main_rank() -> bool:
    """Whether this process speaks: the first one that torchrun started, or the only one."""
    return os.environ.get("RANK", "0") == "0"


def rank_device(named: str | None) -> torch.device:
    """The device of this rank: a GPU of its own where `--device` is left out and there are GPUs.

    Raises:
        ValueError: as `chosen_device`.
    """
    device = chosen_device(named)
    local = os.environ.get("LOCAL_RANK")
    if named is not None or local is None or device.type != "cuda":
        return device
    return chosen_device(f"cuda:{local}")


@contextmanager
def sharing_video(model: Any, device: torch.device) -> Iterator[None]:
    """Let all ranks that torchrun started share each video of a model; nothing for one.

    Raises:
        ValueError: for more ranks than a layer has heads.
    """
    from freqformer.distributed.mesh import launched_ranks

    ranks = launched_ranks()
    if ranks == 1:
        yield
        return
    from torch import distributed as dist

    from freqformer.distributed import make_mesh, parallelize

    if device.type == "cuda":
        torch.cuda.set_device(device)
    parallelize(model, make_mesh(cp=ranks, device_type=device.type))
    try:
        yield
    finally:
        dist.destroy_process_group()
