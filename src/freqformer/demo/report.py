"""What a demo shows of its run: pictures, and facts that the page is filled with."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from freqformer import __version__
from freqformer._files import write_json, write_text
from freqformer.analysis.figures import allocation_figure, loss_figure, weights_figure
from freqformer.analysis.spectra import Spectrum
from freqformer.config import Band, FreqFormerConfig
from freqformer.demo.page import render_page
from freqformer.demo.settings import DemoSettings
from freqformer.demo.stages import Generated
from freqformer.grid import Grid, tile_layout
from freqformer.media import contact_sheet, enlarge, write_video
from freqformer.plan import build_plan

if TYPE_CHECKING:
    from freqformer.models.transformer import FreqFormerTransformer3DModel
    from freqformer.training.report import StepReport

GRID_720P = Grid(21, 45, 80)
"""Tokens of 5 s of 720p in the latents of a usual video VAE."""


def write_pictures(
    output: Path, settings: DemoSettings, reports: list[StepReport], generated: Generated
) -> None:
    large = enlarge(generated.frames, settings.enlarge)
    write_video(large, output / "generated.mp4", settings.fps)
    contact_sheet(large, output / "contact_sheet.png", columns=4)
    loss_figure(
        [report.step for report in reports],
        [report.loss for report in reports],
        output / "loss.png",
    )
    if generated.low_weights is None:
        allocation_figure(generated.allocations, generated.timesteps, output / "routing.png")
    else:
        weights_figure(generated.low_weights, generated.timesteps, output / "routing.png")


def measured_facts(
    settings: DemoSettings, reports: list[StepReport], spectrum: Spectrum, generated: Generated
) -> dict[str, Any]:
    """What the run measured."""
    tenth = max(len(reports) // 10, 1)
    losses = [report.loss for report in reports]
    return {
        "version": __version__,
        "torch_version": torch.__version__,
        "threads": torch.get_num_threads(),
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "clip": {
            "frames": settings.num_frames,
            "height": settings.height,
            "width": settings.width,
            "fps": settings.fps,
        },
        "compression": spectrum.layout.grid.num_tokens / spectrum.num_low_tokens,
        "band_shares": dict(zip(("low", "mid", "high"), spectrum.total_shares, strict=True)),
        "train_steps": len(reports),
        "train_seconds": reports[-1].seconds,
        "first_loss": sum(losses[:tenth]) / tenth,
        "last_loss": sum(losses[-tenth:]) / tenth,
        "inference_steps": settings.inference_steps,
        "generate_seconds": generated.seconds,
    }


def planned_costs(
    settings: DemoSettings, model: FreqFormerTransformer3DModel, generated: Generated
) -> dict[str, Any]:
    """What the plan says that the chosen allocation costs, relative to dense attention."""
    grid = model.grid_for((settings.num_frames, settings.height, settings.width))
    shares = [float((generated.allocations == band).double().mean()) for band in Band]
    # The demo's tiles are small for the sake of a small clip; what matters at 720p is what one
    # would use there.
    large = build_plan(
        GRID_720P, FreqFormerConfig.paper(), num_heads=1, head_dim=64, learned_summaries=True
    )
    costs = {}
    for name, where, flops in (
        ("here", grid, model.routing_costs(grid)),
        ("720p", GRID_720P, large.band_costs()),
    ):
        of_band = [cost / flops[Band.DENSE] for cost in flops]
        density = sum(share * cost for share, cost in zip(shares, of_band, strict=True))
        costs[name] = {"tokens": where.num_tokens, "bands": of_band[:3], "density": density}
    return {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "tiles": tile_layout(grid, model.frequency_config.tile).num_tiles,
        "head_shares": shares[:3],
        "routing": model.frequency_config.routing,
        "attention_flops_of_dense": costs,
    }


def write_page(output: Path, facts: dict[str, Any]) -> Path:
    write_json(output / "summary.json", facts)
    page = output / "index.html"
    write_text(page, render_page(facts))
    return page
