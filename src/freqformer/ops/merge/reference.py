"""Merge in plain PyTorch: outputs of LOW heads return from low tokens to all tokens, and a LOW
branch is added to a head's own band."""

from __future__ import annotations

import torch
from torch import Tensor

from freqformer.bands import interpolate, synthesize
from freqformer.ops.tokens import TokenOrder, reorder
from freqformer.plan import AttentionPlan


def expand_low(low: Tensor, plan: AttentionPlan, token_order: TokenOrder) -> Tensor:
    """Outputs on low tokens (R, M, D) to outputs on all tokens (R, N, D) in `token_order`."""
    expand = interpolate if plan.config.low_output == "interpolate" else synthesize
    return reorder(expand(low, plan.layout, plan.config), plan.layout, "raster", token_order)


def gated_sum(
    own: Tensor, low: Tensor, gates: Tensor | None, weights: Tensor | None = None
) -> Tensor:
    """A head's own branch and a LOW branch: (1 + g[0]) * own + g[1] * low, with g = gates
    + weights.

    Gates of zero leave the own branch as it is, so that a layer can be given them at any time.

    Args:
        own, low: outputs (B, N, H, D).
        gates: of every token, (B, N, 2, H); None for none.
        weights: of every sample, (B, 2, H); None for none; in addition to gates.

    Returns: (B, N, H, D) in the dtype of `own`.
    """
    given = (gates, None if weights is None else weights[:, None])
    first, *others = (x for x in given if x is not None)
    own_gate, low_gate = sum(others, first).to(own.dtype)[..., None].unbind(2)
    return torch.addcmul(torch.addcmul(own, own, own_gate), low, low_gate)
