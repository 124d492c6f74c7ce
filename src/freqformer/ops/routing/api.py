"""Scores of a layer's heads by its router, whichever code runs."""

from __future__ import annotations

import torch
from torch import Tensor

from freqformer.ops.routing import reference
from freqformer.ops.routing.reference import Inputs
from freqformer.routing import RoutingNetwork, allocate


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
    given = inputs if network.num_statistics else None
    take = reference.statistics
    if fused:
        # Imported here, since Triton decides at import whether it interprets, and a CPU may have no
        # Triton at all.
        from freqformer.ops.routing.triton import launch

        if not torch.is_grad_enabled():
            return launch.score(network, timestep, given)
        take = launch.statistics
    logits = network(None if given is None else take(*given), timestep)
    return logits, allocate(logits)
