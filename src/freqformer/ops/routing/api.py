"""Scores of a layer's heads by its router, whichever code runs."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from freqformer.ops.routing import reference
from freqformer.ops.routing.reference import Inputs
from freqformer.routing import RoutingNetwork, allocate, branch_weights
from freqformer.routing.table import bands_at


class OwnBands(NamedTuple):
    """The band that each head of a layer has itself, LOW, MID or HIGH."""

    known: tuple[int, ...]
    on_device: Tensor
    """The same, int64 (H,)."""


def score(
    network: RoutingNetwork, timestep: Tensor, inputs: Inputs, *, fused: bool
) -> tuple[Tensor, Tensor]:
    """Logits and the best bands of a layer's heads.

    Args:
        network: the layer's router.
        timestep: (B,) in [0, 1].
        inputs: of `reference.statistics`; not read by a network that is made without statistics.
        fused: whether Triton runs: the statistics while gradients are on, all of it else.

    Returns: logits (B, H, 3), float32 at least, and bands int64 (B, H), the first of the largest.
    """
    if fused and not torch.is_grad_enabled():
        # Imported here, since Triton decides at import whether it interprets, and a CPU may have no
        # Triton at all.
        from freqformer.ops.routing.triton import launch

        return launch.score(network, timestep, inputs if network.num_statistics else None)
    logits = _logits(network, timestep, inputs, fused)
    return logits, allocate(logits)


def weigh(
    network: RoutingNetwork, timestep: Tensor, inputs: Inputs, own: OwnBands, *, fused: bool
) -> tuple[Tensor, Tensor]:
    """Logits (B, H, 3) as of `score`, and their `branch_weights` (B, 2, H).

    Args:
        network, timestep, inputs, fused: as `score` takes them.
        own: the layer's bands.
    """
    if fused and not torch.is_grad_enabled():
        from freqformer.ops.routing.triton import launch

        given = inputs if network.num_statistics else None
        return launch.weigh(network, timestep, given, own.on_device)
    logits = _logits(network, timestep, inputs, fused)
    return logits, branch_weights(logits, own.known)


def _logits(network: RoutingNetwork, timestep: Tensor, inputs: Inputs, fused: bool) -> Tensor:
    """Logits by the network in PyTorch, which gradients flow through."""
    if not network.num_statistics:
        return network(None, timestep)
    take = reference.statistics
    if fused:
        from freqformer.ops.routing.triton import launch

        take = launch.statistics
    return network(take(*inputs), timestep)


def look_up(bands: Tensor, timestep: Tensor, *, fused: bool) -> Tensor:
    """The bands of every timestep's bucket, as `bands_at`: (T, H) and (B,) -> (B, H).

    Args:
        bands, timestep: of the table and of the samples.
        fused: whether Triton runs, in one launch. Compiled graphs make one of PyTorch's operations,
            and tensors without data launch nothing.
    """
    if not fused or bands.is_meta or torch.compiler.is_compiling():
        return bands_at(bands, timestep)
    from freqformer.ops.routing.triton import table

    return table.look_up(bands, timestep)
