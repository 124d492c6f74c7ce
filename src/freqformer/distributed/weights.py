"""Weights that ranks share by FSDP2: each holds a part, and has a block's whole while it runs."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, TypeVar

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

from freqformer.distributed.mesh import CP, DP_REPLICATE, DP_SHARD

Model = TypeVar("Model", bound=nn.Module)


def shard_weights(
    model: Model,
    mesh: DeviceMesh,
    dtype: torch.dtype | None = None,
    blocks: Collection[str] | None = None,
) -> Model:
    """Shard a model's weights over `dp_shard` and `cp`, block by block; `dp_replicate` copies them.

    After a backward every gradient is summed over the ranks that share a video and averaged over
    the others: that of one GPU, where each takes the mean loss of its own videos.

    Args:
        model: alike on all ranks, on the CPU or their device, to which it goes block by block;
            changed in place. Its `_no_split_modules` name the classes of its blocks, as in
            diffusers.
        mesh: from `make_mesh`.
        dtype: that weights are gathered and gradients computed in, such as bfloat16; gradients are
            added in float32, and routers keep float32. None keeps the weights' own.
        blocks: names of the classes of its blocks, where `_no_split_modules` has others.

    Returns: the model. Its parameters are DTensors; make the optimizer from them.

    Raises:
        ValueError: for a mesh that lacks a dimension.
    """
    names = mesh.mesh_dim_names or ()
    missing = [name for name in (DP_REPLICATE, DP_SHARD, CP) if name not in names]
    if missing:
        raise ValueError(
            f"mesh has dimensions {names} and lacks {missing}; all of dp_replicate, dp_shard and "
            "cp are allowed: make it with make_mesh"
        )
    # Inputs keep their dtype: a timestep in bfloat16 would be another one.
    policy = MixedPrecisionPolicy(
        param_dtype=dtype,
        reduce_dtype=None if dtype is None else torch.float32,
        cast_forward_inputs=False,
    )
    whole = MixedPrecisionPolicy(cast_forward_inputs=False)
    over = _shards(mesh)
    if blocks is None:
        blocks = set(getattr(model, "_no_split_modules", None) or ())
    for module in list(model.modules()):
        if type(module).__name__ not in blocks:
            continue
        for name, part in module.named_modules():
            if name.endswith("router") and any(True for _ in part.parameters()):
                fully_shard(part, mesh=over, mp_policy=whole)
        fully_shard(module, mesh=over, mp_policy=policy)
    fully_shard(model, mesh=over, mp_policy=policy)
    _sum_over_context(model, mesh)
    return model


def _shards(mesh: DeviceMesh) -> DeviceMesh:
    """The mesh as FSDP2 takes it: shards, or copies of shards."""
    copies = mesh[DP_REPLICATE].size()
    if copies == 1:
        return DeviceMesh(mesh.device_type, mesh.mesh.flatten(), mesh_dim_names=(DP_SHARD,))
    ranks = mesh.mesh.view(copies, -1)
    return DeviceMesh(mesh.device_type, ranks, mesh_dim_names=(DP_REPLICATE, DP_SHARD))


def _sum_over_context(model: Any, mesh: DeviceMesh) -> None:
    """FSDP2 averages over all ranks, which would make gradients of ranks that share a video too
    small by their number."""
    videos = mesh[DP_REPLICATE].size() * mesh[DP_SHARD].size()
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(videos)
            if mesh.device_type == "cpu":
                # gloo adds, and can't multiply meanwhile as NCCL does.
                module.set_force_sum_reduction_for_comms(True)
