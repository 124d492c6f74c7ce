"""A small dense model with random weights, clips for it, and a calibration of made-up errors."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from freqformer import FreqFormerConfig, FreqFormerTransformer3DModel
from freqformer.calibration import Calibration, Candidates
from freqformer.grid import Grid

CONFIG = FreqFormerConfig(
    tile=(2, 2, 3), compression=16, window=(1, 1, 1), mid_tiles=2, summary_tokens=6
)
CANDIDATES = Candidates(CONFIG, (1, 2, 4), ((1, 1, 1), (1, 2, 2)))


def dense(config: FreqFormerConfig) -> FreqFormerConfig:
    """The record with exact attention in every head."""
    return replace(config, allocation="dense", routing="fixed", low_branch=False)


def make_dense_model() -> FreqFormerTransformer3DModel:
    """Two layers of three heads for clips (2, 5, 8, 12), whose heads differ in how sharply they
    attend."""
    torch.manual_seed(0)
    sizes = {
        "in_channels": 2,
        "patch_size": (1, 2, 2),
        "num_layers": 2,
        "num_attention_heads": 3,
        "attention_head_dim": 8,
    }
    model = FreqFormerTransformer3DModel(**sizes, frequency=dense(CONFIG))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def make_clips() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(2, 2, 5, 8, 12, generator=generator) for _ in range(3)]


@pytest.fixture
def dense_model() -> FreqFormerTransformer3DModel:
    return make_dense_model()


@pytest.fixture
def clips() -> list[torch.Tensor]:
    return make_clips()


@pytest.fixture
def made_up() -> Calibration:
    """Errors of 3 buckets, 4 layers and 5 heads that fall with the cost, roughly as measured ones
    do."""
    grid = Grid(5, 4, 6)
    costs = torch.tensor(CANDIDATES.costs(grid, num_heads=5, head_dim=8), dtype=torch.float64)
    generator = torch.Generator().manual_seed(2)
    spread = torch.rand(3, 4, 5, len(costs) - 1, generator=generator, dtype=torch.float64)
    return Calibration(0.05 + spread * (1 - costs[:-1] / costs[-1]), costs, CANDIDATES, grid)
