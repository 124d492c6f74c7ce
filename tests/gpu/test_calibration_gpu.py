"""Calibration through the fused kernels: the errors of the CPU's code, and a table that runs."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

pytest.importorskip("diffusers")

from freqformer import FreqFormerConfig, FreqFormerTransformer3DModel
from freqformer.calibration import Candidates, calibrate

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]
CONFIG = FreqFormerConfig(
    tile=(2, 4, 4), compression=8, window=(1, 3, 3), mid_tiles=4, summary_tokens=16
)


def test_errors_are_those_of_the_cpu():
    torch.manual_seed(0)
    model = FreqFormerTransformer3DModel(
        patch_size=(1, 2, 2),
        num_layers=2,
        num_attention_heads=3,
        attention_head_dim=32,
        frequency=replace(CONFIG, allocation="dense", routing="fixed", low_branch=False),
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    clips = [torch.randn(2, 3, 6, 32, 24) for _ in range(2)]
    options = {
        "candidates": Candidates(CONFIG, (2, 4, 8), ((1, 3, 3), (3, 3, 3))),
        "num_buckets": 2,
        "progress": False,
    }
    _, expected = calibrate(model, clips, 0.2, **options)
    for dtype, limit in ((torch.float32, 1e-3), (torch.bfloat16, 0.02)):
        model.to("cuda", dtype)
        table, found = calibrate(model, clips, 0.2, **options)
        again, _ = calibrate(model, clips, 0.2, **options)
        assert float((found.errors - expected.errors).abs().max()) < limit
        assert torch.equal(table.bands, again.bands)
    video, timestep = (
        clips[0].to("cuda", torch.bfloat16),
        torch.tensor([100.0, 900.0], device="cuda"),
    )
    with torch.no_grad():
        dense = model(video, timestep).sample.float()
        errors = []
        for tolerance in (1e-6, 0.2, 10.0):
            model.set_routing_table(found.choose(tolerance).table)
            errors.append(
                float((model(video, timestep).sample.float() - dense).norm() / dense.norm())
            )
    assert errors[0] < 0.02
    assert errors[0] <= errors[1] <= errors[2]
