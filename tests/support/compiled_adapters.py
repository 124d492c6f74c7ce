"""A converted model whose blocks are compiled, in a process without run-time type checks:
`python -m tests.support.compiled_adapters` prints its graphs and its largest difference."""

from __future__ import annotations

import json

import torch
from tests.integrations.converted.test_learned import fresh, moved
from tests.support.tiny_conversions import FAMILIES, velocity
from torch._dynamo.utils import counters

from freqformer.integrations.diffusers import enable_frequency_attention


@torch.no_grad()
def main() -> None:
    """Two timesteps, plain and compiled."""
    model, given = FAMILIES["wan"]()
    with enable_frequency_attention(model, adapter=moved(fresh(model))):
        plain = [velocity(model, given, timestep) for timestep in (500.0, 100.0)]
        for block in model.blocks:
            block.compile(fullgraph=True, backend="eager")
        found = [velocity(model, given, timestep) for timestep in (500.0, 100.0)]
    most = max(float((a - b).abs().max()) for a, b in zip(plain, found, strict=True))
    print(json.dumps({"graphs": counters["stats"]["unique_graphs"], "most": most}))


if __name__ == "__main__":
    main()
