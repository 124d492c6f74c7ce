"""A converted model whose blocks are compiled, in a process without run-time type checks:
`python -m tests.support.compiled_adapters` prints the graphs of windows and of tiles, and their
largest difference."""

from __future__ import annotations

import json

import torch
from tests.integrations.converted.test_learned import TILES, fresh, moved
from tests.support.tiny_conversions import FAMILIES, WINDOWS, velocity
from torch._dynamo.utils import counters

from freqformer.integrations.diffusers import enable_frequency_attention


@torch.no_grad()
def main() -> None:
    """Two timesteps, plain and compiled."""
    graphs, most = [], 0.0
    for windows in (WINDOWS, TILES):
        torch._dynamo.reset()
        counters.clear()
        model, given = FAMILIES["wan"]()
        with enable_frequency_attention(model, adapter=moved(fresh(model, windows))):
            plain = [velocity(model, given, timestep) for timestep in (500.0, 100.0)]
            for block in model.blocks:
                block.compile(fullgraph=True, backend="eager")
            found = [velocity(model, given, timestep) for timestep in (500.0, 100.0)]
        graphs.append(counters["stats"]["unique_graphs"])
        differences = [float((a - b).abs().max()) for a, b in zip(plain, found, strict=True)]
        most = max(most, *differences)
    print(json.dumps({"graphs": graphs, "most": most}))


if __name__ == "__main__":
    main()
