"""AdamW, and which weights decay."""

from __future__ import annotations

import torch
from torch import nn

from freqformer.training.config import OptimizerConfig


def adamw(model: nn.Module, settings: OptimizerConfig) -> torch.optim.AdamW:
    """The optimizer of a model's trained parameters: matrices decay, vectors (norms, biases)
    don't."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=settings.peak_rate,
        betas=settings.betas,
    )
