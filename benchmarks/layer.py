"""A whole attention layer beside dense attention: from projected queries, keys and values in raster
order to the output.

Norm and rotary embedding are part of it. Needs a CUDA GPU, and no package beside torch, Triton and
matplotlib:

    PYTHONPATH=src python benchmarks/layer.py [--output FOLDER]

Writes layer.json and layer.png. Every result is checked against float64 rows before it is timed.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

import record
from exact_rows import relative_errors
from freqformer.attention import frequency_attention
from freqformer.config import FreqFormerConfig
from freqformer.grid import Grid
from freqformer.ops import fused
from freqformer.ops.parameters import AttentionParameters
from freqformer.plan import AttentionPlan, build_plan
from freqformer.routing import RoutingNetwork, even_allocation

BENCH = FreqFormerConfig(compression=32, mid_tiles=32, window=(3, 3, 3), summary_tokens=256)
HEAD_DIM = 128
LAYERS = {
    "hunyuan": (Grid(30, 48, 80), 24),
    "wan": (Grid(21, 45, 80), 40),
}
"""Token grids of 720p clips, after patchify, and heads: HunyuanVideo's and Wan 14B's."""
SCALING = (16, 32, 64, 128, 256)
"""Frames of 64 x 64 tokens: from 65,536 to 1,048,576 tokens."""
SCALING_HEADS = 8
DENSE_LIMIT = 1 << 18
"""Most tokens at which dense attention is measured; beyond, its rate there is assumed."""
RAISED_DENSITY = 0.1
LARGEST_ERROR = 0.01
"""Relative error of a bfloat16 result against float64 at which a run stops."""
LARGEST_DIFFERENCE = 1e-3
"""Of the live router's logits from those of plain PyTorch, at which a run stops."""
CACHE_BYTES = 1 << 28
"""More than the GPU's cache holds."""


@dataclass(frozen=True, eq=False)
class Layer:
    """Inputs of one layer, a third of its heads in each band."""

    grid: Grid
    config: FreqFormerConfig
    tensors: tuple[Tensor, Tensor, Tensor]
    parameters: AttentionParameters
    allocation: list[int]
    plan: AttentionPlan

    def run(self, allocation: Tensor | None = None) -> Tensor:
        """The output (1, N, H, D), in raster order; None takes the layer's own allocation."""
        return frequency_attention(
            *self.tensors,
            grid=self.grid,
            allocation=self.allocation if allocation is None else allocation,
            config=self.config,
            parameters=self.parameters,
            plan=self.plan,
        )


def make_layer(grid: Grid, heads: int, config: FreqFormerConfig, *, learned: bool = False) -> Layer:
    """A layer of random inputs in bfloat16; `learned` adds mid and high summaries."""
    draw = torch.Generator("cuda").manual_seed(0)

    def normal(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(*shape, generator=draw, device="cuda", dtype=dtype)

    query, key, value = (
        normal(1, grid.num_tokens, heads, HEAD_DIM, dtype=torch.bfloat16) for _ in range(3)
    )
    angle = normal(grid.num_tokens, HEAD_DIM // 2) * 3
    parameters = AttentionParameters(
        summary_queries=normal(heads, 2, HEAD_DIM) if learned else None,
        summary_offsets=torch.tensor([0.0, -4.0, -4.0], device="cuda").expand(heads, 3)
        if learned
        else None,
        rotary=(angle.cos(), angle.sin()),
        query_norm=1 + normal(HEAD_DIM) * 0.1,
        key_norm=1 + normal(HEAD_DIM) * 0.1,
    )
    plan = build_plan(grid, config, num_heads=heads, head_dim=HEAD_DIM, learned_summaries=learned)
    return Layer(grid, config, (query, key, value), parameters, even_allocation(heads), plan)


def raised(grid: Grid, heads: int, density: float) -> FreqFormerConfig:
    """The bench configuration with the window, then the chosen tiles, raised until the plan has
    this density."""

    def reached(config: FreqFormerConfig) -> float:
        plan = build_plan(grid, config, num_heads=heads, head_dim=HEAD_DIM)
        return plan.density(even_allocation(heads))

    tiles = build_plan(grid, BENCH, num_heads=heads, head_dim=HEAD_DIM).layout.tiles
    config = BENCH
    # MID and HIGH share the work evenly: the window grows along the axis that it covers least.
    while reached(replace(config, mid_tiles=math.prod(config.window))) < density:
        shares = [width / total for width, total in zip(config.window, tiles, strict=True)]
        axis = shares.index(min(shares))
        window = [width + (i == axis) for i, width in enumerate(config.window)]
        config = replace(config, window=(window[0], window[1], window[2]))
    low, high = 1, math.prod(config.window)
    while low < high:
        middle = (low + high) // 2
        low, high = (
            (low, middle)
            if reached(replace(config, mid_tiles=middle)) >= density
            else (middle + 1, high)
        )
    return replace(config, mid_tiles=low)


def dense_ms(tensors: tuple[Tensor, Tensor, Tensor]) -> float:
    """Time of cuDNN's dense attention over the same tensors; its own layout, so that nothing is
    copied."""
    query, key, value = (x.transpose(1, 2).contiguous() for x in tensors)
    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
        return record.median_ms(
            lambda: F.scaled_dot_product_attention(query, key, value), repeats=3, warmup=1
        )


def check(layer: Layer) -> dict[str, float]:
    """Relative errors by band against float64, over tiles at both ends and in the middle."""
    from freqformer.ops.block_sparse.tables import launch_tables
    from freqformer.ops.prologue.tables import prologue_tables
    from freqformer.ops.prologue.triton.launch import prepare_rows
    from freqformer.ops.selection.api import select

    plan, query = layer.plan, layer.tensors[0]
    tables = prologue_tables(plan, query.device, query.dtype)
    bands = torch.tensor([layer.allocation], device="cuda")
    blocks = launch_tables(plan, query.device).band_blocks
    rows = prepare_rows(
        layer.tensors, bands, tables, blocks, parameters=layer.parameters, token_order="raster"
    )
    lists, _ = select(rows.sums, rows.bands, tables.tile_offsets, None, plan.mid_capacity)
    del rows
    tiles = [0, plan.layout.num_tiles // 2, plan.layout.num_tiles - 1]
    errors = relative_errors(
        layer.run(), layer.tensors, layer.allocation, plan, layer.parameters, lists, tiles
    )
    if not max(errors.values()) <= LARGEST_ERROR:
        raise SystemExit(
            f"relative errors against float64 are {errors}; at most {LARGEST_ERROR} is allowed"
        )
    return errors


def measure(layer: Layer, repeats: int = 20) -> dict[str, Any]:
    """Check, then time one layer."""
    errors = check(layer)
    held = record.workspace(layer.run)
    query = layer.tensors[0]
    profile = record.launches(layer.run)
    total = sum(time for _, time in profile)
    attention = sum(time for name, time in profile if "attention_kernel" in name)
    ms = record.median_ms(layer.run, repeats)
    flops = layer.plan.flops(layer.allocation).useful
    return {
        "grid": list(layer.grid.shape),
        "tokens": layer.grid.num_tokens,
        "heads": query.shape[2],
        "tile": list(layer.plan.layout.tile),
        "padding": layer.plan.layout.padding,
        "window": list(layer.config.window),
        "mid_tiles": layer.config.mid_tiles,
        "density": layer.plan.density(layer.allocation),
        "layer_ms": ms,
        "useful_tflops_per_s": flops / ms / 1e9,
        "launches": [[name, time] for name, time in profile],
        "num_launches": len(profile),
        "share_beside_attention": 1 - attention / total,
        "workspace_bytes": held,
        "workspace_of_inputs_and_output": held / (4 * query.numel() * query.element_size()),
        "workspace_by_plan": fused.workspace_bytes(layer.plan, query.shape[0], query.dtype),
        "relative_error": errors,
    }


@torch.no_grad()
def live_router(layer: Layer, layer_ms: float) -> dict[str, Any]:
    """What choosing the bands costs at every call, when no table is frozen; not part of the layer's
    figures.

    `ms` is the device time of its launches, their input read from memory rather than from the
    cache; `added_in_graph_ms` is what a CUDA graph of the layer takes longer with them in it.
    """
    from freqformer.ops.routing import reference
    from freqformer.ops.routing.triton import launch

    (query, key, value), given = layer.tensors, layer.parameters
    device = query.device
    network = RoutingNetwork(query.shape[2], initial=layer.allocation).to(device)
    timestep = torch.tensor([0.5], device=device)
    # The values stand for the layer's input: as large, and in other memory than queries and keys.
    features, norms = (query, key, value.flatten(2)), (given.query_norm, given.key_norm)
    inputs = (features, norms, given.norm_eps, layer.grid, layer.config, "raster")
    logits, bands = launch.score(network, timestep, inputs)
    difference = float((logits - network(reference.statistics(*inputs), timestep)).abs().max())
    if not difference <= LARGEST_DIFFERENCE:
        raise SystemExit(
            f"the router's logits differ by {difference} from PyTorch's; {LARGEST_DIFFERENCE} is "
            "allowed"
        )
    cache = torch.empty(CACHE_BYTES, dtype=torch.uint8, device=device)

    def choose() -> None:
        cache.zero_()
        launch.score(network, timestep, inputs)

    profiles = sorted(
        (record.launches(choose)[1:] for _ in range(9)),
        key=lambda run: sum(time for _, time in run),
    )
    typical = profiles[len(profiles) // 2]
    ms = sum(time for _, time in typical) / 1e3
    alone = graph_ms(lambda: layer.run(bands))
    together = graph_ms(lambda: layer.run(launch.score(network, timestep, inputs)[1]))
    return {
        "num_launches": len(typical),
        "launches": [[name, time] for name, time in typical],
        "ms": ms,
        "share_of_layer": ms / layer_ms,
        "layer_in_graph_ms": alone,
        "added_in_graph_ms": together - alone,
        "difference_of_logits": difference,
    }


def graph_ms(call: Callable[[], Tensor], repeats: int = 50) -> float:
    """Median time of a call whose launches are replayed from a CUDA graph."""
    return record.median_ms(record.capture(call).replay, repeats)


def video_layers() -> dict[str, Any]:
    """The bench configuration, with learned summaries, and with raised density, beside dense
    attention."""
    results: dict[str, Any] = {}
    for name, (grid, heads) in LAYERS.items():
        layer = make_layer(grid, heads, BENCH)
        dense = dense_ms(layer.tensors)
        results[name] = {"dense_ms": dense}
        for variant in ("bench", "learned summaries", "density 10%"):
            if variant == "learned summaries":
                layer = make_layer(grid, heads, BENCH, learned=True)
            elif variant == "density 10%":
                layer = make_layer(grid, heads, raised(grid, heads, RAISED_DENSITY))
            measured = measure(layer)
            if variant == "bench":
                results[name]["live_router"] = live_router(layer, measured["layer_ms"])
            results[name][variant] = measured | {"times_dense": dense / measured["layer_ms"]}
            print(
                f"{name:8} {variant:18} {measured['layer_ms']:8.2f} ms  dense {dense:8.2f} ms",
                flush=True,
            )
    return results


def scaling() -> dict[str, Any]:
    """Time from 64K to 1M tokens, the live router's share of it, and the exponent of its growth."""
    points, rate = [], 0.0
    for frames in SCALING:
        layer = make_layer(Grid(frames, 64, 64), SCALING_HEADS, BENCH)
        tokens = layer.grid.num_tokens
        flops = 4.0 * tokens**2 * HEAD_DIM * SCALING_HEADS
        measured = tokens <= DENSE_LIMIT
        dense = dense_ms(layer.tensors) if measured else flops / rate
        rate = flops / dense
        point = measure(layer, repeats=10)
        point["live_router"] = live_router(layer, point["layer_ms"])
        points.append(
            point
            | {
                "dense_ms": dense,
                "dense_measured": measured,
                "times_dense": dense / point["layer_ms"],
            }
        )
        router = 100 * point["live_router"]["share_of_layer"]
        times = dense / point["layer_ms"]
        print(
            f"{tokens:9,} tokens {point['layer_ms']:8.2f} ms  {times:6.1f} x dense  router "
            f"{router:.2f}%",
            flush=True,
        )
        del layer
        torch.cuda.empty_cache()
    logs = [(math.log(point["tokens"]), math.log(point["layer_ms"])) for point in points]
    return {"points": points, "exponent": _slope(logs), "dense_tflops_per_s_beyond": rate / 1e9}


def _slope(points: list[tuple[float, float]]) -> float:
    """Of the least-squares line."""
    x = torch.tensor(points, dtype=torch.float64)
    x = x - x.mean(0)
    return float((x[:, 0] * x[:, 1]).sum() / x[:, 0].square().sum())


def draw(results: dict[str, Any], path: Path) -> None:
    """Time over tokens beside dense attention, and where a layer's time goes."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (growth, parts) = pyplot.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    points = results["scaling"]["points"]
    tokens = [point["tokens"] for point in points]
    growth.loglog(
        tokens,
        [point["dense_ms"] for point in points],
        "o--",
        label="dense, cuDNN (beyond 262,144: its rate there)",
    )
    exponent = results["scaling"]["exponent"]
    growth.loglog(
        tokens,
        [point["layer_ms"] for point in points],
        "o-",
        label=f"FreqFormer layer, exponent {exponent:.2f}",
    )
    growth.set(
        xlabel="tokens",
        ylabel="ms per layer",
        title=f"{SCALING_HEADS} heads of {HEAD_DIM}, bfloat16",
    )
    growth.legend(frameon=False)
    left = dict.fromkeys(LAYERS, 0.0)
    names = [name for name, _ in results["layers"]["hunyuan"]["bench"]["launches"]]
    for launch in names:
        widths = [
            sum(t for n, t in results["layers"][key]["bench"]["launches"] if n == launch) / 1e3
            for key in LAYERS
        ]
        parts.barh(list(LAYERS), widths, left=list(left.values()), label=launch)
        left = {key: left[key] + width for key, width in zip(LAYERS, widths, strict=True)}
    parts.set(xlabel="ms", title="launches of one layer, bench configuration")
    parts.legend(
        frameon=False, fontsize="small", loc="upper center", bbox_to_anchor=(0.5, -0.15), ncols=3
    )
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "--output", type=Path, default=record.RESULTS, help="folder for layer.json and layer.png"
    )
    parser.add_argument("--commit", help="of this code, where the machine has no git")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("no CUDA GPU: this benchmark measures one")
    results = {
        "config": BENCH.to_dict(),
        "head_dim": HEAD_DIM,
        "dtype": "bfloat16",
        "layers": video_layers(),
        "scaling": scaling(),
    }
    path = record.save("layer", results, arguments.output, arguments.commit)
    draw(results, arguments.output / "layer.png")
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
