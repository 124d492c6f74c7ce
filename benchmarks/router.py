"""What a router costs a layer at every call, where it chooses bands and where it weighs branches.

The first is measured as the live router's launches beside the layer with frozen bands; the second,
soft routing, as a whole `FreqAttention` with it beside one whose gates go by the token alone.

Needs a CUDA GPU, and no package beside torch and Triton:

    PYTHONPATH=src python benchmarks/router.py [--output FOLDER]

Writes router.json. The router's logits are checked against those of plain PyTorch before anything
is timed.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

import record
from freqformer.attention import FreqAttention
from freqformer.config import WEIGHING
from freqformer.grid import Grid
from freqformer.ops.routing.triton import launch
from freqformer.routing import RoutingNetwork
from layer import (
    BENCH,
    CACHE_BYTES,
    HEAD_DIM,
    LAYERS,
    SCALING_HEADS,
    Layer,
    live_router,
    make_layer,
)

CASES = {"64K": (Grid(16, 64, 64), SCALING_HEADS), "hunyuan": LAYERS["hunyuan"]}
"""Token grid and heads: few heads and few tokens, where two launches weigh most, and a whole layer
of 720p video."""
CALLS = 20
"""Of the router in one captured graph."""
REPEATS = 50


def difference_ms(short: Callable[[], object], long: Callable[[], object]) -> tuple[float, float]:
    """Median time of the short call, and by how much the long one exceeds it, the two replayed in
    turns.

    In turns, so that a clock that drifts weighs on both alike.
    """
    graphs = [record.capture(call) for call in (short, long)]
    times: list[list[float]] = [[], []]
    for _ in range(REPEATS):
        for graph, kept in zip(graphs, times, strict=True):
            kept.append(record.median_ms(graph.replay, repeats=1, warmup=1))
    more = torch.tensor(times[1]) - torch.tensor(times[0])
    return float(torch.tensor(times[0]).median()), float(more.median())


@torch.no_grad()
def measure(layer: Layer) -> dict[str, Any]:
    """Launches by the profiler; the router's time in a graph of calls; what it adds to a graph of
    the layer."""
    query, key, value = layer.tensors
    given, device = layer.parameters, query.device
    found = live_router(layer, record.median_ms(layer.run))
    network = RoutingNetwork(query.shape[2], prior="noise_level", initial=layer.allocation).to(
        device
    )
    timestep = torch.tensor([0.5], device=device)
    features, norms = (query, key, value.flatten(2)), (given.query_norm, given.key_norm)
    inputs = (features, norms, given.norm_eps, layer.grid, layer.config, "raster")
    cache = torch.empty(CACHE_BYTES, dtype=torch.uint8, device=device)

    def choose() -> torch.Tensor:
        return launch.score(network, timestep, inputs)[1]

    def many(*calls: Callable[[], object]) -> None:
        for _ in range(CALLS):
            for call in calls:
                call()

    bands = choose()
    _, together = difference_ms(lambda: many(cache.zero_), lambda: many(cache.zero_, choose))
    frozen, added = difference_ms(lambda: layer.run(bands), lambda: layer.run(choose()))
    return {
        "grid": list(layer.grid.shape),
        "tokens": layer.grid.num_tokens,
        "heads": query.shape[2],
        "launches": found["launches"],
        "launches_ms": found["ms"],
        "difference_of_logits": found["difference_of_logits"],
        "router_in_graph_ms": together / CALLS,
        "layer_in_graph_ms": frozen,
        "added_to_layer_ms": added,
        "share_of_layer": found["ms"] / frozen,
        "added_share_of_layer": added / frozen,
    }


@torch.no_grad()
def measure_weighing(grid: Grid, heads: int) -> dict[str, dict[str, float]]:
    """What a router that weighs adds to a layer of windows with LOW beside them, projections
    included."""
    config, dim = replace(BENCH, summary_tokens=0), heads * HEAD_DIM
    calls = {}
    hidden = torch.randn(1, grid.num_tokens, dim, device="cuda", dtype=torch.bfloat16)
    timestep = torch.tensor([0.5], device="cuda")
    for routing in ("fixed", *WEIGHING):
        torch.manual_seed(0)
        layer = FreqAttention(dim, heads, replace(config, routing=routing))
        calls[routing] = partial(layer.to("cuda", torch.bfloat16).eval(), hidden, grid, timestep)
    found = {}
    for routing in WEIGHING:
        plain, added = difference_ms(calls["fixed"], calls[routing])
        found[routing] = {
            "layer_in_graph_ms": plain,
            "added_to_layer_ms": added,
            "added_share_of_layer": added / plain,
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "--output", type=Path, default=record.RESULTS, help="folder for router.json"
    )
    parser.add_argument("--commit", help="of this code, where the machine has no git")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("no CUDA GPU: this benchmark measures one")
    cases: dict[str, Any] = {}
    for name, (grid, heads) in CASES.items():
        cases[name] = case = measure(make_layer(grid, heads, BENCH))
        parts = ", ".join(f"{launch} {time:.1f}" for launch, time in case["launches"])
        shares = (
            f"{100 * case['share_of_layer']:.2f}% by launches "
            f"({100 * case['added_share_of_layer']:.2f}% by graphs)"
        )
        case["weighing"] = measure_weighing(grid, heads)
        print(f"{name:8} {parts} us of {case['layer_in_graph_ms']:.3f} ms: {shares}", flush=True)
        for routing, found in case["weighing"].items():
            more = (
                f"{1e3 * found['added_to_layer_ms']:.1f} us to {found['layer_in_graph_ms']:.3f} ms"
            )
            print(
                f"{name:8} {routing} routing adds {more}: "
                f"{100 * found['added_share_of_layer']:.2f}%",
                flush=True,
            )
    results = {"config": BENCH.to_dict(), "head_dim": HEAD_DIM, "dtype": "bfloat16", "cases": cases}
    print(f"wrote {record.save('router', results, arguments.output, arguments.commit)}")


if __name__ == "__main__":
    main()
