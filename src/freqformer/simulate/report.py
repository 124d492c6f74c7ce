"""The HTML report: one file with tables and interactive charts, no request to anywhere."""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from freqformer._optional import needs
from freqformer.simulate.charts import Chart, all_charts, tick_text
from freqformer.simulate.scale_out import ScaleOut
from freqformer.simulate.scenarios import Result
from freqformer.simulate.sensitivity import Variant
from freqformer.simulate.units import duration, memory

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

STYLE = """
:root { color-scheme: light; --ink: #1d2433; --soft: #5b6474; --line: #dfe3ea; --paper: #ffffff; --back: #f5f6f8; }
* { box-sizing: border-box; }
body { margin: 0; background: var(--back); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 1180px; margin: 0 auto; padding: 24px 16px 48px; }
h1 { font-size: 1.7rem; margin: 0 0 4px; }
h2 { font-size: 1.15rem; margin: 32px 0 8px; }
h3 { font-size: 1rem; margin: 0 0 4px; }
p { margin: 4px 0 12px; color: var(--soft); max-width: 75ch; }
.notice { border-left: 4px solid #e69f00; background: #fff6e3; padding: 8px 12px; color: var(--ink); }
.scroll { overflow-x: auto; background: var(--paper); border: 1px solid var(--line); border-radius: 8px; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: 0.9rem; }
th, td { text-align: right; padding: 6px 8px; border-bottom: 1px solid var(--line); white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
.text th, .text td { text-align: left; white-space: normal; }
.text td:last-child { min-width: 22em; }
tr:last-child td { border-bottom: 0; }
.charts { display: grid; gap: 16px; grid-template-columns: repeat(auto-fit, minmax(min(100%, 480px), 1fr)); }
figure { margin: 0; padding: 12px; background: var(--paper); border: 1px solid var(--line); border-radius: 8px; }
figure { min-width: 0; }
figcaption { color: var(--soft); font-size: 0.85rem; }
.chart { width: 100%; height: 340px; }
"""

SCRIPT = """
for (const [id, figure] of Object.entries(charts)) {
  Plotly.newPlot(id, figure.data, figure.layout, {responsive: true, displayModeBar: false});
}
"""


def write_report(path: Path, results: Sequence[Result], variants: Sequence[Variant], rows: Sequence[ScaleOut]) -> None:
    """Write the report, atomically.

    Args:
        path: of the HTML file.
        results: the scenarios, one model on one machine, by length.
        variants: of `sensitivity`; empty leaves that part out.
        rows: of `scale_out`; empty leaves that part out.
    """
    with needs("simulate"):
        from plotly.offline import get_plotlyjs

    charts = all_charts(results, variants, rows)
    figures = ",\n".join(f'"chart-{chart.key}": {_plotly(chart).to_json()}' for chart in charts)
    body = "\n".join(
        [_heading(results[0]), _results_table(results), _figures(charts), _scale_table(rows), _sources(results[0])]
    )
    page = (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        # An empty icon, since browsers ask for one otherwise.
        f'<title>FreqFormer: simulated cost</title>\n<link rel="icon" href="data:,">\n<style>{STYLE}</style>\n</head>\n'
        f"<body>\n<main>\n{body}\n</main>\n<script>{get_plotlyjs()}</script>\n"
        f"<script>\nconst charts = {{\n{figures}\n}};\n{SCRIPT}</script>\n</body>\n</html>\n"
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(path.name + ".part")
    aside.write_text(page, encoding="utf-8")
    aside.replace(path)


def _heading(result: Result) -> str:
    case, calibration = result.scenario, result.scenario.machine.calibration
    config = ", ".join(f"{name} {value}" for name, value in case.config.to_dict().items())
    intro = (
        f"{case.model.title} on {case.machine.hardware.title}: simulated cost of frequency-banded attention beside dense "
        "attention. FLOPs and bytes are exact counts of the plan; time comes from a calibrated roofline."
    )
    if case.low_beside:
        intro += " Every head adds a gated LOW branch to its own."
    notes = [f'<p class="notice">{html.escape(text)}</p>' for text in calibration_notes(result)]
    return (
        f"<h1>FreqFormer: simulated cost</h1>\n<p>{html.escape(intro)}</p>\n<p>Configuration: {html.escape(config)}.</p>\n"
        + "\n".join(notes)
        + (f"\n<p>{html.escape(fit_note(calibration.fit))}</p>" if calibration.fit and not calibration.transferred else "")
    )


def calibration_notes(result: Result) -> list[str]:
    """What a reader must know about where the times come from."""
    machine = result.scenario.machine
    calibration, notes = machine.calibration, []
    if calibration.transferred:
        notes.append(
            f"Nothing was measured on {machine.hardware.title}: the fractions that kernels achieve are those of "
            f"{calibration.name}. Take its times as estimates."
        )
    for word, text in (
        ("design.md", "come from the design document's own probes, not from this project's committed benchmarks"),
        ("assumption", "are assumptions, wholly or in part, until they are measured"),
    ):
        sources = calibration.sources | machine.hardware.sources
        names = [name for name, source in sources.items() if word in source]
        if names:
            notes.append(f"These values {text}: {', '.join(names)}.")
    return notes


def fit_note(fit: dict[str, Any]) -> str:
    """The errors of the fit and of the hold-out, as a sentence."""
    parts = [
        f"{name}: {fit[key]['count']} measurements, median error {fit[key]['median']:.1%}, worst {fit[key]['worst']:.1%}"
        for name, key in (("fitted", "fit"), ("held out", "held_out"))
        if fit.get(key, {}).get("count")
    ]
    text = "Times against committed measurements. " + "; ".join(parts) + "."
    if "held_out" not in fit:
        text += " Nothing was held out, so how well other lengths are predicted is not known."
    if "memory" in fit:
        found = fit["memory"]
        text += f" Peak memory: {found['count']} layers, median error {found['median']:.1%}, worst {found['worst']:.1%}."
    return text


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], style: str = "") -> str:
    cells = "".join(f"<th>{_cell(name)}</th>" for name in head)
    lines = ["<tr>" + "".join(f"<td>{_cell(value)}</td>" for value in row) + "</tr>" for row in rows]
    return f'<div class="scroll"><table class="{style}"><tr>{cells}</tr>\n' + "\n".join(lines) + "</table></div>"


def _cell(text: str) -> str:
    return html.escape(text).replace("\n", "<br>")


def _results_table(results: Sequence[Result]) -> str:
    rows = [
        [
            f"{result.scenario.tokens:,}",
            " × ".join(map(str, result.scenario.grid.shape)),
            f"{result.scenario.seconds_of_video:.1f} s",
            f"{result.density:.2%}",
            f"{result.layer.tokens_per_s / 1e6:.2f} M",
            f"{result.arithmetic_intensity:.0f}",
            *(
                f"{duration(level.seconds)}\n{level.speedup:.1f}×"
                for level in (result.layer, result.training, result.step, result.generation)
            ),
            f"{result.generation.video_seconds_per_s:.2g}",
            memory(result.step.peak_memory_bytes),
        ]
        for result in results
    ]
    head = [
        "tokens",
        "grid",
        "video",
        "density",
        "tokens/s",
        "FLOPs/byte",
        "layer",
        "layer,\ntrained",
        "step",
        "generation",
    ]
    note = (
        "Time, and how many times faster than dense attention: of one attention layer, forward; of it trained, forward and "
        "backward; of one denoising step and one generation of the whole model. Tokens per second and FLOPs per byte of "
        "memory traffic are the layer's, video seconds per second the generation's, peak memory is the step's."
    )
    return f"<h2>Results</h2>\n<p>{note}</p>\n" + _table(head, rows)


def _scale_table(rows: Sequence[ScaleOut]) -> str:
    if not rows:
        return ""
    lines = [
        [
            str(row.gpus),
            f"{row.ulysses} × {row.query_split}",
            duration(row.seconds),
            f"{rows[0].seconds * rows[0].gpus / row.seconds / row.gpus:.0%}",
            duration(row.naive_seconds),
            f"{row.imbalance:.2f}\n{row.naive_imbalance:.2f}",
            memory(row.all_to_all_bytes),
            duration(row.communication_seconds),
            duration(row.dense_seconds),
            memory(row.memory_bytes),
        ]
        for row in rows
    ]
    head = ["GPUs", "heads ×\nqueries", "step", "efficiency", "step, heads\nin order", "imbalance,\nin order"]
    head += ["all-to-all\na layer", "communi-\ncation", "dense\nstep", "memory\nper GPU"]
    return "<h2>Scale-out, on paper</h2>\n" + _table(head, lines)


def _figures(charts: Sequence[Chart]) -> str:
    parts = [
        f'<figure><h3>{html.escape(chart.title)}</h3><div class="chart" id="chart-{chart.key}"></div>'
        f"<figcaption>{html.escape(chart.note)}</figcaption></figure>"
        for chart in charts
    ]
    return '<h2>Charts</h2>\n<div class="charts">\n' + "\n".join(parts) + "\n</div>"


def _sources(result: Result) -> str:
    machine = result.scenario.machine
    owners = (("machine", machine.hardware), ("calibration", machine.calibration))
    rows = [
        [f"{kind}: {name}", _figure(getattr(owner, name, None)), source]
        for kind, owner in owners
        for name, source in owner.sources.items()
    ]
    rows += [[f"model: {name}", "", source] for name, source in result.scenario.model.sources.items()]
    return "<h2>Where the figures come from</h2>\n" + _table(["figure", "value", "source"], rows, "text")


def _figure(value: object) -> str:
    return f"{value:g}" if isinstance(value, int | float) else ""


def _plotly(chart: Chart) -> Figure:
    """One chart as a Plotly figure."""
    with needs("simulate"):
        import plotly.graph_objects as go

    figure = go.Figure()
    for series in chart.series:
        x, y = list(series.x), list(series.y)
        if chart.kind == "bars":
            figure.add_bar(x=x, y=y, name=series.name, marker_color=series.colour)
        elif chart.kind == "area":
            line = {"width": 0.5, "color": series.colour, "shape": "hvh"}
            figure.add_scatter(x=x, y=y, name=series.name, stackgroup="one", line=line, fillcolor=series.colour)
        else:
            mode = {"line": "lines+markers", "dashed": "lines", "points": "markers"}[series.style]
            dash = "dash" if series.style == "dashed" else "solid"
            line = {"color": series.colour, "dash": dash}
            figure.add_scatter(x=x, y=y, name=series.name, mode=mode, line=line, marker={"color": series.colour, "size": 8})
    axes = {"gridcolor": "#e6e9ee", "zeroline": False, "automargin": True}
    figure.update_layout(
        template="none",
        barmode="stack",
        margin={"l": 50, "r": 10, "t": 10, "b": 40},
        legend={"orientation": "h", "yref": "container", "yanchor": "bottom", "y": 0, "x": 0},
        hovermode="closest" if chart.key == "roofline" else "x unified",
        xaxis=axes | {"title": {"text": chart.x_label}, "type": _axis_type(chart, chart.log_x)},
        yaxis=axes | {"title": {"text": chart.y_label}, "type": "log" if chart.log_y else "linear"},
    )
    if chart.ticks:
        figure.update_xaxes(tickvals=list(chart.ticks), ticktext=[tick_text(value) for value in chart.ticks])
    elif chart.log_x:
        figure.update_xaxes(dtick=1)
    if chart.log_y:
        figure.update_yaxes(dtick=1)
    return figure


def _axis_type(chart: Chart, log: bool) -> str:
    if log:
        return "log"
    return "category" if isinstance(chart.series[0].x[0], str) else "linear"
