"""Puts the results of `benchmarks.conversion` on docs/conversion.md: a table and a figure, without
a GPU.

PYTHONPATH=src:. python -m benchmarks.conversion_report
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.conversion import WITHIN
from benchmarks.quality.report import rebuilt

from benchmarks import record

PAGE = Path(__file__).parents[1] / "docs" / "conversion.md"
FIGURE = PAGE.parent / "figures" / "conversion.png"
ALT = "Held-out loss, and PSNR against the dense model's videos, by seconds of training"
NAMES = {
    "training_free": "windows, no training",
    "stage_one": "stage one",
    "stages_one_and_two": "stages one and two",
    "tiles_training_free": "tiles, no training",
    "tiles_stage_one": "tiles, stage one",
    "tiles_stages_one_and_two": "tiles, stages one and two",
    "from_scratch": "from scratch",
}
"""Methods by their names in the results, which may lack some: a run that was stopped writes those
that were done."""
HEAD = (
    "| method | steps | seconds | of the dense model's | held-out loss | of the dense model's "
    "| within 1% after | PSNR, dB |\n|---|---|---|---|---|---|---|---|"
)
Results = dict[str, Any]


def read_results(folder: Path = record.RESULTS) -> Results | None:
    """The committed results; None where there are none."""
    path = folder / "conversion.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def results_text(results: Results) -> str:
    """What the page says of the results: how they were made, and a row for each method."""
    dense, machine = results["dense"], results["machine"]
    window = " × ".join(str(side) for side in results["window"])
    made = (
        f"The dense model of {results['tokens']:,} tokens learned for {dense['steps']:,} steps, "
        f"{dense['seconds']:.0f} s, to a held-out loss of {dense['held_out_loss']:.4f}. Converted "
        f"models have windows of {window} tiles, {100 * results['density']:.1f}% of dense "
        f"attention's FLOPs{_tiles(results)}, and all weights learn. PSNR is against the dense "
        f"model's {results['videos']} videos of {results['sampler_steps']} steps. Seconds are "
        f"those of steps alone. {machine['gpu']}, torch {machine['torch']}, "
        f"Triton {machine['triton']}, commit {machine['commit'][:10]}."
    )
    rows = [_row(name, results) for name in NAMES if name in results["methods"]]
    return "\n\n".join([f"![{ALT}](figures/{FIGURE.name})", made, "\n".join([HEAD, *rows])])


def _tiles(results: Results) -> str:
    """What the page says of their number, where some method has them."""
    if not any(name.startswith("tiles_") for name in results["methods"]):
        return ""
    tiles = results["tiles"]
    return f", or their {tiles['kept']} best of {tiles['of']} tiles, {100 * tiles['density']:.1f}%"


def _row(name: str, results: Results) -> str:
    row, dense = results["methods"][name], results["dense"]
    reached = row.get("within_1_percent")
    when = f"{reached['step']:,} steps, {reached['seconds']:.0f} s" if reached else "not reached"
    cells = [
        NAMES[name],
        f"{row['steps']:,}",
        f"{row['seconds']:.0f}",
        f"{row['seconds'] / dense['seconds']:.1%}",
        f"{row['held_out_loss']:.4f}",
        f"{row['held_out_loss'] / dense['held_out_loss']:.3f}",
        when if row["steps"] else "–",
        f"{row['psnr']:.2f}",
    ]
    return f"| {' | '.join(cells)} |"


def draw_figure(results: Results, path: Path) -> None:
    """Loss and PSNR over seconds, a line for each method.

    Args:
        results: of `benchmarks.conversion`.
        path: of the PNG.
    """
    from freqformer._colours import GRID, INK
    from freqformer.analysis.figures import blank_figure, label_axes, save_figure

    methods = results["methods"]
    figure = blank_figure(11, 4.4)
    panels = figure.subplots(1, 2)
    shown = {"held_out_loss": "Held-out loss", "psnr": "PSNR against the dense model's videos, dB"}
    for axes, (value, title) in zip(panels, shown.items(), strict=True):
        for place, name in enumerate(NAMES):
            if name not in methods:
                continue
            points = methods[name].get("curve", [])
            seconds = [point["seconds"] for point in points]
            values = [point[value] for point in points]
            axes.plot(seconds, values, color=f"C{place}", marker=".", label=NAMES[name])
            if name.endswith("training_free"):
                free = methods[name][value]
                axes.axhline(free, color=f"C{place}", linestyle="--", linewidth=1)
        axes.grid(axis="y", color=GRID, linewidth=0.8)
        label_axes(axes, title, "seconds of training", "")
    dense = results["dense"]["held_out_loss"]
    panels[0].axhspan(dense, WITHIN * dense, color=INK, alpha=0.15, label="dense, to 1% more")
    lines, labels = panels[0].get_legend_handles_labels()
    figure.legend(
        lines, labels, frameon=False, fontsize=9, labelcolor=INK, loc="outside right upper"
    )
    save_figure(figure, path)


def main() -> None:
    results = read_results()
    if results is None:
        raise SystemExit("no results yet: run `python -m benchmarks.conversion` on a GPU")
    page = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(rebuilt(page, {"results": results_text(results)}), encoding="utf-8")
    draw_figure(results, FIGURE)
    print(f"wrote {PAGE}")


if __name__ == "__main__":
    main()
