"""The charts as PNG files, for documents."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from freqformer._files import writing_file
from freqformer._optional import needs
from freqformer.simulate.present.charts import Chart, Series, tick_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def write_figures(charts: Sequence[Chart], folder: Path) -> list[Path]:
    """Write every chart as `simulate-<key>.png` into a folder, which is made if missing; returns
    the paths."""
    with needs("simulate"):
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

    paths = []
    for chart in charts:
        figure = Figure(figsize=(7, 4), layout="constrained")
        FigureCanvasAgg(figure)
        _draw(chart, figure.add_subplot())
        path = folder / f"simulate-{chart.key}.png"
        with writing_file(path) as new:
            figure.savefig(new, dpi=130)
        paths.append(path)
    return paths


def _draw(chart: Chart, axes: Axes) -> None:
    axes.set_title(chart.title, loc="left", fontsize=11)
    axes.set_xlabel(chart.x_label)
    axes.set_ylabel(chart.y_label)
    axes.grid(True, alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    if chart.kind == "area":
        x = [float(value) for value in chart.series[0].x]
        axes.stackplot(
            x,
            [series.y for series in chart.series],
            labels=[series.name for series in chart.series],
            colors=[series.colour for series in chart.series],
            step="mid",
        )
    elif chart.kind == "bars":
        base = [0.0] * len(chart.series[0].y)
        for series in chart.series:
            axes.bar(
                list(map(str, series.x)),
                series.y,
                bottom=base,
                color=series.colour,
                label=series.name,
                width=0.7,
            )
            base = [low + value for low, value in zip(base, series.y, strict=True)]
    else:
        for series in chart.series:
            _line(series, axes)
    if chart.log_x:
        axes.set_xscale("log")
    if chart.log_y:
        axes.set_yscale("log")
    if chart.ticks:
        axes.set_xticks(list(chart.ticks), [tick_text(value) for value in chart.ticks])
        axes.minorticks_off()
    if chart.kind == "lines":
        axes.legend(frameon=False, fontsize=8)
    else:
        # Areas and bars fill the axes; the names stand beside them, in the order of the stack.
        axes.legend(
            frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1), reverse=True
        )


def _line(series: Series, axes: Axes) -> None:
    line = {"line": "-", "dashed": "--", "points": "none"}[series.style]
    marker = "" if series.style == "dashed" else "o"
    axes.plot(
        series.x,
        series.y,
        linestyle=line,
        marker=marker,
        markersize=5,
        color=series.colour,
        label=series.name,
    )
