"""Puts the results of `benchmarks.training_free` on docs/calibration.md: tables and a figure,
without a GPU.

PYTHONPATH=src:. python -m benchmarks.training_free_report
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.quality.report import rebuilt as replaced

from benchmarks import record

PAGE = Path(__file__).parents[1] / "docs" / "calibration.md"
FIGURE = PAGE.parent / "figures" / "calibration-density.png"
ALT = "PSNR against dense attention by density, a line for each method"
NOTHING = "No results yet."
OURS = ("calibrated", "calibrated_on_clips", "preset")
"""Drawn thick, and first."""
MARKERS = "sDo^vPX*ph<>dH8"
SAME = {"topk_summaries": "preset_constant"}
"""Methods of earlier versions that turned out to be another one; they aren't drawn."""
AIMS = {0.5: 36.0, 0.3: 31.0, 0.2: 28.0, 0.1: 26.0, 0.05: 24.0}
"""What was wanted of PSNR by density, with the first fifth of the steps dense."""
AIMED = 0.2
"""The start that the aims are of."""
Results = dict[str, Any]


def read_results(folder: Path = record.RESULTS) -> Results | None:
    """The committed results; None where there are none."""
    path = folder / "training_free_density.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def rebuilt(page: str, results: Results | None) -> str:
    """The page with the text between its marks made anew; ValueError for one without them."""
    return replaced(page, {"results": NOTHING if results is None else results_text(results)})


def results_text(results: Results) -> str:
    """Everything that the page says of the results: PSNR of every method in a table for each
    start, as far as it has been measured."""
    model, machine, measured = results["model"], results["machine"], results["calibration"]
    # Results of earlier versions, which tried none, don't say how many.
    trials = measured.get("trials", 0)
    tried = f", {trials} tables tried at each density" if trials else ""
    parts = [
        f"![{ALT}](figures/{FIGURE.name})",
        f"{model['layers']} layers of {model['heads']} heads of {model['head_dim']}, "
        f"{results['tokens']:,} tokens, trained for {results['train_steps']:,} steps, "
        f"{model['dtype'].removeprefix('torch.')}. Calibrated on {measured['videos']} videos of "
        f"{measured['steps']} steps{tried}. {results['videos']} videos of "
        f"{results['sampler_steps']} steps are compared: PSNR in dB against dense attention's. "
        f"{machine['gpu']}, torch {machine['torch']}, Triton {machine['triton']}, "
        f"commit {machine['commit'][:10]}.",
    ]
    for start, by_density in results["rows"].items():
        title = _title(start)
        parts.append(f"**{title[0].upper()}{title[1:]}**, by density of the banded steps")
        densities = sorted(by_density, key=float, reverse=True)
        titles = " | ".join(f"{100 * float(density):.0f}%" for density in densities)
        lines = [f"| method | {titles} |", "|---" * (len(densities) + 1) + "|"]
        for name in _methods(by_density):
            cells = [
                _decibels(by_density[density].get(name), float(density)) for density in densities
            ]
            lines.append(f"| `{name}` | {' | '.join(cells)} |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def _title(start: str) -> str:
    return "all steps banded" if float(start) == 0 else "the first fifth of the steps dense"


def _methods(by_density: dict[str, Any]) -> list[str]:
    return list(dict.fromkeys(name for rows in by_density.values() for name in rows))


def _decibels(row: dict[str, Any] | None, density: float) -> str:
    """PSNR, and the density where it is more than a tenth off; a dash where nothing is measured."""
    if row is None:
        return "–"
    off = abs(row["density"] / density - 1) > 0.1
    return f"{row['psnr']:.2f}" + (f" (at {100 * row['density']:.1f}%)" if off else "")


def draw_figure(results: Results, path: Path) -> None:
    """PSNR by density, a panel for each start and a line for each method.

    Args:
        results: of `benchmarks.training_free`.
        path: of the PNG.
    """
    from freqformer._colours import GRID, INK
    from freqformer.analysis.figures import blank_figure, label_axes, save_figure

    figure = blank_figure(11, 4.6)
    panels = figure.subplots(1, len(results["rows"]), sharey=True, squeeze=False)[0]
    every = dict.fromkeys(n for rows in results["rows"].values() for n in _methods(rows))
    names = [name for name in OURS if name in every]
    names += [name for name in every if name not in OURS and name not in SAME]
    for axes, (start, by_density) in zip(panels, results["rows"].items(), strict=True):
        for place, name in enumerate(names):
            rows = [rows[name] for rows in by_density.values() if name in rows]
            points = sorted((100 * row["density"], row["psnr"]) for row in rows)
            axes.plot(
                *zip(*points, strict=True),
                color=f"C{place}",
                linewidth=3.2 if name in OURS else 1.4,
                marker=MARKERS[place],
                markersize=6 if name in OURS else 4.5,
                label=name,
            )
        if float(start) == AIMED:
            shares = [100 * density for density in AIMS]
            axes.plot(shares, list(AIMS.values()), color=INK, linestyle=":", label="aim")
        ticks = sorted(100 * float(density) for density in by_density)
        axes.set_xscale("log")
        axes.set_xticks(ticks, [f"{tick:.0f}%" for tick in ticks])
        axes.set_xticks([], minor=True)
        axes.grid(axis="y", color=GRID, linewidth=0.8)
        title = _title(start)
        label_axes(
            axes, title[0].upper() + title[1:], "density: share of dense attention's FLOPs", ""
        )
    panels[0].set_ylabel("PSNR against dense attention, dB", color=INK)
    lines, labels = panels[-1].get_legend_handles_labels()
    figure.legend(
        lines, labels, frameon=False, fontsize=9, labelcolor=INK, loc="outside right upper"
    )
    save_figure(figure, path)


def main() -> None:
    results = read_results()
    PAGE.write_text(rebuilt(PAGE.read_text(encoding="utf-8"), results), encoding="utf-8")
    if results is not None:
        draw_figure(results, FIGURE)
    print(f"wrote {PAGE}")


if __name__ == "__main__":
    main()
