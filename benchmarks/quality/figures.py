"""Figures of the quality study."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.quality.chart import draw_chart, every_setting
from benchmarks.quality.report import Result, best_fixed, drawn, mean, overall
from benchmarks.quality.study import CURVE_STEPS
from benchmarks.quality.validation import NOISE_LEVELS
from benchmarks.quality.variants import VARIANTS

COLOURS = {name: f"C{place % 10}" for place, name in enumerate(VARIANTS)}
DASHES = {name: ("-", "--", ":", "-.")[place // 10] for place, name in enumerate(VARIANTS)}


def draw_figures(results: list[Result], folder: Path) -> list[Path]:
    """Write the figures of what `drawn` gives; none without results."""
    groups = drawn(results)
    if not groups:
        return []
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    folder.mkdir(parents=True, exist_ok=True)
    drawings: dict[str, Any] = {"noise": _noise, "flops": _flops, "time": _time}
    every = every_setting(results)
    drawings["chart"] = lambda pyplot, _: draw_chart(pyplot, every)
    if any("allocation" in result for seeds in groups.values() for result in seeds.values()):
        drawings["allocation"] = _allocation
    if any("gates" in result for seeds in groups.values() for result in seeds.values()):
        drawings["weights"] = _weights
    paths = []
    for name, draw in drawings.items():
        figure = draw(pyplot, groups)
        paths.append(folder / f"quality-{name}.png")
        figure.savefig(paths[-1], dpi=110, bbox_inches="tight", metadata={"Software": None})
        pyplot.close(figure)
    return paths


def _style(name: str) -> dict[str, Any]:
    return {"color": COLOURS[name], "linestyle": DASHES[name], "label": name}


def _noise(pyplot: Any, groups: dict[str, dict[int, Result]]) -> Any:
    figure, axes = pyplot.subplots(figsize=(8, 5))
    base = groups[best_fixed(groups) or next(iter(groups))]
    for name, seeds in groups.items():
        ratios = []
        for level in map(str, NOISE_LEVELS):
            own, reference = (
                [run["losses"][level] for run in runs.values()] for runs in (seeds, base)
            )
            ratios.append(mean(own).value / mean(reference).value)
        axes.plot(NOISE_LEVELS, ratios, marker="o", **_style(name))
    axes.set_xlabel("noise level t")
    axes.set_ylabel("validation loss relative to the best fixed variant")
    axes.legend(fontsize=7, ncols=2)
    return figure


def _flops(pyplot: Any, groups: dict[str, dict[int, Result]]) -> Any:
    figure, axes = pyplot.subplots(figsize=(7, 5))
    for name, seeds in groups.items():
        cost = mean([run["attention_flops"] / 1e9 for run in seeds.values()]).value
        loss = mean([overall(run["losses"]) for run in seeds.values()])
        axes.errorbar(
            cost,
            loss.value,
            0 if loss.error != loss.error else loss.error,
            marker="o",
            color=COLOURS[name],
        )
        axes.annotate(
            name, (cost, loss.value), xytext=(7, -3), textcoords="offset points", fontsize=10
        )
    axes.margins(x=0.15)  # for the name of the point on the right
    axes.set_xscale("log")
    axes.set_xlabel("attention GFLOPs of a forward pass of one clip")
    axes.set_ylabel("validation loss")
    return figure


def _time(pyplot: Any, groups: dict[str, dict[int, Result]]) -> Any:
    figure, axes = pyplot.subplots(figsize=(8, 5))
    for name, seeds in groups.items():
        run = seeds[min(seeds)]
        ends = [
            min((part + 1) * CURVE_STEPS, run["steps"])
            for part in range(len(run["training_curve"]))
        ]
        axes.plot(
            [end * run["step_ms"] / 1e3 for end in ends],
            run["training_curve"],
            linewidth=1,
            **_style(name),
        )
    axes.set_yscale("log")
    axes.set_xlabel("seconds of training")
    axes.set_ylabel(f"training loss, mean of {CURVE_STEPS} steps")
    axes.legend(fontsize=7, ncols=2)
    return figure


def _allocation(pyplot: Any, groups: dict[str, dict[int, Result]]) -> Any:
    """A row per head, a column per noise level; red, green and blue are the shares of LOW, MID and
    HIGH."""
    runs = {
        name: seeds[min(seeds)]
        for name, seeds in groups.items()
        if "allocation" in seeds[min(seeds)]
    }
    figure, panels = pyplot.subplots(1, len(runs), figsize=(3 * len(runs) + 1, 7), squeeze=False)
    for axes, (name, run) in zip(panels[0], runs.items(), strict=True):
        layers = run["allocation"][0]
        heads = len(layers[0])
        rows = [
            [level[layer][head][:3] for level in run["allocation"]]
            for layer in range(len(layers))
            for head in range(heads)
        ]
        axes.imshow(rows, aspect="auto", interpolation="nearest")
        _label_heat_map(axes, f"{name}, seed {run['seed']}", len(layers), heads)
    figure.suptitle("red LOW, green MID, blue HIGH", fontsize=9)
    return figure


def _weights(pyplot: Any, groups: dict[str, dict[int, Result]]) -> Any:
    """A row per head, a column per noise level; panels by variant and seed; red is more LOW, blue
    is less."""
    variants = [[run for run in seeds.values() if "gates" in run] for seeds in groups.values()]
    variants = [runs for runs in variants if runs]
    rows, columns = len(variants), max(map(len, variants))
    size = {"figsize": (2.2 * columns + 1, 4.5 * rows), "squeeze": False, "layout": "constrained"}
    figure, panels = pyplot.subplots(rows, columns, **size)
    for axes in panels.flat:
        axes.set_visible(False)
    image: Any = None
    placed = [
        (panels[row, column], run)
        for row, runs in enumerate(variants)
        for column, run in enumerate(runs)
    ]
    for axes, run in placed:
        axes.set_visible(True)
        layers = len(run["gates"][0])
        heads = len(run["gates"][0][0][1])
        rows = [
            [level[layer][1][head] for level in run["gates"]]
            for layer in range(layers)
            for head in range(heads)
        ]
        image = axes.imshow(
            rows, aspect="auto", interpolation="nearest", cmap="RdBu_r", vmin=-1, vmax=1
        )
        _label_heat_map(axes, f"{run['variant']}, seed {run['seed']}", layers, heads)
    figure.colorbar(image, ax=panels, extend="both", label="added to the weight of LOW")
    return figure


def _label_heat_map(axes: Any, title: str, layers: int, heads: int) -> None:
    axes.set_title(title, fontsize=9)
    axes.set_xticks(range(len(NOISE_LEVELS)), list(map(str, NOISE_LEVELS)))
    axes.set_yticks(
        [heads * layer - 0.5 for layer in range(layers)], [f"layer {i}" for i in range(layers)]
    )
    axes.set_xlabel("noise level t")
