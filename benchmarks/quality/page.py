"""docs/quality.md, rebuilt from the results: its blocks and its figures."""

from __future__ import annotations

from pathlib import Path

from benchmarks.quality.aims import aims_table
from benchmarks.quality.figures import draw_figures
from benchmarks.quality.measured import generated_table, real_clips_table
from benchmarks.quality.report import (
    FIGURES,
    PAGE,
    RESULTS,
    Result,
    read_results,
    rebuilt,
    results_text,
    variants_table,
)
from benchmarks.quality.summary import missing_text, summary_text

CHART = "![Loss against training FLOPs and GPU seconds](figures/quality-chart.png)"


def blocks(results: list[Result], measured: dict[str, list[Result]]) -> dict[str, str]:
    """The text of every block of the page.

    Args:
        results: of training.
        measured: results of the measurements by their name.
    """
    first = [CHART, summary_text(results), missing_text(results, measured)]
    return {
        "summary": "\n\n".join(first),
        "aims": aims_table(results),
        "variants": variants_table(),
        "results": results_text(results),
        "generated": generated_table(measured["generated"]),
        "clips": real_clips_table(measured["clips"]),
    }


def read_measured(folder: Path = RESULTS) -> dict[str, list[Result]]:
    """Results of the measurements in a folder of results, by their name."""
    return {name: read_results(folder / name) for name in ("generated", "clips")}


def write_page(folder: Path = RESULTS, page: Path = PAGE) -> Path:
    """Rebuild the generated blocks of the page, and the figures beside it."""
    results = read_results(folder)
    made = rebuilt(page.read_text(encoding="utf-8"), blocks(results, read_measured(folder)))
    page.write_text(made, encoding="utf-8")
    draw_figures(results, page.parent / FIGURES)
    return page
