"""Files that the simulator writes: JSON, CSV, PNG, and the HTML report as a browser shows it."""

from __future__ import annotations

import csv
import json
import re
import struct

import pytest
from matplotlib.figure import Figure
from tests.support.browser import open_page

from freqformer.simulate import scenario, simulate
from freqformer.simulate.model.scale_out import scale_out
from freqformer.simulate.model.sensitivity import sensitivity
from freqformer.simulate.present.charts import all_charts, branch_chart, tick_text
from freqformer.simulate.present.export import CSV_FIELDS, SCHEMA, csv_text, document, json_text
from freqformer.simulate.present.figures import _draw, write_figures
from freqformer.simulate.present.report import report_page
from freqformer.simulate.present.units import duration, memory


@pytest.fixture(scope="module")
def results():
    """Of the paper's preset, which has every band and stage."""
    return [
        simulate(scenario("wan2.1-1.3b", "h100", tokens, preset="paper"))
        for tokens in (16_384, 65_536)
    ]


@pytest.fixture(scope="module")
def variants(results):
    return sensitivity(results[0].scenario)


@pytest.fixture(scope="module")
def report(results, variants, tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "report.html"
    path.write_text(
        report_page(results, variants, scale_out(results[0], [1, 8, 64])), encoding="utf-8"
    )
    return path


def test_json_holds_what_was_promised(results, variants):
    values = json.loads(json_text(document(results, variants, scale_out(results[0], [1, 2]))))
    assert values["schema"] == SCHEMA
    assert len(values["scenarios"]) == 2
    for record, result in zip(values["scenarios"], results, strict=True):
        assert record["tokens"] == result.scenario.tokens
        assert record["grid"] == list(result.scenario.grid.shape)
        assert record["dense"]["flops"] == result.dense_counts.flops
        assert record["freqformer"]["flops"] == result.counts.flops
        assert record["kv_bytes"] == result.counts.kv_bytes
        assert record["time_s"] == result.layer.seconds
        assert record["tokens_per_s"] == result.layer.tokens_per_s
        assert record["arithmetic_intensity"] == result.arithmetic_intensity
        assert record["peak_memory_bytes"] == result.layer.peak_memory_bytes
        assert record["speedup"] == record["dense"]["time_s"] / record["time_s"]
        assert record["training"]["time_s"] == result.training.seconds > result.layer.seconds
        gradients = record["training"]["gradients"]
        assert sum(stage["flops"] for stage in gradients.values()) == pytest.approx(
            record["freqformer"]["backward_flops"]
        )
        assert record["generation"]["video_seconds_per_s"] == result.generation.video_seconds_per_s
        assert len(record["generation"]["heads_by_step"]) == record["generation"]["steps"] == 50
    assert values["efficiency"]["sources"]
    assert values["hardware"]["sources"]
    assert [row["gpus"] for row in values["scale_out"]] == [1, 2]


def test_csv_has_one_row_per_length(results):
    rows = list(csv.DictReader(csv_text(results).splitlines()))
    assert tuple(rows[0]) == CSV_FIELDS
    assert [int(row["tokens"]) for row in rows] == [result.scenario.tokens for result in results]
    assert float(rows[1]["speedup"]) == results[1].layer.speedup


def test_figures_are_drawn(results, variants, tmp_path):
    charts = all_charts(results, variants, scale_out(results[0], [1, 8]))
    kept = tmp_path / "kept.txt"
    kept.write_text("mine")
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "simulate-time.png").symlink_to(kept)
    paths = write_figures(charts, tmp_path / "figures")
    assert kept.read_text() == "mine"
    assert {path.name for path in paths} >= {
        "simulate-time.png",
        "simulate-roofline.png",
        "simulate-scale-out.png",
    }
    for path in paths:
        head = path.read_bytes()[:24]
        assert head[:8] == b"\x89PNG\r\n\x1a\n"
        assert struct.unpack(">II", head[16:]) == (910, 520)


def test_names_of_a_stack_stand_beside_it(results, variants):
    stacked = [chart for chart in all_charts(results, variants, []) if chart.kind != "lines"]
    assert {chart.kind for chart in stacked} == {"bars", "area"}
    for chart in stacked:
        figure = Figure(figsize=(7, 4), layout="constrained")
        axes = figure.add_subplot()
        _draw(chart, axes)
        figure.draw_without_rendering()
        legend = axes.get_legend()
        assert legend is not None
        assert legend.get_window_extent().x0 >= axes.get_window_extent().x1
        assert legend.get_window_extent().x1 <= figure.bbox.x1


def test_the_fit_is_shown_for_the_machine_that_was_measured(results):
    assert "fit" not in [chart.key for chart in all_charts(results, [], [])]
    measured = [simulate(scenario("wan2.1-1.3b", "h200", 16_384))]
    assert "Times against committed measurements. fitted: " in report_page(measured, [], [])
    chart = next(chart for chart in all_charts(measured, [], []) if chart.key == "fit")
    rows = measured[0].scenario.machine.efficiency.fit["rows"]
    points = {series.name: series for series in chart.series if series.style == "points"}
    assert sorted(points) == ["fitted", "held out"]
    assert sum(len(series.x) for series in points.values()) == len(rows)
    assert max(points["held out"].y) == max(
        row["predicted_s"] / row["measured_s"] for row in rows if row["held_out"]
    )


def test_branches_add_up(results):
    chart = branch_chart(results)
    for index in range(2):
        assert sum(series.y[index] for series in chart.series) == pytest.approx(100)


def test_counts_in_few_letters():
    assert [tick_text(value) for value in (1, 1024, 65_536, 999_999, 1_048_576)] == [
        "1",
        "1024",
        "66K",
        "1.0M",
        "1.0M",
    ]


def test_report_is_one_file(report):
    text = report.read_text()
    assert "Plotly.newPlot" in text
    page = re.sub(r"<script>.*?</script>", "", text, flags=re.DOTALL)
    assert "://" not in page
    assert "Nothing was measured on NVIDIA H100 SXM" in text
    assert "come from probes that are not kept" in text
    assert re.search("These values are assumptions[^<]*attention_slots[^<]*launch_s", text)
    assert "Times against committed measurements" not in text
    assert "<td>machine: memory_bandwidth</td>" in text


@pytest.mark.parametrize("width", [1280, 390])
def test_report_in_a_browser(report, results, variants, width):
    """At desktop and phone width: every chart is drawn, nothing sticks out, no error, and nothing
    is requested."""
    charts = all_charts(results, variants, scale_out(results[0], [1, 8]))
    assert {chart.key for chart in charts} >= {"time", "roofline", "branches", "heads"}
    with open_page(report, width=width) as page:
        assert page.errors == []
        assert page.requests == [report.resolve().as_uri()]
        for chart in charts:
            box = f"document.querySelector('#chart-{chart.key}')"
            size = page.run(
                f"(({{width, height}}) => [width, "
                f"height])({box}.querySelector('.main-svg').getBoundingClientRect())"
            )
            assert min(size) > 200, chart.key
            inside = (
                "(figure, box) => box.left >= figure.left && box.right <= figure.right && "
                "box.bottom <= figure.bottom"
            )
            assert page.run(
                f"({inside})({box}.closest('figure').getBoundingClientRect(), "
                f"{box}.getBoundingClientRect())"
            ), chart.key
            assert size[0] <= page.run(f"{box}.getBoundingClientRect().width") <= width, chart.key
            marks = (
                ".point path" if chart.kind == "bars" else ".lines path, .points path, .fills path"
            )
            assert page.run(f"{box}.querySelectorAll('{marks}').length") >= len(chart.series), (
                chart.key
            )
        assert page.run("document.documentElement.scrollWidth <= window.innerWidth")
        assert page.run("document.querySelectorAll('table tr').length") > 10
        # Every value of a row is on the screen, and has a name there.
        cells = page.run(
            "[...document.querySelectorAll('.cards tbody td')].map(td => { const box = "
            "td.getBoundingClientRect();"
            " return [td.dataset.name, box.left, box.right, box.width]; })"
        )
        assert {name for name, *_ in cells} >= {
            "generation",
            "layer",
            "peak memory",
            "dense step",
            "efficiency",
        }
        for name, left, right, shown in cells:
            assert name, cells
            assert 0 <= left < right <= width, name
            assert shown > 20, name


def test_every_column_has_a_heading(report):
    """12 columns of results, 11 of scale-out, and what a phone shows of each is its name."""
    tables = re.findall(r'<table class="cards">.*?</table>', report.read_text(), flags=re.DOTALL)
    assert len(tables) == 2
    for table in tables:
        head, *rows = re.findall(r"<tr>.*?</tr>", table, flags=re.DOTALL)
        names = [text.replace("<br>", " ") for text in re.findall("<th>(.*?)</th>", head)]
        assert len(set(names)) == len(names) >= 11
        assert len(rows) in (2, 3)
        for row in rows:
            assert re.findall('<td data-name="(.*?)">', row) == names


def test_the_report_says_what_was_simulated_and_what_it_leaves_out(report, results):
    text = report.read_text()
    for name in (
        "preset",
        "split",
        "routing",
        "schedule",
        "learned summaries",
        "low branch",
        "window",
        "tile",
    ):
        assert f"<td>{name}</td>" in text
    assert "preset paper" in text
    assert "TFLOP/s on average" in text
    assert "Left out: text encoder, VAE" in text
    rate = results[0].generation.dense_flops / results[0].generation.dense_seconds / 1e12
    assert f"{rate:,.0f} TFLOP/s on average" in text
    # Dense attention, linear layers and cross-attention to text, of every layer, call and step.
    model, tokens = results[0].scenario.model, results[0].scenario.tokens
    linear = (
        2 * tokens * (6 * model.width**2 + 2 * model.width * 8960)
        + 4 * model.text_tokens * model.width**2
    )
    cross = 4 * tokens * model.text_tokens * model.width
    every = 50 * 2 * 30 * (results[0].dense_counts.flops + linear + cross)
    assert results[0].generation.dense_flops == pytest.approx(every, rel=1e-12)


def test_quantities_have_three_digits():
    assert (duration(0), memory(0)) == ("0 s", "0")
    assert [duration(value) for value in (7.4e-4, 0.00809, 4.958, 119, 3986, 44_000)] == [
        "740 µs",
        "8.09 ms",
        "4.96 s",
        "119 s",
        "66.4 min",
        "12.2 h",
    ]
    assert [memory(value) for value in (2048, 3 << 20, 50.4 * 2**30, 2**40)] == [
        "2.00 KiB",
        "3.00 MiB",
        "50.4 GiB",
        "1.00 TiB",
    ]
