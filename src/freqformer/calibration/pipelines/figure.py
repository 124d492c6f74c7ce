"""Where the density of a pipeline's tables went, and what was tried: a picture."""

from __future__ import annotations

from math import isfinite
from pathlib import Path
from typing import Any

from freqformer._colours import BANDS, INK
from freqformer.analysis.figures import blank_figure, label_axes, save_figure
from freqformer.calibration.pipelines.choice import PipelineChoice


def steps_figure(choice: PipelineChoice, path: Path) -> None:
    """Density by layer and step, the error that each step is expected to add, and how near every
    table was that was tried.

    Args:
        choice: of `calibrate_pipeline`.
        path: PNG to write.

    Raises:
        ValueError: where it can't be written.
    """
    steps = choice.calibration.steps
    panels = 3 if choice.tried else 2
    figure = blank_figure(5.5 * panels, 4.2)
    maps, errors, *rest = figure.subplots(1, panels)
    shares = choice.choice.costs.mean(2).T.numpy()
    shown = maps.imshow(shares, aspect="auto", cmap="viridis", vmin=0, vmax=1)
    label_axes(maps, "share of dense attention's FLOPs", "step, noisiest first", "layer")
    figure.colorbar(shown, ax=maps)
    added = choice.choice.errors.square().sum((1, 2)).sqrt().numpy()
    errors.plot([step.level for step in steps], added, marker="o", color=INK)
    label_axes(errors, "expected error of the final latents", "noise level, 1 is noise", "")
    for axes in rest:
        _draw_tried(axes, choice)
    save_figure(figure, path)


def _draw_tried(axes: Any, choice: PipelineChoice) -> None:
    """Nearness by density; the table that was taken is marked."""
    assert choice.chosen is not None
    near = [tried for tried in choice.tried if isfinite(tried.nearness)]
    axes.plot([one.density for one in near], [one.nearness for one in near], "o", color=INK)
    axes.plot([choice.chosen.density], [choice.chosen.nearness], "*", color=BANDS[2], markersize=15)
    label_axes(axes, "nearness of what was tried, dB", "share of dense attention's FLOPs", "")
