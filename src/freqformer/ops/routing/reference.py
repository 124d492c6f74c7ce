"""The router's statistics in plain PyTorch: `routing.statistics`, with the norm of queries and keys
before it."""

from __future__ import annotations

import torch
from torch import Tensor

from freqformer.config import FreqFormerConfig
from freqformer.grid import Grid
from freqformer.ops.tokens import rms_norm
from freqformer.routing.statistics import SampleOrder, read_sample, sample_statistics

Features = tuple[Tensor, Tensor, Tensor]
"""Query and key (B, N, H, D) before their norm, and the layer's input (B, N, C)."""
Norms = tuple[Tensor | None, Tensor | None]
"""Weights of the RMS norm of queries and of keys, (D,); None for no norm."""
Inputs = tuple[Features, Norms, float, Grid, FreqFormerConfig, SampleOrder]
"""What `statistics` takes, in its order."""


@torch.no_grad()
def statistics(
    features: Features,
    norms: Norms,
    eps: float,
    grid: Grid,
    config: FreqFormerConfig,
    token_order: SampleOrder,
) -> Tensor:
    """The statistics (B, H, 8), float32, of features in `token_order`: only tokens of the sample
    are read or normalised."""
    query, key, hidden_states = (read_sample(x, grid, config, token_order) for x in features)
    query_norm, key_norm = norms
    return sample_statistics(
        rms_norm(query, query_norm, eps),
        rms_norm(key, key_norm, eps),
        hidden_states,
        grid,
        config,
    )
