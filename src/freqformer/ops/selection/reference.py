"""Selection in plain PyTorch. The choice itself is `patterns.topk_tiles`."""

from __future__ import annotations

import torch
from torch import Tensor

from freqformer.plan import AttentionPlan


def unseen_bias(lists: Tensor, plan: AttentionPlan) -> Tensor:
    """log(tokens of every cell that a query tile doesn't see exactly), -inf where none is left.

    Args:
        lists: key tiles of every query tile (R, T, L), -1 behind the end.
        plan: the plan of the call.

    Returns: float32 (R, T, C).
    """
    counts, cells = plan.layout.counts.to(lists.device), plan.cells
    listed = lists.long().clamp_min(0)
    seen = torch.where(lists >= 0, counts[listed], 0)
    left = cells.counts.to(lists.device).expand(*lists.shape[:2], -1).clone()
    return left.scatter_add_(2, cells.cell_of_tile.to(lists.device)[listed], -seen).float().log()
