"""Branches of one head, added up by gates."""

from __future__ import annotations

import torch
from torch import Tensor


def gated_sum(own: Tensor, low: Tensor, gates: Tensor) -> Tensor:
    """A head's own branch and a LOW branch beside it: (1 + gates[0]) * own + gates[1] * low.

    Gates of zero leave the own branch as it is, so that a layer can be given them at any time.

    Args:
        own, low: outputs (B, N, H, D).
        gates: (B, N, 2, H).

    Returns: (B, N, H, D) in the dtype of `own`.
    """
    own_gate, low_gate = gates.to(own.dtype)[..., None].unbind(2)
    return torch.addcmul(torch.addcmul(own, own, own_gate), low, low_gate)
