"""Merge in plain PyTorch: outputs of LOW heads return from low tokens to all tokens."""

from __future__ import annotations

from torch import Tensor

from freqformer.bands import interpolate, synthesize
from freqformer.ops.tokens import TokenOrder, reorder
from freqformer.plan import AttentionPlan


def expand_low(low: Tensor, plan: AttentionPlan, token_order: TokenOrder) -> Tensor:
    """Outputs on low tokens (R, M, D) to outputs on all tokens (R, N, D) in `token_order`."""
    expand = interpolate if plan.config.low_output == "interpolate" else synthesize
    return reorder(expand(low, plan.layout, plan.config), plan.layout, "raster", token_order)
