"""Gradients of weights that every rank holds whole."""

from __future__ import annotations

import torch
from torch import distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh

from freqformer.distributed.context import ContextParallel


@torch.no_grad()
def average_gradients(model: nn.Module, ranks: int) -> None:
    """Give every rank the mean of all ranks' gradients, without a wait of the host.

    Args:
        model: whose weights are alike on all ranks of the process group. Trained ones without
            gradient count as zero, and get one.
        ranks: of the process group; with 1 nothing is done.
    """
    if ranks == 1:
        return
    started = []
    for parameter in model.parameters():
        if not parameter.requires_grad:
            continue
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        parameter.grad.div_(ranks)
        started.append(dist.all_reduce(parameter.grad, async_op=True))
    for one in started:
        if one is not None:
            one.wait()


@torch.no_grad()
def sum_gradients(model: nn.Module, mesh: DeviceMesh) -> None:
    """Add the gradients of the ranks that share a video, so that each has that of one process.

    For loops of your own without FSDP2, before the optimizer's step; `shard_weights` does it by
    itself. Over data-parallel ranks the caller averages.

    Args:
        model: whose weights are alike on all ranks.
        mesh: with a dimension `cp`.
    """
    context = ContextParallel.of(mesh)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not trained:
        return
    device = trained[0].device
    # A band that none of a rank's heads has may leave a weight without gradient there.
    there = torch.tensor([parameter.grad is not None for parameter in trained], device=device)
    counted = there.int()
    dist.all_reduce(counted, group=context.group)
    for parameter, ranks in zip(trained, counted.tolist(), strict=True):
        if not ranks:
            continue
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        dist.all_reduce(parameter.grad, group=context.group)
