"""Training passes of study variants compiled whole, beside the same not compiled, as a program:
`python -m tests.support.compiled_variants NAME ...` prints the difference of each."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any

import torch
from benchmarks.quality.building import build
from benchmarks.quality.sizes import Size
from benchmarks.quality.variants import VARIANTS
from torch import Tensor

TINY = Size(video=(4, 16, 16), layers=1, head_dim=16, batch=2)


def gradients(model: Any) -> list[Tensor]:
    """Of one training pass, by parameter."""
    draw = torch.Generator().manual_seed(0)
    video = torch.randn(2, 3, *TINY.video, generator=draw)
    model.zero_grad()
    torch.manual_seed(0)  # of a router's draws
    with torch.autocast("cpu", torch.bfloat16):
        out = model(video, torch.tensor([200.0, 900.0])).sample
    out.float().square().mean().backward()
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


def difference(name: str) -> float:
    """Largest difference of any gradient, compiled less not compiled, over the largest entry."""
    torch.compiler.reset()
    variant = VARIANTS[name]
    if variant.linear == "others":  # so that some of the four tiles are left
        variant = replace(variant, config=replace(variant.config, mid_tiles=2))
    model: Any = build(variant, TINY, 0).train()
    torch.manual_seed(1)
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    if variant.learned:
        model.set_router_training("sampled")
    plain = gradients(model)
    model.compile_repeated_blocks(fullgraph=True, dynamic=False, backend="aot_eager")
    pairs = zip(plain, gradients(model), strict=True)
    largest = max(float(one.abs().max()) for one in plain)
    return max(float((one - other).abs().max()) for one, other in pairs) / largest


if __name__ == "__main__":
    for wanted in sys.argv[1:]:
        print(wanted, difference(wanted))
