"""Figures as PNG, drawn with matplotlib's Agg canvas. No global state is touched, so they can be
drawn from anywhere."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from freqformer._colours import BANDS, FAINT, GRID, INK
from freqformer._files import writing_file
from freqformer._optional import needs
from freqformer.analysis.spectra import BAND_NAMES, Spectrum
from freqformer.config import Band

with needs("simulate"):
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.colors import ListedColormap
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch as LegendPatch
    from matplotlib.ticker import LogLocator, NullLocator


def blank_figure(width: float, height: float) -> Figure:
    """A white figure of so many inches that no window shows."""
    figure = Figure(figsize=(width, height), dpi=110, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def label_axes(axes, title: str, x: str, y: str) -> None:
    """Title and labels of the axes, without a box around them."""
    axes.set_title(title, loc="left", fontsize=11, color=INK)
    axes.set_xlabel(x, color=INK)
    axes.set_ylabel(y, color=INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=INK)


def save_figure(figure: Figure, path: str | Path) -> None:
    """Write a PNG, whole or not at all; its folder is made if need be."""
    with writing_file(Path(path)) as new:
        # No date and version in the file: the same numbers give the same bytes.
        figure.savefig(new, format="png", metadata={"Software": None})


def energies_figure(spectrum: Spectrum, fps: float, path: str | Path) -> None:
    """Share of the energy in each band over time, on a logarithmic axis since the low band holds
    most.

    Args:
        spectrum: of the clip.
        fps: its frames per second.
        path: of the PNG.
    """
    figure = blank_figure(6.4, 4)
    axes = figure.subplots()
    edges = [frame / fps for frame in spectrum.first_frames]
    total = spectrum.total_shares
    for band, name in enumerate(BAND_NAMES):
        shares = (100 * spectrum.shares[:, band]).clamp_min(1e-3).tolist()
        label = f"{name}, {100 * total[band]:.1f}% of all"
        # One level per step of tiles: the bands are defined on whole tiles.
        axes.stairs(shares, edges, baseline=None, color=BANDS[band], linewidth=2.2, label=label)
    axes.set_yscale("log")
    axes.set_xlim(0, edges[-1])
    axes.set_ylim(top=130)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}%")
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    figure.legend(frameon=False, fontsize=9, labelcolor=INK, loc="outside lower center", ncols=3)
    label_axes(axes, "Energy per band, without the mean colour", "seconds", "share of the energy")
    save_figure(figure, path)


def loss_figure(
    steps: Sequence[int], losses: Sequence[float], path: str | Path, *, window: int = 25
) -> None:
    """Training loss per step, and its running mean over `window` steps.

    Args:
        steps: rising step numbers.
        losses: the loss at each.
        path: of the PNG.
        window: steps in the mean.

    Raises:
        ValueError: for no step, or other losses than steps.
    """
    if not steps or len(steps) != len(losses):
        raise ValueError(
            f"steps has {len(steps)} and losses {len(losses)} numbers; as many, at least one, are "
            "allowed"
        )
    figure = blank_figure(8, 3.6)
    axes = figure.subplots()
    axes.plot(steps, losses, color=FAINT, linewidth=0.8, label="each step")
    width = min(window, len(losses))
    smooth = torch.tensor(losses, dtype=torch.float64).unfold(0, width, 1).mean(-1).tolist()
    axes.plot(
        steps[width - 1 :],
        smooth,
        color=BANDS[0],
        linewidth=2.2,
        label=f"mean of {width} steps",
    )
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.legend(frameon=False, fontsize=9, labelcolor=INK)
    label_axes(axes, "Flow-matching loss", "optimizer step", "mean squared error of the velocity")
    save_figure(figure, path)


def allocation_figure(allocations: Tensor, timesteps: Sequence[float], path: str | Path) -> None:
    """Which band each head of each layer uses at every denoising step, as a heat map.

    Args:
        allocations: int (steps, layers, heads) of bands.
        timesteps: noise level of every step in [0, 1], 1 is pure noise; first step first.
        path: of the PNG.

    Raises:
        ValueError: for allocations of another shape, or another number of timesteps.
    """
    figure, axes, rows = _heat_map("allocations", allocations, timesteps)
    used = [band for band in Band if band != Band.DENSE or bool((rows == Band.DENSE).any())]
    axes.imshow(
        rows.numpy(),
        aspect="auto",
        interpolation="nearest",
        cmap=ListedColormap(BANDS),
        vmin=0,
        vmax=3,
    )
    handles = [LegendPatch(color=BANDS[band], label=band.name.lower()) for band in used]
    axes.legend(
        handles=handles,
        frameon=False,
        fontsize=9,
        loc="center left",
        bbox_to_anchor=(1, 0.5),
        labelcolor=INK,
    )
    _finish_heat_map(
        axes, f"Band of each head ({allocations.shape[2]} rows a layer) while denoising"
    )
    save_figure(figure, path)


def weights_figure(weights: Tensor, timesteps: Sequence[float], path: str | Path) -> None:
    """What soft routing adds to the weight of LOW in each head of each layer at every denoising
    step, as a heat map.

    Args:
        weights: (steps, layers, heads); colours end at -1 and 1.
        timesteps, path: as in `allocation_figure`.

    Raises:
        ValueError: for weights of another shape, or another number of timesteps.
    """
    figure, axes, rows = _heat_map("weights", weights, timesteps)
    image = axes.imshow(
        rows.float().numpy(), aspect="auto", interpolation="nearest", cmap="RdBu_r", vmin=-1, vmax=1
    )
    figure.colorbar(image, ax=axes, extend="both")
    _finish_heat_map(
        axes,
        f"Added to the weight of low in each head ({weights.shape[2]} rows a layer) while "
        "denoising",
    )
    save_figure(figure, path)


def _heat_map(name: str, values: Tensor, timesteps: Sequence[float]) -> tuple[Figure, Any, Tensor]:
    """A figure, its axes with names of layers and steps, and rows (layers * heads, steps)."""
    if values.ndim != 3 or values.shape[0] != len(timesteps):
        raise ValueError(
            f"{name} has shape {tuple(values.shape)} for {len(timesteps)} timesteps; (steps, "
            "layers, heads) with "
            "one timestep per step is allowed"
        )
    steps, layers, heads = values.shape
    figure = blank_figure(8, 1.6 + 0.16 * layers * heads)
    axes = figure.subplots()
    for layer in range(1, layers):
        axes.axhline(layer * heads - 0.5, color="white", linewidth=3)
    axes.set_yticks(
        [layer * heads + (heads - 1) / 2 for layer in range(layers)],
        [f"layer {i + 1}" for i in range(layers)],
    )
    shown = sorted({round(i * (steps - 1) / 6) for i in range(7)})
    axes.set_xticks(shown, [f"{timesteps[i]:.2f}" for i in shown])
    return figure, axes, values.flatten(1).T


def _finish_heat_map(axes: Any, title: str) -> None:
    label_axes(axes, title, "noise level: from pure noise to the clip", "")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def labelled_grid(clips: Tensor, labels: Sequence[str], *, columns: int = 2) -> Tensor:
    """Clips side by side, each under a line of text.

    Args:
        clips: uint8 (K, F, H, W, 3).
        labels: K texts.
        columns: clips in a row.

    Returns: uint8 (F, rows, columns, 3).

    Raises:
        ValueError: for another number of labels, or clips that don't fill the rows.
    """
    count, frames, width = clips.shape[0], clips.shape[1], clips.shape[3]
    if len(labels) != count or count % columns:
        raise ValueError(
            f"clips holds {count} clips for {len(labels)} labels in {columns} columns; full rows "
            "are allowed"
        )
    rows, strip = [], max(width // 18, 8)
    for start in range(0, count, columns):
        row = [
            torch.cat([_text(label, strip, width).expand(frames, -1, -1, -1), clip], 1)
            for clip, label in zip(
                clips[start : start + columns], labels[start : start + columns], strict=True
            )
        ]
        rows.append(torch.cat(row, 2))
    return torch.cat(rows, 1)


def _text(label: str, height: int, width: int) -> Tensor:
    """A line of text on white, uint8 (height, width, 3)."""
    figure = Figure(figsize=(width / 100, height / 100), dpi=100, facecolor="white")
    canvas = FigureCanvasAgg(figure)
    figure.text(0.01, 0.5, label, va="center", fontsize=0.42 * height, color=INK)
    canvas.draw()
    return torch.from_numpy(np.array(canvas.buffer_rgba()))[..., :3]
