"""The ranks of a run by what they share: copies of the weights, shards of them, one video."""

from __future__ import annotations

import os

import torch
from torch import distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from freqformer._validate import check_whole

DP_REPLICATE = "dp_replicate"
DP_SHARD = "dp_shard"
CP = "cp"


def make_mesh(
    dp_replicate: int = 1, dp_shard: int = 1, cp: int = 1, *, device_type: str | None = None
) -> DeviceMesh:
    """The mesh of all ranks that run, with dimensions `dp_replicate`, `dp_shard` and `cp`.

    Ranks that are next to one another share a video, since they exchange most. The process group is
    made where there is none yet.

    Args:
        dp_replicate: copies of the weights.
        dp_shard: ranks over which one copy is sharded, in addition to `cp`.
        cp: ranks that share one video's tokens.
        device_type: `cuda` or `cpu`; None takes GPUs where there are any.

    Raises:
        ValueError: for degrees below 1, or whose product is not the number of ranks.
    """
    degrees = {DP_REPLICATE: dp_replicate, DP_SHARD: dp_shard, CP: cp}
    for name, degree in degrees.items():
        check_whole(name, degree, 1)
    asked = dp_replicate * dp_shard * cp
    ranks = num_ranks()
    if asked != ranks:
        raise ValueError(
            f"dp_replicate x dp_shard x cp is {dp_replicate} x {dp_shard} x {cp} = {asked} and "
            f"{ranks} ranks run; as many as the product are allowed: start them by torchrun "
            f"--nproc-per-node {asked}, or choose other degrees"
        )
    if device_type is None:
        device_type = "cuda" if torch.cuda.is_available() else "cpu"
    return init_device_mesh(
        device_type, tuple(degrees.values()), mesh_dim_names=tuple(degrees.keys())
    )


def launched_ranks() -> int:
    """Processes that torchrun started along with this one; 1 without it."""
    started = os.environ.get("WORLD_SIZE", "")
    return int(started) if started.isdecimal() else 1


def num_ranks() -> int:
    """Processes of the run: of the process group, else what torchrun says, else 1.

    Raises:
        ValueError: where no launcher started this process and no group is there.
    """
    if dist.is_available() and dist.is_initialized():
        return dist.get_world_size()
    started = os.environ.get("WORLD_SIZE", "")
    if not started.isdecimal():
        raise ValueError(
            "WORLD_SIZE is not set, so no launcher started this process; ranks of a mesh are "
            "allowed: start it by torchrun --nproc-per-node N"
        )
    return int(started)
