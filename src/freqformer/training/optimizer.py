"""AdamW, and which weights decay."""

from __future__ import annotations

import torch
from torch import nn

from freqformer.training.adamw8bit import AdamW8bit
from freqformer.training.config import OptimizerConfig


def adamw(model: nn.Module, settings: OptimizerConfig) -> torch.optim.Optimizer:
    """The optimizer of a model's trained parameters: matrices decay, vectors (norms, biases)
    don't."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    kind = AdamW8bit if settings.kind == "adamw8bit" else torch.optim.AdamW
    return kind(
        [group for group in groups if group["params"]],
        lr=settings.peak_rate,
        betas=settings.betas,
    )
