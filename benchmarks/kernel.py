"""The attention launch on random lists of key tiles, beside cuDNN's dense attention: useful TFLOP/s
of the kept blocks.

Needs a CUDA GPU, and no package beside torch, Triton and matplotlib:

    PYTHONPATH=src python benchmarks/kernel.py [--output FOLDER]

Writes kernel.json and kernel.png. Every result is checked against float64 rows before it is timed.
Other kernels on the same lists are in `peers.py`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

import record
from freqformer.config import Band, FreqFormerConfig
from freqformer.grid import TILE_SLOTS, Grid
from freqformer.ops.backends import launches_of, resolve
from freqformer.ops.block_sparse.records import AttentionBuffers, MidLists, RowBands
from freqformer.ops.block_sparse.tables import launch_tables
from freqformer.plan import build_plan

GRID = Grid(16, 64, 64)
"""65,536 tokens in 512 full tiles."""
HEADS = 8
DENSITIES = (1.0, 0.1, 0.05)
MEASURED_MS = 800
LARGEST_ERROR = 0.01
"""Relative error of a bfloat16 result against float64 at which a run stops."""


@dataclass(frozen=True, eq=False)
class Problem:
    """Queries, keys and values in tile order (H, N, D), and the key tiles of every query tile."""

    query: Tensor
    key: Tensor
    value: Tensor
    lists: Tensor
    """int32 (H, T, tiles kept), ascending, the query's own tile among them."""

    @classmethod
    def random(cls, density: float, head_dim: int) -> Problem:
        """Standard normal bfloat16 inputs; the own tile and the best of random scores are kept."""
        draw = torch.Generator("cuda").manual_seed(0)
        shape, tiles = (HEADS, GRID.num_tokens, head_dim), GRID.num_tokens // TILE_SLOTS
        query, key, value = (
            torch.randn(shape, generator=draw, device="cuda").bfloat16() for _ in range(3)
        )
        scores = torch.rand(HEADS, tiles, tiles, generator=draw, device="cuda")
        scores.diagonal(dim1=1, dim2=2).fill_(2.0)
        return cls(
            query,
            key,
            value,
            scores.topk(max(1, round(density * tiles))).indices.sort().values.int(),
        )

    @property
    def flops(self) -> float:
        """Of the kept blocks, forward."""
        return 4.0 * self.lists.numel() * TILE_SLOTS**2 * self.query.shape[2]

    @cached_property
    def exact(self) -> list[tuple[int, int, Tensor]]:
        """(head, query tile, its output in float64) of a few tiles."""
        tiles = self.lists.shape[1]
        return [
            (head, tile, self._tile(head, tile))
            for head, tile in ((0, 0), (3, tiles // 2), (7, tiles - 1))
        ]

    def _tile(self, head: int, tile: int) -> Tensor:
        keys = (
            self.lists[head, tile].long()[:, None] * TILE_SLOTS
            + torch.arange(TILE_SLOTS, device="cuda")
        ).flatten()
        query = self.query[head].unflatten(0, (-1, TILE_SLOTS))[tile].double()
        logits = query @ self.key[head, keys].double().T * query.shape[1] ** -0.5
        return logits.softmax(-1) @ self.value[head, keys].double()

    def error(self, out: Tensor) -> float:
        """Largest |out - exact| / |exact| of the checked tiles; out (H, N, D) in tile order."""
        tiles = out.unflatten(1, (-1, TILE_SLOTS))
        pairs = ((tiles[head, tile].double(), exact) for head, tile, exact in self.exact)
        return max(float((fast - exact).norm() / exact.norm()) for fast, exact in pairs)


def backend(query: Tensor) -> str:
    """The backend of the launch that a user gets by default for these queries."""
    return resolve("auto", (query, query, query)).name


def launch_of(problem: Problem) -> Callable[[], Tensor]:
    """The attention launch with every head MID on the problem's lists, raster order out as in a
    layer."""
    heads, tiles, kept = problem.lists.shape
    config = FreqFormerConfig(mid_tiles=kept, summary_tokens=0)
    plan = build_plan(GRID, config, num_heads=heads, head_dim=problem.query.shape[2])
    tables = launch_tables(plan, torch.device("cuda"))
    pad = tables.keys.rows - GRID.num_tokens
    query = F.pad(problem.query, (0, 0, 0, plan.num_low_tokens))  # no row asks with low tokens
    key, value = (F.pad(x, (0, 0, 0, pad)).contiguous() for x in (problem.key, problem.value))
    bands = torch.full((heads,), Band.MID, dtype=torch.int32, device="cuda")
    rows = RowBands(bands, torch.arange(heads, dtype=torch.int32, device="cuda"))
    mid = MidLists(problem.lists, None, None) if kept < tiles else None
    attend = launches_of(backend(problem.query)).attend

    def run() -> Tensor:
        buffers = AttentionBuffers(query, key, value)
        return attend(
            buffers,
            rows,
            tables,
            mid=mid,
            summary_offsets=None,
            text_mask=None,
            token_order="raster",
        )[0]

    return run


def tile_order(out: Tensor) -> Tensor:
    """(1, N, H, D) in raster order -> (H, N, D) in tile order."""
    plan = build_plan(GRID, FreqFormerConfig(), num_heads=out.shape[2], head_dim=out.shape[3])
    return out[0].index_select(0, plan.layout.raster_to_tile.to(out.device)).transpose(0, 1)


def measure(
    problem: Problem, run: Callable[[], Tensor], order: Callable[[Tensor], Tensor]
) -> dict[str, float]:
    """Milliseconds, rate and error of a kernel on a problem; ValueError where it is wrong."""
    error = problem.error(order(run()))
    if not error < LARGEST_ERROR:
        raise ValueError(f"relative error {error:.2e} against float64: a wrong result is not timed")
    # Long enough that the GPU's clock has settled under the load.
    rough = record.median_ms(run, repeats=5)
    ms = record.median_ms(run, repeats=max(20, round(MEASURED_MS / rough)))
    return {"ms": ms, "tflops_per_s": problem.flops / ms / 1e9, "relative_error": error}


def cudnn(problem: Problem) -> Callable[[], Tensor]:
    """torch's dense attention by cuDNN."""
    query, key, value = (x[None] for x in (problem.query, problem.key, problem.value))

    def run() -> Tensor:
        with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
            return F.scaled_dot_product_attention(query, key, value)[0]

    return run


def results_of(head_dim: int) -> dict[str, Any]:
    """The launch at every density."""
    results: dict[str, Any] = {"launch": {}}
    for density in DENSITIES:
        problem = Problem.random(density, head_dim)
        if density == 1.0:
            results["dense"] = measure(problem, cudnn(problem), lambda out: out)
            print(
                f"cuDNN, dense            {results['dense']['tflops_per_s']:6.0f} TFLOP/s",
                flush=True,
            )
        found = measure(problem, launch_of(problem), tile_order)
        found["of_dense"] = found["tflops_per_s"] / results["dense"]["tflops_per_s"]
        results["launch"][str(density)] = found
        print(
            f"launch, {density:4.0%} of blocks {found['tflops_per_s']:6.0f} TFLOP/s, "
            f"{found['of_dense']:.3f} of dense"
        )
    return results


def draw(results: dict[str, Any], path: Path) -> None:
    """Rates over density, with cuDNN's dense rate as a line."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.4), layout="constrained")
    rates = [results["launch"][str(density)]["tflops_per_s"] for density in DENSITIES]
    bars = axes.bar(range(len(rates)), rates, 0.74, label="FreqFormer launch")
    axes.bar_label(bars, fmt="%.0f", fontsize="small")
    dense = results["dense"]["tflops_per_s"]
    axes.axhline(dense, color="black", linestyle="--", label=f"cuDNN, dense: {dense:.0f}")
    axes.set_xticks(range(len(DENSITIES)), [f"{density:.0%} of blocks" for density in DENSITIES])
    axes.set(
        ylabel="useful TFLOP/s",
        title=f"{GRID.num_tokens:,} tokens, {HEADS} heads of {results['head_dim']}, bfloat16",
    )
    figure.legend(frameon=False, fontsize="small", ncols=2, loc="outside lower center")
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "--output", type=Path, default=record.RESULTS, help="folder for kernel.json and kernel.png"
    )
    parser.add_argument("--commit", help="of this code, where the machine has no git")
    parser.add_argument("--head-dim", type=int, default=128)
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("no CUDA GPU: this benchmark measures one")
    query = torch.empty(1, 1, 1, arguments.head_dim, device="cuda", dtype=torch.bfloat16)
    shape = {
        "backend": backend(query),
        "tokens": GRID.num_tokens,
        "heads": HEADS,
        "head_dim": arguments.head_dim,
        "dtype": "bfloat16",
    }
    results = {**shape, **results_of(arguments.head_dim)}
    path = record.save("kernel", results, arguments.output, arguments.commit)
    draw(results, arguments.output / "kernel.png")
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
