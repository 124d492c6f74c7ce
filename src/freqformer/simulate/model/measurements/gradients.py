"""backward.json: launches of gradients, and layers with their backward."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from freqformer.config import Band, FreqFormerConfig
from freqformer.grid import Grid
from freqformer.ops.cost import training_bytes
from freqformer.plan import AttentionPlan, build_plan
from freqformer.routing import even_allocation
from freqformer.simulate.model.counts import dense_counts
from freqformer.simulate.model.fit import Measurement
from freqformer.simulate.model.gradients import (
    dense_gradient_time,
)
from freqformer.simulate.model.measurements.common import (
    GRADIENT_LAUNCHES,
    GRADIENTS_INFORM,
    INFORMS,
    gradient_predictor,
    heads_of,
    kernel_plan,
    origin,
    part_seconds,
    predictor,
)
from freqformer.simulate.model.roofline import Machine

BACKWARD_HEADS = 8
"""Heads of the launches in benchmarks/backward.py, and"""
BACKWARD_CONFIG = FreqFormerConfig(
    compression=32, mid_tiles=32, window=(3, 3, 3), summary_tokens=256
)
"""its layers' configuration."""


def backward_results(file: str, values: dict[str, Any]) -> Iterator[Measurement]:
    """The gradient launches alone, and forward and backward of whole layers and of dense
    attention."""
    source, head_dim, tokens = origin(file, values), values["head_dim"], values["tokens"]
    for density, record in values["launches"].items():
        plan, allocation = (
            kernel_plan(tokens, BACKWARD_HEADS, head_dim, float(density)),
            [Band.MID.value] * BACKWARD_HEADS,
        )
        predict = gradient_predictor(plan, allocation, "attention")
        name, seconds = (
            f"gradients, {float(density):.0%} of blocks, head_dim {head_dim}",
            record["launches"]["ms"] / 1e3,
        )
        yield Measurement(name, tokens, seconds, predict, GRADIENTS_INFORM["attention"], source)
    for name, record in values["layers"].items():
        yield from _trained_layer(
            f"gradients, {name}", _trained_plan(name, record, head_dim), record, source
        )
    trained = next(iter(values["layers"].values()))
    dense = dense_counts(trained["tokens"], heads_of(trained), head_dim)

    def predict_dense(machine: Machine) -> float:
        return (
            machine.dense(dense, head_dim).seconds
            + dense_gradient_time(machine, dense, head_dim).seconds
        )

    informs = ("dense_rate", "dense_gradient_rate")
    yield Measurement(
        "dense, forward and backward",
        trained["tokens"],
        values["dense_ms"] / 1e3,
        predict_dense,
        informs,
        source,
    )


def _trained_plan(name: str, record: dict[str, Any], head_dim: int) -> AttentionPlan:
    learned, grid = "learned" in name, Grid(*record["grid"])
    return build_plan(
        grid,
        BACKWARD_CONFIG,
        num_heads=heads_of(record),
        head_dim=head_dim,
        learned_summaries=learned,
    )


def _trained_layer(
    name: str, plan: AttentionPlan, record: dict[str, Any], source: str
) -> Iterator[Measurement]:
    allocation, tokens = even_allocation(plan.num_heads), record["tokens"]
    forward, backward = predictor(plan, allocation, "layer"), gradient_predictor(plan, allocation)
    every = tuple(
        field
        for known in (INFORMS, GRADIENTS_INFORM)
        for fields in known.values()
        for field in fields
    )
    seconds = record["forward_and_backward_ms"] / 1e3
    yield Measurement(
        f"{name}, forward and backward",
        tokens,
        seconds,
        lambda at: forward(at) + backward(at),
        every,
        source,
    )
    for part, seconds in part_seconds(record["launches"], GRADIENT_LAUNCHES).items():
        predict = gradient_predictor(plan, allocation, part)
        yield Measurement(
            f"{name}, {part}", tokens, seconds, predict, GRADIENTS_INFORM[part], source
        )


def trained_peaks(values: dict[str, Any]) -> Iterator[tuple[str, float, float]]:
    for name, record in values["layers"].items():
        inputs = 4 * 2 * record["tokens"] * heads_of(record) * values["head_dim"]
        held = training_bytes(_trained_plan(name, record, values["head_dim"]), 2)
        yield f"{name}, forward and backward", inputs + record["peak_bytes"], inputs + held
