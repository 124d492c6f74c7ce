"""Backward of the attention launch and of a whole layer, beside FlexAttention on the same lists and
cuDNN's dense.

Needs a CUDA GPU, and no package beside torch and Triton:

    PYTHONPATH=src python benchmarks/backward.py [--flex] [--output FOLDER]

Writes backward.json. Gradients are checked against float64 before they are timed. A backward counts
as 2.5 forwards.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass, replace
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
from freqformer.ops.backends import launches_of
from freqformer.ops.block_sparse.records import AttentionBuffers, MidLists, RowBands
from freqformer.ops.block_sparse.tables import launch_tables
from freqformer.plan import build_plan
from kernel import GRID, Problem, backend
from layer import BENCH, HEAD_DIM, Layer, make_layer

DENSITIES = (0.1, 0.05)
BACKWARDS = 2.5
"""What a backward counts as, in forwards."""
LONG = Grid(256, 64, 64)
"""1,048,576 tokens."""
LARGEST_ERROR = 0.01
"""Relative error of a bfloat16 gradient against float64 at which a run stops."""


@dataclass(frozen=True, eq=False)
class BackwardProblem:
    """A forward problem and the gradient of its output, (H, N, D) in tile order."""

    forward: Problem
    grad_out: Tensor

    @classmethod
    def random(cls, density: float) -> BackwardProblem:
        """Standard normal inputs and output gradients in bfloat16."""
        forward = Problem.random(density, HEAD_DIM)
        return cls(forward, torch.randn_like(forward.query))

    @property
    def flops(self) -> float:
        return BACKWARDS * self.forward.flops

    @cached_property
    def exact(self) -> list[tuple[int, int, tuple[Tensor, Tensor, Tensor]]]:
        """(head, tile, gradients of its queries, keys and values in float64) of a few tiles."""
        tiles = self.forward.lists.shape[1]
        return [(head, tile, self._tile(head, tile)) for head, tile in ((0, 0), (5, tiles - 1))]

    def _slopes(self, head: int, tile: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Listed key places, queries, output gradients, weights and slopes of one query tile."""
        listed = self.forward.lists[head, tile].long()
        keys = (listed[:, None] * TILE_SLOTS + torch.arange(TILE_SLOTS, device="cuda")).flatten()
        query, grad = (
            x[head].unflatten(0, (-1, TILE_SLOTS))[tile].double()
            for x in (self.forward.query, self.grad_out)
        )
        weight = (query @ self.forward.key[head, keys].double().T * HEAD_DIM**-0.5).softmax(-1)
        agree = grad @ self.forward.value[head, keys].double().T
        return keys, query, grad, weight, weight * (agree - (weight * agree).sum(-1, keepdim=True))

    def _tile(self, head: int, tile: int) -> tuple[Tensor, Tensor, Tensor]:
        keys, query, _, _, slope = self._slopes(head, tile)
        grad_query = slope @ self.forward.key[head, keys].double() * HEAD_DIM**-0.5
        grad_key, grad_value = torch.zeros_like(grad_query), torch.zeros_like(grad_query)
        for other in (self.forward.lists[head] == tile).any(-1).nonzero().flatten().tolist():
            keys, query, grad, weight, slope = self._slopes(head, other)
            own = keys // TILE_SLOTS == tile
            grad_key += slope[:, own].T @ query * HEAD_DIM**-0.5
            grad_value += weight[:, own].T @ grad
        return grad_query, grad_key, grad_value

    def error(self, grads: tuple[Tensor, Tensor, Tensor]) -> float:
        """Largest |gradient - exact| / |exact| of the checked tiles; gradients (H, N, D) in tile
        order."""
        worst = 0.0
        for head, tile, exact in self.exact:
            own = slice(tile * TILE_SLOTS, (tile + 1) * TILE_SLOTS)
            for grad, right in zip(grads, exact, strict=True):
                worst = max(worst, float((grad[head, own].double() - right).norm() / right.norm()))
        return worst


def gradients_of(problem: BackwardProblem) -> Callable[[], tuple[Tensor, Tensor, Tensor]]:
    """The backward launches with every head MID on the problem's lists; tile order in and out."""
    heads, _, kept = problem.forward.lists.shape
    plan = build_plan(
        GRID, FreqFormerConfig(mid_tiles=kept, summary_tokens=0), num_heads=heads, head_dim=HEAD_DIM
    )
    tables = launch_tables(plan, torch.device("cuda"))
    pad = (0, 0, 0, tables.keys.rows - GRID.num_tokens)
    query = F.pad(problem.forward.query, (0, 0, 0, plan.num_low_tokens))  # of no row
    key, value = (F.pad(x, pad).contiguous() for x in (problem.forward.key, problem.forward.value))
    bands = torch.full((heads,), Band.MID, dtype=torch.int32, device="cuda")
    told: dict[str, Any] = {
        "buffers": AttentionBuffers(query, key, value),
        "rows": RowBands(bands, torch.arange(heads, dtype=torch.int32, device="cuda")),
        "tables": tables,
        "mid": MidLists(problem.forward.lists, None, None),
        "summary_offsets": None,
        "text_mask": None,
        "token_order": "tile",
    }
    launches = launches_of(backend(query))
    outputs = launches.attend(**told, backward=True)
    grad_out = problem.grad_out.transpose(0, 1)[None].contiguous()

    def run() -> tuple[Tensor, Tensor, Tensor]:
        grads = launches.attend_backward(
            (grad_out, torch.zeros_like(outputs[1])), outputs, **told, deterministic=True
        )
        return grads.query, grads.key, grads.value

    return run


def flex_of(problem: BackwardProblem) -> Callable[[], tuple[Tensor, ...]]:
    """FlexAttention's backward on the same lists, compiled."""
    from peers_lists import Lists
    from peers_others import flex_backward

    forward = problem.forward
    tensors = (forward.query, forward.key, forward.value, problem.grad_out)
    timed = flex_backward(Lists(*tensors, GRID, (4, 4, 8), forward.lists), backend=None)
    return lambda: timed.read(timed.run())


def measure(problem: BackwardProblem, run: Callable[[], tuple[Tensor, ...]]) -> dict[str, float]:
    """Milliseconds, rate and error of a backward; SystemExit where it is wrong."""
    query, key, value = run()
    error = problem.error((query, key, value))
    if not error < LARGEST_ERROR:
        raise SystemExit(f"relative error {error:.2e} against float64: a wrong result is not timed")
    ms = record.median_ms(run, repeats=40)
    return {"ms": ms, "tflops_per_s": problem.flops / ms / 1e9, "relative_error": error}


def trained(layer: Layer) -> Callable[[], tuple[Tensor, ...]]:
    """Forward and backward of a layer: gradients of queries, keys, values and all that is
    learned."""
    tensors = [x.detach().clone().requires_grad_() for x in layer.tensors]
    names = ("summary_queries", "summary_offsets", "query_norm", "key_norm")
    learned = {name: getattr(layer.parameters, name) for name in names}
    learned = {
        name: x.detach().clone().requires_grad_() for name, x in learned.items() if x is not None
    }
    own = replace(layer, tensors=tuple(tensors), parameters=replace(layer.parameters, **learned))
    grad_out = torch.randn_like(layer.tensors[0])
    return lambda: torch.autograd.grad(own.run(), [*tensors, *learned.values()], grad_out)


def dense_trained_ms(layer: Layer) -> float:
    """Forward and backward of cuDNN's dense attention over the same tensors, in its own layout."""
    query, key, value = leaves = [
        x.detach().transpose(1, 2).contiguous().requires_grad_() for x in layer.tensors
    ]
    grad_out = torch.randn_like(query)

    def run() -> tuple[Tensor, ...]:
        with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
            return torch.autograd.grad(
                F.scaled_dot_product_attention(query, key, value), leaves, grad_out
            )

    return record.median_ms(run, repeats=2, warmup=1)


def measure_layer(layer: Layer, repeats: int) -> dict[str, Any]:
    """Time, launches and most memory of a layer's forward and backward."""
    run = trained(layer)
    finite = all(bool(x.isfinite().all()) for x in run())
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    profile = record.launches(run)
    return {
        "grid": list(layer.grid.shape),
        "tokens": layer.grid.num_tokens,
        "heads": layer.tensors[0].shape[2],
        "finite": finite,
        "forward_and_backward_ms": record.median_ms(run, repeats),
        "forward_ms": record.median_ms(layer.run, repeats),
        "peak_bytes": torch.cuda.max_memory_allocated() - before,
        "launches": [[name, time] for name, time in profile],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "--output", type=Path, default=record.RESULTS, help="folder for backward.json"
    )
    parser.add_argument("--commit", help="of this code, where the machine has no git")
    parser.add_argument("--flex", action="store_true", help="time FlexAttention's backward too")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("no CUDA GPU: this benchmark measures one")
    results: dict[str, Any] = {
        "backend": backend(torch.empty(1, 1, 1, HEAD_DIM, device="cuda", dtype=torch.bfloat16)),
        "tokens": GRID.num_tokens,
        "head_dim": HEAD_DIM,
        "dtype": "bfloat16",
        "launches": {},
    }
    for density in DENSITIES:
        problem = BackwardProblem.random(density)
        found = {"launches": measure(problem, gradients_of(problem))}
        if arguments.flex:
            found["FlexAttention"] = measure(problem, flex_of(problem))
        results["launches"][str(density)] = found
        print(
            density,
            {
                name: f"{x['ms']:.2f} ms, {x['tflops_per_s']:.0f} TFLOP/s"
                for name, x in found.items()
            },
            flush=True,
        )
    results["layers"] = {}
    for name, grid, heads, learned in (
        ("hunyuan", Grid(30, 48, 80), 24, False),
        ("hunyuan, learned summaries", Grid(30, 48, 80), 24, True),
        ("1M tokens", LONG, 8, False),
    ):
        layer = make_layer(grid, heads, BENCH, learned=learned)
        found = measure_layer(layer, repeats=10)
        if name == "hunyuan":
            results["dense_ms"] = dense_trained_ms(layer)
        results["layers"][name] = found
        told = (found["forward_ms"], found["forward_and_backward_ms"], results["dense_ms"])
        print(
            f"{name}: forward {told[0]:.2f}, with backward {told[1]:.2f} ms, dense hunyuan "
            f"{told[2]:.1f} ms",
            flush=True,
        )
        del layer
    path = record.save("backward", results, arguments.output, arguments.commit)
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
