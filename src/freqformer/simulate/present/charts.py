"""What the figures show, as plain numbers: the HTML report and the PNGs draw the same charts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from freqformer import _colours
from freqformer.simulate.model.scale_out import ScaleOut
from freqformer.simulate.model.sensitivity import KNOBS, Variant
from freqformer.simulate.model.simulation import Result

COLOURS = {
    "FreqFormer": _colours.LOW,
    "dense": _colours.DENSE,
    "low": _colours.LOW,
    "mid": _colours.MID,
    "high": _colours.HIGH,
    "prologue": "#CC79A7",
    "summaries": "#882255",
    "selection": "#56B4E9",
    "merge": "#E69F00",
    "router": "#8C6BB1",
    "low branch": "#332288",
    "gates": "#AA4499",
    "linear": "#B8B8B8",
    "attention": _colours.LOW,
    "cross-attention": "#117733",
    "elementwise": "#DDCC77",
    "machine": "#333333",
    "naive": _colours.HIGH,
    "ideal": "#BBBBBB",
}
"""Colours that people with any colour vision tell apart (Okabe and Ito), one per meaning."""


Style = Literal["line", "dashed", "points"]


@dataclass(frozen=True)
class Series:
    """One line, or one layer of a stack."""

    name: str
    x: Sequence[float | str]
    y: Sequence[float]
    colour: str
    style: Style = "line"


@dataclass(frozen=True)
class Chart:
    """One figure."""

    key: str
    """For file names and anchors."""
    title: str
    note: str
    x_label: str
    y_label: str
    series: list[Series] = field(default_factory=list)
    kind: Literal["lines", "bars", "area"] = "lines"
    log_x: bool = False
    log_y: bool = False
    ticks: Sequence[float] = ()
    """Where the x axis is labelled; empty leaves it to the drawing library."""


def all_charts(
    results: Sequence[Result], variants: Sequence[Variant], rows: Sequence[ScaleOut]
) -> list[Chart]:
    """Every chart that these results allow."""
    charts = [
        time_chart(results),
        speedup_chart(results),
        roofline_chart(results),
        branch_chart(results),
    ]
    charts += [step_chart(results), heads_chart(results[-1])]
    efficiency = results[0].scenario.machine.efficiency
    if efficiency.fit and not efficiency.transferred:
        charts.append(fit_chart(efficiency.fit))
    charts += [
        knob_chart(knob, variants)
        for knob in KNOBS
        if any(variant.knob == knob for variant in variants)
    ]
    return charts + ([scale_chart(rows)] if len(rows) > 1 else [])


def _lengths(results: Sequence[Result]) -> list[float]:
    return [result.scenario.tokens for result in results]


def time_chart(results: Sequence[Result]) -> Chart:
    """Time of an attention layer over tokens."""
    x = _lengths(results)
    return Chart(
        key="time",
        title="Time of one attention layer",
        note="From projected queries, keys and values to the output, forward.",
        x_label="tokens",
        y_label="milliseconds",
        ticks=x,
        log_x=True,
        log_y=True,
        series=[
            Series(
                "dense",
                x,
                [result.layer.dense_seconds * 1e3 for result in results],
                COLOURS["dense"],
                "dashed",
            ),
            Series(
                "FreqFormer",
                x,
                [result.layer.seconds * 1e3 for result in results],
                COLOURS["FreqFormer"],
            ),
        ],
    )


def speedup_chart(results: Sequence[Result]) -> Chart:
    """Speed-up over dense attention at the three levels."""
    x = _lengths(results)
    # The step's line is dashed and last: where every step is the same, it lies on the generation's.
    levels: tuple[tuple[str, str, str, Style], ...] = (
        ("attention layer", "layer", "low", "line"),
        ("generation", "generation", "high", "line"),
        ("denoising step", "step", "mid", "dashed"),
    )
    return Chart(
        key="speedup",
        title="Speed-up over dense attention",
        note=(
            "A step and a generation include everything but text encoder and VAE; only "
            "attention gets faster."
        ),
        x_label="tokens",
        y_label="times faster",
        ticks=x,
        log_x=True,
        log_y=True,
        series=[
            Series(
                name,
                x,
                [getattr(result, level).speedup for result in results],
                COLOURS[colour],
                style,
            )
            for name, level, colour, style in levels
        ],
    )


def roofline_chart(results: Sequence[Result]) -> Chart:
    """FLOP/s of each stage over its arithmetic intensity, under the machine's roof."""
    hardware = results[0].scenario.machine.hardware
    knee = hardware.matrix_flops / hardware.memory_bandwidth
    roof_x = [knee / 1000, knee, knee * 1000]
    roof_y = [min(hardware.matrix_flops, x * hardware.memory_bandwidth) / 1e12 for x in roof_x]
    series = [Series(hardware.title, roof_x, roof_y, COLOURS["machine"], "dashed")]
    for name in ("attention", "prologue", "summaries", "selection", "merge"):
        points = [
            (
                result.counts.stages[name].flops / time.traffic_bytes,
                result.counts.stages[name].flops / time.seconds,
            )
            for result in results
            if (time := result.stages.get(name)) is not None and time.traffic_bytes
        ]
        if points:
            x, y = zip(*points, strict=True)
            series.append(Series(name, x, [value / 1e12 for value in y], COLOURS[name], "points"))
    dense = [(result.dense_counts.flops, result.dense_stage) for result in results]
    x = [flops / time.traffic_bytes for flops, time in dense]
    series.append(
        Series(
            "dense",
            x,
            [flops / time.seconds / 1e12 for flops, time in dense],
            COLOURS["dense"],
            "points",
        )
    )
    return Chart(
        key="roofline",
        title="Roofline",
        note=(
            "Useful FLOPs; one point per length. Left of the knee memory limits, right of it "
            "arithmetic."
        ),
        x_label="FLOPs per byte of memory traffic",
        y_label="TFLOP/s",
        log_x=True,
        log_y=True,
        series=series,
    )


def branch_chart(results: Sequence[Result]) -> Chart:
    """Time of an attention layer by branch and stage, a share of the whole."""
    labels = [f"{result.scenario.tokens:,}" for result in results]
    parts: dict[str, list[float]] = {}
    for index, result in enumerate(results):
        executed = {band: flops.executed for band, flops in result.counts.band_flops.items()}
        executed["low branch"] = result.counts.attention.executed - sum(executed.values())
        attention = result.stages["attention"].seconds / sum(executed.values())
        seconds = {band: attention * flops for band, flops in executed.items()}
        stages = {name: time.seconds for name, time in result.stages.items() if name != "attention"}
        seconds |= stages
        for name, value in seconds.items():
            parts.setdefault(name, [0.0] * len(results))[index] = 100 * value / result.layer.seconds
    return Chart(
        key="branches",
        title="Where an attention layer's time goes",
        note="The launch's time is divided among bands by the FLOPs that it executes for them.",
        x_label="tokens",
        y_label="percent of the layer",
        kind="bars",
        series=[
            Series(name, labels, values, COLOURS[name])
            for name, values in parts.items()
            if any(values)
        ],
    )


def step_chart(results: Sequence[Result]) -> Chart:
    """Time of a denoising step by what is done, with dense attention beside it."""
    labels = [f"{result.scenario.tokens:,}" for result in results]
    steps = [result.step.parts for result in results]
    names = list(dict.fromkeys(name for parts in steps for name in parts))
    return Chart(
        key="step",
        title="Where a denoising step's time goes",
        note="With FreqFormer. What is not attention stays as it was.",
        x_label="tokens",
        y_label="seconds",
        kind="bars",
        series=[
            Series(name, labels, [parts.get(name, 0.0) for parts in steps], COLOURS[name])
            for name in names
            if any(parts.get(name, 0.0) for parts in steps)
        ],
    )


def heads_chart(result: Result) -> Chart:
    """Heads in every band over the denoising steps."""
    steps = list(range(1, len(result.heads_by_step) + 1))
    names = ("low", "mid", "high", "dense")
    columns = list(zip(*result.heads_by_step, strict=True))
    return Chart(
        key="heads",
        title="Heads of each band over a generation",
        note="Mean over layers, from the most noise to the least.",
        x_label="denoising step",
        y_label="heads",
        kind="area",
        series=[
            Series(name, steps, column, COLOURS[name])
            for name, column in zip(names, columns, strict=True)
            if any(column)
        ],
    )


def fit_chart(fit: dict[str, Any]) -> Chart:
    """Predicted over measured time of every measurement that the efficiency rests on or is held
    against."""
    rows, counts = fit["rows"], sorted({row["tokens"] for row in fit["rows"]})
    points = []
    for name, held, colour in (("fitted", False, "FreqFormer"), ("held out", True, "naive")):
        chosen = [row for row in rows if row["held_out"] == held]
        if chosen:
            x = [row["tokens"] for row in chosen]
            y = [row["predicted_s"] / row["measured_s"] for row in chosen]
            points.append(Series(name, x, y, COLOURS[colour], "points"))
    ends = [counts[0], counts[-1]]
    limits = [
        Series(
            f"{level:.0%}",
            ends,
            [level, level],
            COLOURS["dense" if level == 1 else "ideal"],
            "dashed",
        )
        for level in (0.9, 1.0, 1.1)
    ]
    return Chart(
        key="fit",
        title="Predicted over measured time",
        note=(
            "Committed measurements: dense attention, whole layers and their stages, forward "
            "and backward."
        ),
        x_label="tokens",
        y_label="predicted / measured",
        log_x=True,
        series=limits + points,
    )


def knob_chart(knob: str, variants: Sequence[Variant]) -> Chart:
    """Speed-up of an attention layer and of a generation over one setting."""
    chosen = [variant for variant in variants if variant.knob == knob]
    labels = [variant.label for variant in chosen]
    tokens = chosen[0].result.scenario.tokens
    return Chart(
        key=f"knob-{knob.replace('_', '-')}",
        title=f"Speed-up over {knob.replace('_', ' ')}",
        note=f"At {tokens:,} tokens, everything else as configured."
        + (" Heads in low, mid and high, in proportion." if knob == "split" else ""),
        x_label=knob.replace("_", " "),
        y_label="times faster",
        series=[
            Series(
                "attention layer",
                labels,
                [variant.result.layer.speedup for variant in chosen],
                COLOURS["low"],
            ),
            Series(
                "generation",
                labels,
                [variant.result.generation.speedup for variant in chosen],
                COLOURS["high"],
            ),
        ],
    )


def scale_chart(rows: Sequence[ScaleOut]) -> Chart:
    """Time of a denoising step over GPUs."""
    x = [row.gpus for row in rows]
    return Chart(
        key="scale-out",
        title="One denoising step on many GPUs, on paper",
        note=(
            "Ulysses over heads, queries split beyond it, weights sharded within a node. "
            "Every time of more than one GPU is foretold."
        ),
        x_label="GPUs",
        y_label="seconds",
        ticks=x,
        log_x=True,
        log_y=True,
        series=[
            Series("dense", x, [row.dense_seconds for row in rows], COLOURS["dense"], "dashed"),
            Series(
                "FreqFormer, heads in order",
                x,
                [row.naive_seconds for row in rows],
                COLOURS["naive"],
            ),
            Series(
                "FreqFormer, heads balanced",
                x,
                [row.seconds for row in rows],
                COLOURS["FreqFormer"],
            ),
            Series(
                "ideal",
                x,
                [rows[0].seconds * rows[0].gpus / gpus for gpus in x],
                COLOURS["ideal"],
                "dashed",
            ),
        ],
    )


def tick_text(value: float) -> str:
    """A count in few letters: 64 or 65K or 1.0M."""
    if value < 10_000:
        return f"{value:g}"
    return f"{value / 1e3:.0f}K" if value < 999_500 else f"{value / 1e6:.1f}M"
