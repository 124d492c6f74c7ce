"""One optimizer step of the whole model beside the same model with dense attention (cuDNN), from
16K to 256K tokens.

Needs a CUDA GPU, and no package beside torch, Triton and diffusers:

    PYTHONPATH=src python benchmarks/train_step.py [--compile] [--tokens N ...] [--output FOLDER]

Writes train_step.json after every row. A step is forward, backward, clipping and AdamW of `MODEL`
on one clip of latents, bfloat16 by autocast with weights in float32. Shares of time are the
profiler's, by operation: those of frequency attention hold its norm, rotary embedding and order of
tokens, which dense attention leaves to the rest.
"""

from __future__ import annotations

import argparse
import gc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

import record
from freqformer.grid import Grid
from freqformer.models.transformer import FreqFormerTransformer3DModel
from freqformer.plan import build_plan
from freqformer.routing import even_allocation
from freqformer.training.objective import flow_matching_loss
from layer import BENCH

DEVICE = "cuda"
MODEL: dict[str, Any] = {
    "in_channels": 16,
    "patch_size": (1, 2, 2),
    "num_layers": 6,
    "num_attention_heads": 8,
    "attention_head_dim": 128,
}
"""86 million weights; latents of 16 channels, as those of Wan's and HunyuanVideo's autoencoders."""
ROWS: dict[str, dict[str, Any]] = {
    "dense": {"allocation": "dense", "routing": "fixed", "low_branch": False},
    "fixed": {"allocation": "thirds", "routing": "fixed", "low_branch": False},
    "router": {
        "allocation": "thirds",
        "routing": "hard",
        "low_branch": False,
        "prior": "noise_level",
    },
}
"""Dense attention; a third of the heads in each band; and routers that learn, running one more
branch per head and step."""
COMPILED = ("dense", "fixed")
TOKENS = (1 << 14, 1 << 16, 1 << 18)
CHECKPOINTED = 1 << 17
"""Tokens from which blocks are computed again in the backward instead of being kept."""
FORWARD = ("freqformer::attention", "aten::_scaled_dot_product_cudnn_attention")
BACKWARD = ("freqformer::attention_backward", "aten::_scaled_dot_product_cudnn_attention_backward")
PARTS = ("attention_forward", "attention_backward", "rest")
MEASURED_MS = 6000.0
"""Time that the repeats of one row take, about."""


def grid_of(tokens: int) -> Grid:
    """A grid of that many tokens, a power of two, wider than long."""
    side = 1 << min(6, (tokens.bit_length() - 1) // 3 + 1)
    return Grid(tokens // side**2, side, side)


def training_step(
    name: str, grid: Grid, *, compiled: bool
) -> tuple[Callable[[], object], torch.nn.Module]:
    """One optimizer step of the model of a row, and the model."""
    torch.manual_seed(0)
    model: Any = FreqFormerTransformer3DModel(**MODEL, frequency=replace(BENCH, **ROWS[name]))
    model.train().to(DEVICE)
    if name == "router":
        model.set_router_training("sampled")
    if grid.num_tokens >= CHECKPOINTED:
        model.enable_gradient_checkpointing()
    if compiled:
        model.compile_repeated_blocks(fullgraph=True, dynamic=False)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4, fused=True)
    extents = (
        grid.num_frames,
        grid.height * MODEL["patch_size"][1],
        grid.width * MODEL["patch_size"][2],
    )
    clip, noise = torch.randn(2, 1, MODEL["in_channels"], *extents, device=DEVICE)
    timestep = torch.tensor([0.6], device=DEVICE)

    def step() -> None:
        with sdpa_kernel(
            SDPBackend.CUDNN_ATTENTION
        ):  # backward computes checkpointed blocks again, by the same code
            with torch.autocast(DEVICE, torch.bfloat16):
                loss = flow_matching_loss(model, clip, timestep, noise)
            loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step, model


def shares(step: Callable[[], object]) -> dict[str, Any]:
    """Device time of one step in attention's forward, in its backward and in all else, and of every
    kernel."""
    from torch.profiler import ProfilerActivity, profile

    with profile(
        activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA], acc_events=True
    ) as recorded:
        step()
        torch.cuda.synchronize()
    averages = recorded.key_averages()
    on_device = [
        event
        for event in averages
        if event.device_type.name == "CUDA" and not event.is_user_annotation
    ]
    kernels = sorted(
        ((x.key, x.count, x.self_device_time_total / 1e3) for x in on_device),
        key=lambda kernel: -kernel[2],
    )
    calls = [event for event in averages if event.device_type.name == "CPU"]
    forward, backward = (
        sum(event.device_time_total / 1e3 for event in calls if event.key in names)
        for names in (FORWARD, BACKWARD)
    )
    return {
        "attention_forward_ms": forward,
        "attention_backward_ms": backward,
        "rest_ms": sum(ms for *_, ms in kernels) - forward - backward,
        "kernels": [list(kernel) for kernel in kernels if kernel[2] > 0.01 * kernels[0][2]],
    }


def measure(name: str, grid: Grid, *, compiled: bool) -> dict[str, Any]:
    """Time, memory and shares of one row."""
    step, model = training_step(name, grid, compiled=compiled)
    step()  # compiles kernels
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    once = record.median_ms(step, repeats=1, warmup=0)
    peak = torch.cuda.max_memory_allocated()
    ms = record.median_ms(step, repeats=max(1, min(10, int(MEASURED_MS / once))), warmup=0)
    if not all(bool(parameter.isfinite().all()) for parameter in model.parameters()):
        raise SystemExit(
            f"{name} at {grid} has weights that are not finite: a wrong step is not timed"
        )
    return {
        "checkpointed": grid.num_tokens >= CHECKPOINTED,
        "compiled": compiled,
        "step_ms": ms,
        "peak_bytes": peak,
        **shares(step),
    }


def rows_of(grid: Grid, compiles: bool) -> dict[str, dict[str, Any]]:
    """All rows of one size, with their ratio to dense."""
    rows: dict[str, dict[str, Any]] = {}
    for compiled in (False, True) if compiles else (False,):
        for name in COMPILED if compiled else ROWS:
            title = f"{name}, compiled" if compiled else name
            rows[title] = row = measure(name, grid, compiled=compiled)
            row["times_dense"] = (
                rows["dense, compiled" if compiled else "dense"]["step_ms"] / row["step_ms"]
            )
            torch.compiler.reset()
            gc.collect()
            torch.cuda.empty_cache()
            parts = ", ".join(f"{part} {row[f'{part}_ms']:.1f}" for part in PARTS)
            print(
                f"{grid.num_tokens:8,} tokens, {title:16} {row['step_ms']:9.1f} ms, "
                f"{row['times_dense']:5.2f} x dense, "
                f"{row['peak_bytes'] / 2**30:6.1f} GiB; {parts}",
                flush=True,
            )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "--output", type=Path, default=record.RESULTS, help="folder for train_step.json"
    )
    parser.add_argument("--commit", help="of this code, where the machine has no git")
    parser.add_argument(
        "--compile", action="store_true", help="measure models with compiled blocks too"
    )
    parser.add_argument(
        "--tokens", type=int, nargs="+", default=TOKENS, help="tokens of a clip, powers of two"
    )
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("no CUDA GPU: this benchmark measures one")
    results: dict[str, Any] = {
        "model": MODEL,
        "config": BENCH.to_dict(),
        "dtype": "bfloat16 autocast",
        "sizes": {},
    }
    for tokens in arguments.tokens:
        grid = grid_of(tokens)
        heads = MODEL["num_attention_heads"]
        plan = build_plan(
            grid,
            BENCH,
            num_heads=heads,
            head_dim=MODEL["attention_head_dim"],
            learned_summaries=True,
        )
        results["sizes"][str(tokens)] = {
            "grid": list(grid.shape),
            "density": plan.density(even_allocation(heads)),
            "rows": rows_of(grid, arguments.compile),
        }
        path = record.save("train_step", results, arguments.output, arguments.commit)
        print(f"wrote {path}", flush=True)


if __name__ == "__main__":
    main()
