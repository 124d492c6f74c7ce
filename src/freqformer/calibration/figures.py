"""Figures of a calibration as PNG.

Shape legend: T timestep buckets, L layers, H heads, C candidates.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from freqformer._colours import BANDS, GRID, INK
from freqformer._optional import needs
from freqformer.analysis.figures import blank_figure, label_axes, save_figure
from freqformer.calibration.choice import Calibration, Choice
from freqformer.config import Band

with needs("train"):
    from matplotlib.colors import ListedColormap, to_rgb
    from matplotlib.patches import Patch
    from matplotlib.ticker import LogLocator, NullLocator

CURVE_POINTS = 100
PANELS = 5
"""Heat maps in a row."""


def error_figure(calibration: Calibration, path: str | Path) -> None:
    """Relative error of every candidate by noise level: of the median head, and of the head that
    90% are better than.

    Args:
        calibration: what was measured.
        path: of the PNG.
    """
    figure = blank_figure(8, 4.4)
    axes = figure.subplots()
    heads = calibration.errors.flatten(1, 2)
    levels = ((torch.arange(len(heads)) + 0.5) / len(heads)).tolist()
    medians, worse = heads.quantile(torch.tensor([0.5, 0.9], dtype=heads.dtype), dim=1)
    colours = _colours([band for band, _ in calibration.candidates.operators])
    for place, (name, colour) in enumerate(zip(calibration.candidates.names, colours, strict=True)):
        axes.plot(
            levels,
            medians[:, place].tolist(),
            color=colour,
            linewidth=2,
            marker="o",
            markersize=3.5,
            label=name,
        )
        axes.plot(levels, worse[:, place].tolist(), color=colour, linewidth=1, linestyle=":")
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.legend(
        frameon=False, fontsize=9, labelcolor=INK, loc="center left", bbox_to_anchor=(1, 0.5)
    )
    title = "Error of each candidate: median head, and dotted the head that 90% are better than"
    label_axes(axes, title, "noise level, 1 is noise", "relative L2 error")
    save_figure(figure, path)


def _colours(bands: list[Band]) -> list[tuple[float, float, float]]:
    """The colour of every candidate's band, the darker the later it comes among those of its
    band."""
    colours = []
    for place, band in enumerate(bands):
        first, count = bands.index(band), bands.count(band)
        light = 0.55 * (1 - (place - first + 1) / count)
        colours.append(tuple(light + (1 - light) * part for part in to_rgb(BANDS[band])))
    return colours


def choice_figure(choice: Choice, path: str | Path) -> None:
    """The band of every head: one map of layers and heads for each bucket, least noise first.

    Args:
        choice: what was chosen.
        path: of the PNG.
    """
    bands = choice.table.bands
    buckets, layers, heads = bands.shape
    columns = min(buckets, PANELS)
    rows = -(-buckets // columns)
    width, height = max(1.5, 0.18 * heads), max(1.1, 0.18 * layers)
    figure = blank_figure(columns * (width + 0.35) + 1.2, rows * (height + 0.75) + 0.4)
    panels = figure.subplots(rows, columns, squeeze=False).flatten()
    for bucket, axes in enumerate(panels[:buckets]):
        axes.imshow(
            bands[bucket].numpy(),
            cmap=ListedColormap(BANDS),
            vmin=0,
            vmax=3,
            aspect="auto",
            interpolation="nearest",
        )
        label_axes(
            axes, f"noise {bucket / buckets:.2g} to {(bucket + 1) / buckets:.2g}", "head", "layer"
        )
        axes.title.set_fontsize(9)
        axes.spines[:].set_visible(False)
        axes.set_xticks([])
        axes.set_yticks([0, layers - 1] if layers > 1 else [0])
    for axes in panels[buckets:]:
        axes.remove()
    handles = [Patch(color=BANDS[band], label=band.name.lower()) for band in Band]
    figure.legend(
        handles=handles, frameon=False, fontsize=9, labelcolor=INK, loc="outside right center"
    )
    save_figure(figure, path)


def cost_curve(calibration: Calibration, points: int = CURVE_POINTS) -> tuple[Tensor, Tensor]:
    """Tolerances, rising, and the cost of their tables relative to dense attention: two float64
    (points,).

    Args:
        calibration: what was measured; nothing is run.
        points: tolerances, spread over the measured errors.
    """
    levels = calibration.errors[calibration.errors > 0].unique()
    tolerances = (
        levels.quantile(torch.linspace(0, 1, points, dtype=torch.float64))
        if len(levels)
        else levels
    )
    costs = [calibration.choose(float(level)).cost for level in tolerances]
    return tolerances, torch.tensor(costs, dtype=torch.float64)


def cost_figure(
    calibration: Calibration, choice: Choice, tolerance: float, path: str | Path
) -> None:
    """Attention FLOPs against the tolerance, and where the choice is.

    Args:
        calibration: what was measured.
        choice, tolerance: what was chosen.
        path: of the PNG.
    """
    figure = blank_figure(6.4, 4)
    axes = figure.subplots()
    tolerances, costs = cost_curve(calibration)
    axes.step(
        tolerances.tolist(),
        (100 * costs).tolist(),
        where="post",
        color=BANDS[0],
        linewidth=2.2,
    )
    axes.plot(
        [tolerance],
        [100 * choice.cost],
        "o",
        color=BANDS[2],
        label=f"chosen: {100 * choice.cost:.1f}%",
    )
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}%")
    axes.grid(color=GRID, linewidth=0.8)
    axes.legend(frameon=False, fontsize=9, labelcolor=INK)
    label_axes(
        axes, "Attention FLOPs relative to dense", "tolerance: relative L2 error of a head", ""
    )
    save_figure(figure, path)
