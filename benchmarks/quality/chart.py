"""The chart that decides for a user: validation loss against training FLOPs and GPU seconds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from benchmarks.quality.costs import training_flops
from benchmarks.quality.report import Result, mean, overall, tokens_of, way_of
from benchmarks.quality.runs import OPTIMIZER
from benchmarks.quality.sizes import SIZES, USUAL
from benchmarks.quality.summary import DEFAULT, DENSE, PUBLISHED, SAME_HEADS, step_times, usual_way

SHOWN: tuple[str, ...] = (
    DENSE,
    DEFAULT,
    "timestep_routing",
    SAME_HEADS,
    "window",
    *PUBLISHED,
    "paper",
)
"""Variants on the chart, where they have results."""
COLOURS: dict[str, str] = dict(
    zip(SHOWN, (*(f"C{place}" for place in range(10)), "black"), strict=True)
)
MARKS = {USUAL: "o", "64k": "o", "16k-wide": "s"}
ROWS = ((USUAL, "16k-wide"), ("64k",))
"""Sizes that share a panel: their losses are of the same clips."""


@dataclass(frozen=True)
class Point:
    """Runs of one variant and size for as many steps, all seeds together."""

    name: str
    size: str
    steps: int
    loss: float
    error: float
    """Standard error; 0 for one seed."""
    flops: float
    seconds: float | None
    """None where it wasn't timed on the chart's card."""


@dataclass(frozen=True)
class Panel:
    """Sizes whose losses compare, and on which card their seconds are."""

    title: str
    way: str
    points: list[Point]


def size_of(result: Result) -> str:
    """The name of its size; the first results don't say it."""
    long = tokens_of(result) == SIZES["64k"].grid.num_tokens
    return result.get("size", "64k" if long else USUAL)


def every_setting(results: list[Result]) -> list[Panel]:
    """What the panels show: the usual learning rate, and the variants that the chart has."""
    usual = [
        one
        for one in results
        if one["variant"] in SHOWN
        and one.get("learning_rate", OPTIMIZER.peak_rate) == OPTIMIZER.peak_rate
    ]
    panels = []
    for sizes in ROWS:
        chosen = [one for one in usual if size_of(one) in sizes]
        if chosen:
            panels.append(_panel(sizes, chosen))
    return panels


def _panel(sizes: tuple[str, ...], results: list[Result]) -> Panel:
    groups: dict[tuple[str, str, int], list[Result]] = {}
    for one in results:
        key = (one["variant"], size_of(one), one["steps"])
        groups.setdefault(key, []).append(one)
    way = _way(results)
    points = [_point(key, runs, results, way) for key, runs in sorted(groups.items(), key=_order)]
    tokens = SIZES[sizes[0]].grid.num_tokens
    return Panel(f"{tokens:,} tokens", way, points)


def _order(group: tuple[tuple[str, str, int], list[Result]]) -> tuple[int, str, int]:
    name, size, steps = group[0]
    return (SHOWN.index(name), size, steps)


def _by_name(results: list[Result], size: str) -> dict[str, dict[int, Result]]:
    found: dict[str, dict[int, Result]] = {}
    for place, one in enumerate(results):
        if size_of(one) == size:
            found.setdefault(one["variant"], {})[place] = one
    return found


def _way(results: list[Result]) -> str:
    """The card of the chart: that of the default's longest runs, else of most runs."""
    of_default = [one["steps"] for one in results if one["variant"] == DEFAULT]
    if not of_default:
        ways = [way_of(one) for one in results]
        return max(sorted(set(ways)), key=ways.count)
    longest = [one for one in results if one["steps"] == max(of_default)]
    return usual_way(_by_name(longest, size_of(longest[0])))


def _point(key: tuple[str, str, int], runs: list[Result], results: list[Result], way: str) -> Point:
    name, size, steps = key
    loss = mean([overall(run["losses"]) for run in runs])
    step_ms = step_times(_by_name(results, size), way).get(name)
    share = mean([run["density"] for run in runs]).value
    return Point(
        name,
        size,
        steps,
        loss.value,
        0.0 if loss.error != loss.error else loss.error,
        training_flops(share, steps, SIZES[size]),
        None if step_ms is None else steps * step_ms / 1e3,
    )


def draw_chart(pyplot: Any, panels: list[Panel]) -> Any:
    """A row for each panel: against FLOPs on the left, against seconds on the right."""
    size = {"figsize": (12, 4.6 * len(panels)), "squeeze": False, "layout": "constrained"}
    figure, axes = pyplot.subplots(len(panels), 2, **size)
    for (left, right), panel in zip(axes, panels, strict=True):
        _draw(left, panel.points, [point.flops for point in panel.points])
        left.set_xlabel("training FLOPs")
        timed = [point for point in panel.points if point.seconds is not None]
        _draw(right, timed, [point.seconds or 0.0 for point in timed])
        for which in (right.xaxis.set_major_formatter, right.xaxis.set_minor_formatter):
            which("{x:.0f}")
        right.tick_params(axis="x", which="both", labelsize=8)
        right.set_xlabel(f"GPU seconds of training, {panel.way}")
        left.set_title(panel.title, loc="left")
        left.set_ylabel("validation loss")
        left.legend(fontsize=7)
    return figure


def _draw(axes: Any, points: list[Point], places: list[float]) -> None:
    """Points of one variant and size are joined in the order of their steps."""
    lines: dict[tuple[str, str], list[tuple[float, Point]]] = {}
    for point, place in zip(points, places, strict=True):
        lines.setdefault((point.name, point.size), []).append((place, point))
    for (name, size), found in lines.items():
        label = f"{name} (the default)" if name == DEFAULT else name
        axes.errorbar(
            [place for place, _ in found],
            [point.loss for _, point in found],
            [point.error for _, point in found],
            marker=MARKS[size],
            linewidth=2 if name in (DEFAULT, DENSE) else 1,
            color=COLOURS[name],
            label=label if size != "16k-wide" else f"{label}, wide",
        )
    axes.set_xscale("log")
    axes.grid(alpha=0.3)
