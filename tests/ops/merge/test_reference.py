"""Outputs of LOW heads return to all tokens."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from freqformer.bands import interpolate, synthesize
from freqformer.config import FreqFormerConfig
from freqformer.grid import Grid
from freqformer.ops.merge import expand_low
from freqformer.plan import build_plan


@pytest.mark.parametrize("low_output", ["interpolate", "inverse_dct"])
def test_expand_low(low_output: Any) -> None:
    config = FreqFormerConfig(tile=(2, 2, 4), compression=32, low_output=low_output)
    plan = build_plan(Grid(3, 5, 7), config, num_heads=1, head_dim=4)
    low = torch.randn(2, plan.num_low_tokens, 4, dtype=torch.float64)
    wanted = {"interpolate": interpolate, "inverse_dct": synthesize}[low_output](
        low, plan.layout, config
    )
    assert torch.equal(expand_low(low, plan, "raster"), wanted)
    assert torch.equal(expand_low(low, plan, "tile"), wanted[:, plan.layout.raster_to_tile])
