"""The HTML report: one file with tables and interactive charts, no request to anywhere."""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from freqformer._optional import needs
from freqformer.simulate.model.scale_out import ScaleOut
from freqformer.simulate.model.sensitivity import Variant
from freqformer.simulate.model.simulation import Result
from freqformer.simulate.present.charts import Chart, all_charts, tick_text
from freqformer.simulate.present.describe import (
    LEFT_OUT,
    dense_rate_note,
    efficiency_notes,
    fit_note,
    preset_title,
    scale_note,
    settings,
)
from freqformer.simulate.present.units import duration, memory

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

NEW_LINE = "\n"
STYLE = """
:root { color-scheme: light; --ink: #1d2433; --soft: #5b6474; --line: #dfe3ea; --paper: #ffffff;
  --back: #f5f6f8; }
* { box-sizing: border-box; }
body { margin: 0; background: var(--back); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 1180px; margin: 0 auto; padding: 24px 16px 48px; }
h1 { font-size: 1.7rem; margin: 0 0 4px; }
h2 { font-size: 1.15rem; margin: 32px 0 8px; }
h3 { font-size: 1rem; margin: 0 0 4px; }
p { margin: 4px 0 12px; color: var(--soft); max-width: 75ch; }
.notice { border-left: 4px solid #e69f00; background: #fff6e3; padding: 8px 12px;
  color: var(--ink); }
.scroll { overflow-x: auto; background: var(--paper); border: 1px solid var(--line);
  border-radius: 8px; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums;
  font-size: 0.9rem; }
th, td { text-align: right; padding: 6px 8px; border-bottom: 1px solid var(--line);
  white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
.text th, .text td { text-align: left; white-space: normal; }
.text td:last-child { min-width: 22em; }
tr:last-child td { border-bottom: 0; }
@media (max-width: 700px) {
  .cards thead { display: none; }
  .cards, .cards tbody { display: block; }
  .cards tr { display: grid; grid-template-columns: 1fr 1fr; padding: 8px 4px;
    border-bottom: 1px solid var(--line); }
  .cards tr:last-child { border-bottom: 0; }
  .cards td, .cards td:first-child { border: 0; padding: 2px 8px; text-align: left;
    white-space: normal; }
  .cards td::before { content: attr(data-name); display: block; color: var(--soft);
    font-size: 0.75rem; }
  .cards td:first-child { grid-column: 1 / -1; font-weight: 600; }
  .text td:last-child { min-width: 14em; }
}
.charts { display: grid; gap: 16px;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 480px), 1fr)); }
figure { margin: 0; padding: 12px; background: var(--paper); border: 1px solid var(--line);
  border-radius: 8px; }
figure { min-width: 0; }
figcaption { color: var(--soft); font-size: 0.85rem; }
.chart { width: 100%; height: 340px; }
"""

SCRIPT = """
for (const [id, figure] of Object.entries(charts)) {
  Plotly.newPlot(id, figure.data, figure.layout, {responsive: true, displayModeBar: false});
}
"""


def report_page(
    results: Sequence[Result], variants: Sequence[Variant], rows: Sequence[ScaleOut]
) -> str:
    """The report as one HTML page.

    Args:
        results: the scenarios, one model on one machine, by length.
        variants: of `sensitivity`; empty leaves that part out.
        rows: of `scale_out`; empty leaves that part out.
    """
    with needs("simulate"):
        from plotly.offline import get_plotlyjs

    charts = all_charts(results, variants, rows)
    figures = ",\n".join(f'"chart-{chart.key}": {_plotly(chart).to_json()}' for chart in charts)
    body = "\n".join(
        [
            _heading(results[0]),
            _results_table(results),
            _trust(results[0]),
            _settings(results[0]),
            _figures(charts),
            _scale_table(rows, scale_note(results[0].scenario.machine.efficiency)),
            _sources(results[0]),
        ]
    )
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        # An empty icon, since browsers ask for one otherwise.
        '<title>FreqFormer: simulated cost</title>\n<link rel="icon" '
        f'href="data:,">\n<style>{STYLE}</style>\n</head>\n'
        f"<body>\n<main>\n{body}\n</main>\n<script>{get_plotlyjs()}</script>\n"
        f"<script>\nconst charts = {{\n{figures}\n}};\n{SCRIPT}</script>\n</body>\n</html>\n"
    )


def _heading(result: Result) -> str:
    case = result.scenario
    intro = (
        f"{case.model.title} on {case.machine.hardware.title}, {preset_title(case)}: simulated "
        "cost of frequency-banded "
        "attention beside dense attention. FLOPs and bytes are exact counts of the plan; time "
        "comes from a fitted "
        "roofline."
    )
    return f"<h1>FreqFormer: simulated cost</h1>\n<p>{html.escape(intro)}</p>"


def _trust(result: Result) -> str:
    """What the times mean and where they come from."""
    efficiency = result.scenario.machine.efficiency
    texts = [f"{dense_rate_note(result)} {LEFT_OUT}"]
    if efficiency.fit and not efficiency.transferred:
        texts.append(fit_note(efficiency.fit))
    notices = [f'<p class="notice">{html.escape(text)}</p>' for text in efficiency_notes(result)]
    return "\n".join(
        [
            "<h2>How far to trust the times</h2>",
            *notices,
            *(f"<p>{html.escape(text)}</p>" for text in texts),
        ]
    )


def _settings(result: Result) -> str:
    rows = list(settings(result.scenario).items())
    return "<h2>What was simulated</h2>\n" + _text_table(["setting", "value"], rows)


@dataclass(frozen=True)
class _Column:
    """One column of a table of results."""

    head: str
    cell: Callable[[Any], str]


def _columns_table(columns: Sequence[_Column], rows: Sequence[Any]) -> str:
    """A table with a heading for every column by construction; on a phone each row is a card of
    named values."""
    head = "".join(f"<th>{_cell(column.head)}</th>" for column in columns)
    lines = []
    for row in rows:
        cells = (
            f'<td data-name="{_cell(column.head.replace(NEW_LINE, " "))}">'
            f"<span>{_cell(column.cell(row))}</span></td>"
            for column in columns
        )
        lines.append("<tr>" + "".join(cells) + "</tr>")
    body = "\n".join(lines)
    return (
        f'<div class="scroll"><table class="cards"><thead><tr>{head}</tr></thead>\n'
        f"<tbody>{body}</tbody></table></div>"
    )


def _text_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    cells = "".join(f"<th>{_cell(name)}</th>" for name in head)
    lines = [
        "<tr>" + "".join(f"<td>{_cell(value)}</td>" for value in row) + "</tr>" for row in rows
    ]
    return (
        f'<div class="scroll"><table class="text"><tr>{cells}</tr>\n'
        + "\n".join(lines)
        + "</table></div>"
    )


def _cell(text: str) -> str:
    return html.escape(text).replace(NEW_LINE, "<br>")


def _level(name: str) -> Callable[[Result], str]:
    """Time of a level, and how many times faster than dense attention."""

    def cell(result: Result) -> str:
        level = getattr(result, name)
        return f"{duration(level.seconds)}\n{level.speedup:.1f}×"

    return cell


RESULT_COLUMNS = (
    _Column("tokens", lambda result: f"{result.scenario.tokens:,}"),
    _Column("video", lambda result: f"{result.scenario.seconds_of_video:.1f} s"),
    _Column("layer", _level("layer")),
    _Column("layer,\ntrained", _level("training")),
    _Column("step", _level("step")),
    _Column("generation", _level("generation")),
    _Column("peak\nmemory", lambda result: memory(result.step.peak_memory_bytes)),
    _Column("attention\nFLOPs", lambda result: f"{result.density:.2%}"),
    _Column("tokens/s", lambda result: f"{result.layer.tokens_per_s / 1e6:.2f} M"),
    _Column("video s\nper s", lambda result: f"{result.generation.video_seconds_per_s:.2g}"),
    _Column("FLOPs\nper byte", lambda result: f"{result.arithmetic_intensity:.0f}"),
    _Column("grid", lambda result: " × ".join(map(str, result.scenario.grid.shape))),
)


def _results_table(results: Sequence[Result]) -> str:
    note = (
        "Time, and how many times faster than dense attention: of one attention layer, forward; of "
        "it trained, forward and "
        "backward; of one denoising step and one generation of the whole model. Peak memory is the "
        "step's. Attention FLOPs "
        "are relative to dense attention's. Tokens per second and FLOPs per byte of memory traffic "
        "are the layer's, video "
        "seconds per second the generation's."
    )
    return f"<h2>Results</h2>\n<p>{note}</p>\n" + _columns_table(RESULT_COLUMNS, results)


def _scale_table(rows: Sequence[ScaleOut], note: str) -> str:
    if not rows:
        return ""
    first = rows[0]
    columns = (
        _Column("GPUs", lambda row: str(row.gpus)),
        _Column("step", lambda row: duration(row.seconds)),
        _Column("dense\nstep", lambda row: duration(row.dense_seconds)),
        _Column(
            "efficiency", lambda row: f"{first.seconds * first.gpus / row.seconds / row.gpus:.0%}"
        ),
        _Column("memory\nper GPU", lambda row: memory(row.memory_bytes)),
        _Column("heads ×\nqueries", lambda row: f"{row.ulysses} × {row.query_split}"),
        _Column("communication", lambda row: duration(row.communication_seconds)),
        _Column("all-to-all\na layer", lambda row: memory(row.all_to_all_bytes)),
        _Column("imbalance", lambda row: f"{row.imbalance:.2f}"),
        _Column("step, heads\nin order", lambda row: duration(row.naive_seconds)),
        _Column("imbalance,\nin order", lambda row: f"{row.naive_imbalance:.2f}"),
    )
    what = (
        "One denoising step. Heads are divided over GPUs, and beyond them the queries of the "
        f"same heads. {html.escape(note)}"
    )
    return f"<h2>Scale-out, on paper</h2>\n<p>{what}</p>\n" + _columns_table(columns, rows)


def _figures(charts: Sequence[Chart]) -> str:
    parts = [
        f'<figure><h3>{html.escape(chart.title)}</h3><div class="chart" '
        f'id="chart-{chart.key}"></div>'
        f"<figcaption>{html.escape(chart.note)}</figcaption></figure>"
        for chart in charts
    ]
    return '<h2>Charts</h2>\n<div class="charts">\n' + "\n".join(parts) + "\n</div>"


def _sources(result: Result) -> str:
    machine = result.scenario.machine
    owners = (("machine", machine.hardware), ("efficiency", machine.efficiency))
    rows = [
        [f"{kind}: {name}", _figure(getattr(owner, name, None)), source]
        for kind, owner in owners
        for name, source in owner.sources.items()
    ]
    rows += [
        [f"model: {name}", "", source] for name, source in result.scenario.model.sources.items()
    ]
    return "<h2>Where the figures come from</h2>\n" + _text_table(
        ["figure", "value", "source"], rows
    )


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
            figure.add_scatter(
                x=x, y=y, name=series.name, stackgroup="one", line=line, fillcolor=series.colour
            )
        else:
            mode = {"line": "lines+markers", "dashed": "lines", "points": "markers"}[series.style]
            dash = "dash" if series.style == "dashed" else "solid"
            line = {"color": series.colour, "dash": dash}
            figure.add_scatter(
                x=x,
                y=y,
                name=series.name,
                mode=mode,
                line=line,
                marker={"color": series.colour, "size": 8},
            )
    axes = {"gridcolor": "#e6e9ee", "zeroline": False, "automargin": True}
    figure.update_layout(
        template="none",
        barmode="stack",
        margin={"l": 50, "r": 10, "t": 10, "b": 40},
        legend={"orientation": "h", "yref": "container", "yanchor": "bottom", "y": 0, "x": 0},
        # A stack of one band says which.
        showlegend=True,
        hovermode="closest" if chart.key == "roofline" else "x unified",
        xaxis=axes | {"title": {"text": chart.x_label}, "type": _axis_type(chart, chart.log_x)},
        yaxis=axes | {"title": {"text": chart.y_label}, "type": "log" if chart.log_y else "linear"},
    )
    if chart.ticks:
        figure.update_xaxes(
            tickvals=list(chart.ticks), ticktext=[tick_text(value) for value in chart.ticks]
        )
    elif chart.log_x:
        figure.update_xaxes(dtick=1)
    if chart.log_y:
        figure.update_yaxes(dtick=1)
    return figure


def _axis_type(chart: Chart, log: bool) -> str:
    if log:
        return "log"
    return "category" if isinstance(chart.series[0].x[0], str) else "linear"
