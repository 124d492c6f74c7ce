"""layer.json, kernel.json and eager_cpu.json: layers forward, one launch, eager attention."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from freqformer.config import Band, FreqFormerConfig
from freqformer.grid import Grid
from freqformer.ops.cost import workspace_bytes
from freqformer.plan import build_plan
from freqformer.routing import even_allocation
from freqformer.simulate.model.counts import dense_counts, layer_counts
from freqformer.simulate.model.fit import Measurement
from freqformer.simulate.model.gradients import (
    dense_gradient_time,
)
from freqformer.simulate.model.measurements.common import (
    INFORMS,
    LAUNCHES,
    dense,
    gradient_predictor,
    heads_of,
    kernel_plan,
    of_attention,
    origin,
    part_seconds,
    predictor,
)
from freqformer.simulate.model.roofline import Machine

MOST_ROUTER_LAUNCHES = 4
"""Of the router that is counted; results with more were taken of statistics over all tokens, which
it no longer has."""


def layer_results(file: str, values: dict[str, Any]) -> Iterator[Measurement]:
    """Layers of the named models and of the scaling series: dense attention, the whole layer, and
    each stage."""
    source, head_dim = origin(file, values), values["head_dim"]
    config = FreqFormerConfig.from_dict(values["config"])
    for name, group in values["layers"].items():
        variants = {
            variant: record
            for variant, record in group.items()
            if isinstance(record, dict) and "grid" in record
        }
        first = next(iter(variants.values()))
        yield dense(f"{name}, dense", first, head_dim, group["dense_ms"], source)
        yield from _router(f"{name}, live router", first | group, config, head_dim, source)
        for variant, record in variants.items():
            yield from _layer(
                f"{name}, {variant}",
                record,
                config,
                head_dim,
                variant == "learned summaries",
                source,
            )
    for point in values["scaling"]["points"]:
        if point["dense_measured"]:
            yield dense("scaling, dense", point, head_dim, point["dense_ms"], source)
        yield from _layer("scaling", point, config, head_dim, False, source)
        yield from _router("scaling, live router", point, config, head_dim, source)


def kernel_results(file: str, values: dict[str, Any]) -> Iterator[Measurement]:
    """The attention launch alone on lists of full tiles, at several densities, and dense
    attention."""
    source, head_dim, tokens, heads = (
        origin(file, values),
        values["head_dim"],
        values["tokens"],
        heads_of(values),
    )
    yield dense(
        f"kernel, dense, head_dim {head_dim}", values, head_dim, values["dense"]["ms"], source
    )
    for density, record in values["launch"].items():
        plan = kernel_plan(tokens, heads, head_dim, float(density))
        predict = predictor(plan, [Band.MID.value] * heads, "attention")
        name = f"kernel, {float(density):.0%} of blocks, head_dim {head_dim}"
        yield Measurement(
            name, tokens, record["ms"] / 1e3, predict, of_attention("attention", head_dim), source
        )


def eager_results(file: str, values: dict[str, Any]) -> Iterator[Measurement]:
    """The one layer of benchmarks/eager_cpu.py in float32: 8 heads of 64, split 3/2/3, 256
    summaries."""
    source, grid, allocation, head_dim = (
        origin(file, values),
        Grid(16, 32, 32),
        [0, 0, 0, 1, 1, 2, 2, 2],
        64,
    )
    forward, trained = values["speed"]["forward"], values["speed"]["forward and backward"]
    dense = dense_counts(grid.num_tokens, len(allocation), head_dim, element_size=4)
    config = FreqFormerConfig(summary_tokens=256)
    plan = build_plan(grid, config, num_heads=len(allocation), head_dim=head_dim)
    layer = predictor(plan, allocation, "layer", element_size=4)
    gradients = gradient_predictor(plan, allocation, element_size=4)

    def dense_trained(machine: Machine) -> float:
        return (
            machine.dense(dense, head_dim).seconds
            + dense_gradient_time(machine, dense, head_dim).seconds
        )

    for name, seconds, predict, informs in (
        (
            "dense",
            forward["dense_wall_s"],
            lambda at: at.dense(dense, head_dim).seconds,
            "dense_rate",
        ),
        ("layer", forward["frequency_wall_s"], layer, "attention_rate"),
        (
            "dense, forward and backward",
            trained["dense_wall_s"],
            dense_trained,
            "dense_gradient_rate",
        ),
        (
            "layer, forward and backward",
            trained["frequency_wall_s"],
            lambda at: layer(at) + gradients(at),
            "attention_gradient_rate",
        ),
    ):
        yield Measurement(f"eager, {name}", grid.num_tokens, seconds, predict, (informs,), source)


def _router(
    name: str, record: dict[str, Any], config: FreqFormerConfig, head_dim: int, source: str
) -> Iterator[Measurement]:
    """The live router, where it was measured as it is counted: its kernels alone, without what
    launching them costs."""
    measured = record.get("live_router")
    if measured is None or measured["num_launches"] > MOST_ROUTER_LAUNCHES:
        return
    heads = heads_of(record)
    plan = build_plan(Grid(*record["grid"]), config, num_heads=heads, head_dim=head_dim)
    allocation = even_allocation(heads)
    counts = layer_counts(plan, allocation, router="statistics")

    def predict(machine: Machine) -> float:
        time = machine.layer(counts)["router"]
        return time.seconds - time.launch_s

    yield Measurement(
        name, record["tokens"], measured["ms"] / 1e3, predict, ("router_rate", "router_s"), source
    )


def _layer(
    name: str,
    record: dict[str, Any],
    config: FreqFormerConfig,
    head_dim: int,
    learned: bool,
    source: str,
) -> Iterator[Measurement]:
    heads = heads_of(record)
    own = replace(config, window=tuple(record["window"]), mid_tiles=record["mid_tiles"])
    plan = build_plan(
        Grid(*record["grid"]), own, num_heads=heads, head_dim=head_dim, learned_summaries=learned
    )
    allocation = even_allocation(heads)
    every = tuple(field for fields in INFORMS.values() for field in fields)
    yield Measurement(
        f"{name}, layer",
        record["tokens"],
        record["layer_ms"] / 1e3,
        predictor(plan, allocation, "layer"),
        every,
        source,
    )
    for part, seconds in part_seconds(record["launches"], LAUNCHES).items():
        yield Measurement(
            f"{name}, {part}",
            record["tokens"],
            seconds,
            predictor(plan, allocation, part),
            of_attention(part, head_dim),
            source,
        )


def layer_peaks(values: dict[str, Any]) -> list[tuple[str, float, float]]:
    config, rows = FreqFormerConfig.from_dict(values["config"]), []
    groups = [
        (name, record) for name, group in values["layers"].items() for record in group.items()
    ]
    records = [
        (f"{name}, {variant}", record)
        for name, (variant, record) in groups
        if isinstance(record, dict) and "grid" in record
    ]
    records += [(f"scaling, {point['tokens']:,}", point) for point in values["scaling"]["points"]]
    for name, record in records:
        own = replace(config, window=tuple(record["window"]), mid_tiles=record["mid_tiles"])
        plan = build_plan(
            Grid(*record["grid"]),
            own,
            num_heads=heads_of(record),
            head_dim=values["head_dim"],
            learned_summaries="learned" in name,
        )
        tensors = 4 * 2 * record["tokens"] * heads_of(record) * values["head_dim"]
        rows.append(
            (
                name,
                tensors + record["workspace_bytes"],
                tensors + workspace_bytes(plan, plan.num_heads, 2),
            )
        )
    return rows
