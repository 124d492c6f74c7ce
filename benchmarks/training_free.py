"""A trained dense model with banded attention and no training, beside single patterns at the same
attention FLOPs.

    PYTHONPATH=src:. python -m benchmarks.training_free --model FOLDER [--train-steps 2000]
    [--output FOLDER]

FOLDER holds a saved pipeline with dense attention; where there is none, the dense model of the
quality study is trained there first. It is calibrated on clips as in training. Then each method's
velocities are compared with dense attention's by noise level, on clips of textures that training
never showed, and its generated videos with dense attention's at the same seeds. All methods run
through routing tables. Prints a table, and writes training_free.json and the calibration into
training_free_table/; `python -m benchmarks.training_free_report` puts both on the page.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import product
from math import log
from pathlib import Path
from typing import Any

import torch
from benchmarks.quality.data import Draw, draw_scenes
from benchmarks.quality.runs import Run
from benchmarks.quality.sizes import STUDY, Size
from benchmarks.quality.trainer import Trainer
from torch import Tensor

from benchmarks import record
from freqformer.calibration import Calibration, Candidates, Choice, calibrate
from freqformer.calibration.report import write_table
from freqformer.config import Band, FreqFormerConfig
from freqformer.generation.likeness import psnr, ssim
from freqformer.grid import Grid, tile_layout
from freqformer.models.pipeline import FreqFormerPipeline
from freqformer.plan import build_plan
from freqformer.routing import RoutingTable
from freqformer.training.seeding import derive_seed

BUDGETS = (0.10, 0.05)
"""Attention FLOPs relative to dense: 90% and 95% less."""
SLACK = 0.1
"""How far a pattern may be from the budget, relatively, for its shape to decide."""
CUBES = FreqFormerConfig(tile=(4, 4, 4), compression=16, mid_tiles=16, summary_tokens=256)
"""What the calibrated tables and most patterns share."""
PLAIN = replace(CUBES, summary_tokens=0)
NUM_BUCKETS = 10
CHUNK_STEPS = 32
"""Training steps whose clips are drawn at once."""


@dataclass(frozen=True)
class Amount:
    """How much is run."""

    size: Size = STUDY
    calibration_clips: int = 16
    clips: int = 8
    """Held-out clips whose velocities are compared, and videos that are generated."""
    steps: int = 30
    """Of the sampler."""
    train_steps: int = 2000
    mid_tiles: tuple[int, ...] = (4, 8, 16, 32, 64)
    windows: tuple[tuple[int, int, int], ...] = (
        (1, 3, 3),
        (2, 3, 3),
        (3, 3, 3),
        (4, 3, 3),
        (4, 5, 5),
    )


@dataclass(frozen=True)
class Method:
    """A table, its attention FLOPs relative to dense, and what it is."""

    table: RoutingTable
    density: float
    about: str


def train(folder: Path, amount: Amount, device: torch.device) -> None:
    """Train the dense model of the quality study and save it as a pipeline."""
    from diffusers.schedulers.scheduling_flow_match_euler_discrete import (
        FlowMatchEulerDiscreteScheduler,
    )

    size, began = amount.size, time.perf_counter()
    trainer = Trainer(Run("dense", 0, amount.train_steps, size), device)
    step: Callable[[], None] = trainer.captured() if device.type == "cuda" else trainer.advance
    for first in range(0, amount.train_steps, CHUNK_STEPS):
        clips = _clips(CHUNK_STEPS * size.batch, first, amount, device)
        noise = Draw(derive_seed("training-free noise", first), device).normal(*clips.shape)
        batches = list(zip(clips.split(size.batch), noise.split(size.batch), strict=True))
        for clip, drawn in batches[: amount.train_steps - first]:
            trainer.clip.copy_(clip)
            trainer.noise.copy_(drawn)
            step()
    loss = float(trainer.losses[-100:].mean())
    print(
        f"trained for {amount.train_steps} steps in {time.perf_counter() - began:.0f} s, loss "
        f"{loss:.4f}",
        flush=True,
    )
    scheduler = FlowMatchEulerDiscreteScheduler(shift=1.0)
    FreqFormerPipeline(transformer=trainer.model.eval(), scheduler=scheduler).save_pretrained(
        folder
    )


def _clips(
    count: int, index: int, amount: Amount, device: torch.device, *, held_out: bool = False
) -> Tensor:
    frames, side, _ = amount.size.video
    seed = derive_seed("training-free clips", held_out, index)
    return draw_scenes(count, seed, device, held_out=held_out, frames=frames, side=side).video


def single_patterns(budget: float, grid: Grid, shape: tuple[int, int, int]) -> dict[str, Method]:
    """Every head alike, by one pattern at about this share of dense attention's FLOPs.

    Args:
        budget: share of dense.
        grid: of the tokens.
        shape: layers, heads and head_dim.
    """
    tiles = tile_layout(grid, CUBES.tile).tiles
    wide = replace(PLAIN, tile=tile_layout(grid).tile)
    windows = list(product(*(range(1, extent + 1) for extent in tiles)))
    counts = range(1, tile_layout(grid, CUBES.tile).num_tiles + 1)
    kinds: dict[str, tuple[str, Band, list[FreqFormerConfig]]] = {
        "window": ("window", Band.HIGH, [replace(PLAIN, window=window) for window in windows]),
        "window_summaries": (
            "window and low summaries",
            Band.HIGH,
            [replace(CUBES, window=window) for window in windows],
        ),
        "radial": (
            "radial",
            Band.MID,
            [replace(PLAIN, mid_pattern="radial", radial_radius=r) for r in range(max(tiles))],
        ),
        "topk": (
            f"top-k tiles {wide.tile} by tile means",
            Band.MID,
            [replace(wide, mid_tiles=count) for count in counts],
        ),
        "vsa_selection": (
            f"top-k cubes {PLAIN.tile} by tile means, as Video Sparse Attention selects",
            Band.MID,
            [replace(PLAIN, mid_tiles=count) for count in counts],
        ),
        "topk_summaries": (
            f"top-k cubes {CUBES.tile} and low summaries",
            Band.MID,
            [replace(CUBES, mid_tiles=count) for count in counts],
        ),
    }
    layers, heads, head_dim = shape
    methods = {}
    for name, (about, band, configs) in kinds.items():

        def density(config: FreqFormerConfig, band: Band = band) -> float:
            return build_plan(grid, config, num_heads=heads, head_dim=head_dim).density(
                [band.value] * heads
            )

        best = nearest(configs, density, budget)
        bands = torch.full((1, layers, heads), band.value)
        pinned = replace(best, tile=tile_layout(grid, best.tile).tile)
        table = RoutingTable(bands, torch.full_like(bands, best.mid_tiles or 0), pinned)
        settings = {"window": best.window, "radial": best.radial_radius}.get(
            name.partition("_")[0], best.mid_tiles
        )
        methods[name] = Method(table, density(best), f"{about}: {settings}")
    return methods


def nearest(
    configs: list[FreqFormerConfig], density: Callable[[FreqFormerConfig], float], budget: float
) -> FreqFormerConfig:
    """The config whose density is nearest to the budget; of several within SLACK of it the window
    nearest a cube."""

    def rank(config: FreqFormerConfig) -> tuple[float, float, float]:
        off = abs(log(density(config) / budget))
        uneven = max(config.window) / min(config.window)
        return (off, 0.0, 0.0) if off > log(1 + SLACK) else (log(1 + SLACK), uneven, off)

    return min(configs, key=rank)


def methods_for(
    budget: float, calibration: Calibration, shape: tuple[int, int, int]
) -> dict[str, Method]:
    """The calibrated tables and the single patterns of a budget."""
    tolerance = calibration.tolerance_for(budget)
    chosen: dict[str, tuple[Choice, str]] = {
        "calibrated": (calibration.choose_within(budget), "least squared error within the budget"),
        "tolerance": (calibration.choose(tolerance), f"cheapest within tolerance {tolerance:.4f}"),
    }
    calibrated = {
        name: Method(choice.table, choice.cost, about) for name, (choice, about) in chosen.items()
    }
    return calibrated | single_patterns(budget, calibration.grid, shape)


class Comparison:
    """Dense attention's velocities and videos, to compare a method's with."""

    def __init__(self, pipeline: FreqFormerPipeline, amount: Amount) -> None:
        self.pipeline, self.amount = pipeline, amount
        model = pipeline.transformer
        clips = _clips(amount.clips, 0, amount, model.device, held_out=True)  # type: ignore[arg-type]
        self.clips = clips
        self.noise = Draw(derive_seed("training-free comparison"), clips.device).normal(
            *clips.shape
        )
        self.levels = [(bucket + 0.5) / NUM_BUCKETS for bucket in range(NUM_BUCKETS)]
        model.set_routing_table(None)
        self.velocities, self.videos = self._velocities(), self._videos()

    def of(self, method: Method) -> dict[str, Any]:
        """Relative L2 error of the velocity by noise level; PSNR and SSIM of the videos, mean and
        each."""
        model = self.pipeline.transformer
        model.set_routing_table(method.table)
        errors = [
            float((found - dense).norm() / dense.norm())
            for found, dense in zip(self._velocities(), self.velocities, strict=True)
        ]
        videos = self._videos()
        model.set_routing_table(None)
        decibels, similarity = psnr(videos, self.videos), ssim(videos, self.videos)
        return {
            "about": method.about,
            "density": method.density,
            "heads": method.table.shares,
            "velocity_error": dict(zip(map(str, self.levels), errors, strict=True)),
            "mean_velocity_error": sum(errors) / len(errors),
            "psnr": float(decibels.mean()),
            "ssim": float(similarity.mean()),
            "psnr_by_video": decibels.tolist(),
        }

    @torch.no_grad()
    def _velocities(self) -> list[Tensor]:
        model, batch = self.pipeline.transformer, self.amount.size.batch
        velocities = []
        for level in self.levels:
            noisy = ((1 - level) * self.clips + level * self.noise).to(model.dtype)
            parts = [
                model(
                    part, torch.full((len(part),), 1000 * level, device=part.device)
                ).sample.float()
                for part in noisy.split(batch)
            ]
            velocities.append(torch.cat(parts))
        return velocities

    def _videos(self) -> Tensor:
        """Videos of seeds 0, 1, ..., (clips, F, C, H, W) in [0, 1]."""
        generators = [torch.Generator().manual_seed(seed) for seed in range(self.amount.clips)]
        options = {
            "num_inference_steps": self.amount.steps,
            "batch_size": len(generators),
            "output_type": "pt",
        }
        return self.pipeline(
            *self.amount.size.video, generator=generators, **options
        ).frames.float()  # type: ignore[arg-type]


def run(
    folder: Path, amount: Amount, device: torch.device, dtype: torch.dtype
) -> tuple[dict[str, Any], Calibration]:
    """Everything, as JSON-able values, and what was measured."""
    if not (folder / "model_index.json").is_file():
        train(folder, amount, device)
    pipeline = FreqFormerPipeline.from_pretrained(folder).to(device, dtype)
    pipeline.set_progress_bar_config(disable=True)
    model = pipeline.transformer
    layer, layers = model.attentions[0], len(model.attentions)
    shape = (layers, layer.num_heads, layer.head_dim)
    began = time.perf_counter()
    batch = amount.size.batch
    batches = [
        _clips(batch, -1 - index, amount, device)
        for index in range(amount.calibration_clips // batch)
    ]
    candidates = Candidates(CUBES, amount.mid_tiles, amount.windows)
    _, calibration = calibrate(
        model, batches, 1.0, candidates=candidates, num_buckets=NUM_BUCKETS, progress=False
    )
    seconds = time.perf_counter() - began
    print(f"calibrated {layers} layers of {layer.num_heads} heads in {seconds:.0f} s", flush=True)
    comparison = Comparison(pipeline, amount)
    dense = torch.full((1, layers, layer.num_heads), Band.DENSE.value)
    table = RoutingTable(dense, dense * 0, calibration.candidates.config)
    floor = Method(table, 1.0, "DENSE in every head: rounding alone")
    results: dict[str, Any] = {"dense_table": comparison.of(floor), "budgets": {}}
    for budget in BUDGETS:
        methods = methods_for(budget, calibration, shape)
        results["budgets"][str(budget)] = {
            name: comparison.of(method) for name, method in methods.items()
        }
        report(budget, results)
    results |= {
        "model": {
            "layers": layers,
            "heads": layer.num_heads,
            "head_dim": layer.head_dim,
            "dtype": str(dtype),
        },
        "tokens": calibration.grid.num_tokens,
        "train_steps": amount.train_steps,
        "sampler_steps": amount.steps,
        "videos": amount.clips,
        "calibration": {
            "seconds": seconds,
            "clips": batch * len(batches),
        },
    }
    return results, calibration


def report(budget: float, results: dict[str, Any]) -> None:
    rows = {"dense_table": results["dense_table"], **results["budgets"][str(budget)]}
    print(f"\n{budget:.0%} of dense attention's FLOPs")
    print(
        f"{'':18}{'density':>9}{'velocity error':>16}{'PSNR dB':>9}{'SSIM':>8}  heads "
        "low/mid/high/dense"
    )
    for name, row in rows.items():
        heads = "/".join(f"{100 * share:.0f}" for share in row["heads"].values())
        print(
            f"{name:18}{row['density']:9.4f}{row['mean_velocity_error']:16.4f}{row['psnr']:9.2f}{row['ssim']:8.4f}"
            f"  {heads}  {row['about']}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--model", type=Path, required=True, help="a saved dense pipeline, or where to train one"
    )
    parser.add_argument("--train-steps", type=int, default=Amount.train_steps)
    parser.add_argument("--output", type=Path, default=record.RESULTS)
    parser.add_argument("--commit", help="of this checkout, where git isn't there to ask")
    given = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("this takes a GPU: at the study's size a CPU would need days")
    amount = replace(Amount(), train_steps=given.train_steps)
    results, calibration = run(given.model, amount, torch.device("cuda"), torch.bfloat16)
    write_table(
        calibration, calibration.tolerance_for(BUDGETS[0]), given.output / "training_free_table"
    )
    print(record.save("training_free", results, given.output, given.commit))


if __name__ == "__main__":
    main()
