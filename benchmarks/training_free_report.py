"""Puts the results of `benchmarks.training_free` on docs/calibration.md: tables and figures,
without a GPU.

PYTHONPATH=src:. python -m benchmarks.training_free_report
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from benchmarks import record
from freqformer.calibration import Calibration
from freqformer.calibration.report import read_calibration

PAGE = Path(__file__).parents[1] / "docs" / "calibration.md"
BEGIN, END = "<!-- results: generated -->", "<!-- results: end -->"
NOTHING = "No results yet."
CALIBRATED = ("calibrated", "tolerance")
DENSITIES = "training_free_density"
"""Results by density, which take the place of those by budget."""
Results = dict[str, Any]


def read_results(folder: Path = record.RESULTS) -> Results | None:
    """The committed results, those by density before those of earlier versions by budget; None
    where there are none."""
    for name in (DENSITIES, "training_free"):
        path = folder / f"{name}.json"
        if path.is_file():
            return json.loads(path.read_text(encoding="utf-8"))
    return None


def rebuilt(page: str, results: Results | None) -> str:
    """The page with the text between its marks made anew.

    Raises:
        ValueError: for a page without the marks.
    """
    pattern = re.compile(f"{re.escape(BEGIN)}.*?{re.escape(END)}", re.DOTALL)
    if len(pattern.findall(page)) != 1:
        raise ValueError(
            f"page has no single block {BEGIN} ... {END}; put one where the text belongs"
        )
    block = f"{BEGIN}\n\n{NOTHING if results is None else results_text(results)}\n\n{END}"
    return pattern.sub(lambda _: block, page)


def results_text(results: Results) -> str:
    """Everything that the page says of the results."""
    if "rows" in results:
        return density_text(results)
    model, machine, measured = results["model"], results["machine"], results["calibration"]
    parts = [
        f"{model['layers']} layers of {model['heads']} heads of {model['head_dim']}, "
        f"{results['tokens']:,} tokens, "
        f"trained for {results['train_steps']:,} steps, {model['dtype'].removeprefix('torch.')}. "
        "Calibrated in "
        f"{measured['seconds']:.0f} s on {measured['clips']} clips, kernels compiled on the way. "
        f"{results['videos']} videos of {results['sampler_steps']} steps. {machine['gpu']}, torch "
        f"{machine['torch']}, "
        f"Triton {machine['triton']}, commit {machine['commit'][:10]}."
    ]
    for budget, rows in results["budgets"].items():
        parts.append(f"**{100 * (1 - float(budget)):.0f}% less attention compute**")
        parts.append(_table({"dense_table": results["dense_table"], **rows}))
        parts.append(_best(rows))
    names = (("velocity", "Velocity error by noise level"), ("errors", "Error of every candidate"))
    names += (("allocation", "Bands by layer, head and noise level"), ("cost", "Cost by tolerance"))
    parts += [f"![{title}](figures/calibration-{name}.png)" for name, title in names]
    return "\n\n".join(parts)


def density_text(results: Results) -> str:
    """The same of results by density: PSNR of every method in a table for each start, as far as it
    has been measured."""
    model, machine, measured = results["model"], results["machine"], results["calibration"]
    parts = [
        f"{model['layers']} layers of {model['heads']} heads of {model['head_dim']}, "
        f"{results['tokens']:,} tokens, trained for {results['train_steps']:,} steps, "
        f"{model['dtype'].removeprefix('torch.')}. Calibrated on {measured['videos']} videos of "
        f"{measured['steps']} steps. {results['videos']} videos of {results['sampler_steps']} "
        f"steps are compared: PSNR in dB against dense attention's. {machine['gpu']}, torch "
        f"{machine['torch']}, Triton {machine['triton']}, commit {machine['commit'][:10]}."
    ]
    for start, by_density in results["rows"].items():
        guard = "all steps banded" if float(start) == 0 else "the first fifth of the steps dense"
        parts.append(f"**{guard[0].upper()}{guard[1:]}**, by density of the banded steps")
        densities = sorted(by_density, key=float, reverse=True)
        titles = " | ".join(f"{100 * float(density):.0f}%" for density in densities)
        lines = [f"| method | {titles} |", "|---" * (len(densities) + 1) + "|"]
        for name in dict.fromkeys(name for rows in by_density.values() for name in rows):
            cells = [
                _decibels(by_density[density].get(name), float(density)) for density in densities
            ]
            lines.append(f"| `{name}` | {' | '.join(cells)} |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def _decibels(row: dict[str, Any] | None, density: float) -> str:
    """PSNR, and the density where it is more than a tenth off; a dash where nothing is measured."""
    if row is None:
        return "–"
    off = abs(row["density"] / density - 1) > 0.1
    return f"{row['psnr']:.2f}" + (f" (at {100 * row['density']:.1f}%)" if off else "")


def _table(rows: dict[str, Any]) -> str:
    lines = [
        "| method | FLOPs | velocity error | PSNR dB | SSIM | heads low / mid / high / dense | |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, row in rows.items():
        heads = " / ".join(f"{100 * share:.0f}%" for share in row["heads"].values())
        lines.append(
            f"| `{name}` | {100 * row['density']:.1f}% | {row['mean_velocity_error']:.4f} | "
            f"{row['psnr']:.2f} | "
            f"{row['ssim']:.4f} | {heads} | {row['about']} |"
        )
    return "\n".join(lines)


def _best(rows: dict[str, Any]) -> str:
    """How much better the best calibrated table is than the best single pattern, in words."""
    ours = max(CALIBRATED, key=lambda name: rows[name]["psnr"])
    single = max(
        (name for name in rows if name not in CALIBRATED), key=lambda name: rows[name]["psnr"]
    )
    plain = max(
        (name for name in rows if name not in CALIBRATED and not name.endswith("summaries")),
        key=lambda name: rows[name]["psnr"],
    )
    apart = [rows[ours]["psnr"] - rows[name]["psnr"] for name in (single, plain)]
    return (
        f"`{ours}` is {apart[0]:+.2f} dB from the best single pattern, `{single}`, and "
        f"{apart[1]:+.2f} dB from the best "
        f"one without summaries, `{plain}`."
    )


def draw_figures(results: Results, calibration: Calibration, folder: Path) -> None:
    """Velocity errors by noise level, and the calibration's own figures."""
    from freqformer._colours import INK
    from freqformer.analysis.figures import blank_figure, label_axes, save_figure
    from freqformer.calibration.figures import choice_figure, cost_figure, error_figure

    figure = blank_figure(11, 4.2)
    panels = figure.subplots(1, len(results["budgets"]), sharey=True)
    for axes, (budget, rows) in zip(panels, results["budgets"].items(), strict=True):
        for place, (name, row) in enumerate(rows.items()):
            levels = [float(level) for level in row["velocity_error"]]
            width = 2.6 if name in CALIBRATED else 1.3
            axes.plot(
                levels,
                list(row["velocity_error"].values()),
                color=f"C{place}",
                linewidth=width,
                label=name,
            )
        axes.set_yscale("log")
        label_axes(
            axes,
            f"{100 * float(budget):.0f}% of dense attention's FLOPs",
            "noise level, 1 is noise",
            "",
        )
    panels[0].set_ylabel("relative L2 error of the velocity", color=INK)
    panels[-1].legend(
        frameon=False, fontsize=8, labelcolor=INK, loc="center left", bbox_to_anchor=(1, 0.5)
    )
    save_figure(figure, folder / "calibration-velocity.png")
    tolerance = calibration.tolerance_for(float(next(iter(results["budgets"]))))
    choice = calibration.choose(tolerance)
    error_figure(calibration, folder / "calibration-errors.png")
    choice_figure(choice, folder / "calibration-allocation.png")
    cost_figure(calibration, choice, tolerance, folder / "calibration-cost.png")


def main() -> None:
    results = read_results()
    PAGE.write_text(rebuilt(PAGE.read_text(encoding="utf-8"), results), encoding="utf-8")
    if results is not None and "rows" not in results:
        draw_figures(
            results,
            read_calibration(record.RESULTS / "training_free_table"),
            PAGE.parent / "figures",
        )
    print(f"wrote {PAGE}")


if __name__ == "__main__":
    main()
