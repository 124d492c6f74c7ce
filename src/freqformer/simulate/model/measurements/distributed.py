"""The rows of benchmarks/distributed.py: all-to-alls by size, and whole layers that GPUs share.

Half of them are fitted: every other size of message, and what computation hides of the all-to-alls
of forward passes. The rest, and the times of whole layers, only show how well they are foretold.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from freqformer.config import FreqFormerConfig
from freqformer.grid import Grid
from freqformer.plan import build_plan
from freqformer.simulate.model.counts import layer_counts
from freqformer.simulate.model.fit import MeasuredShare, Measurement
from freqformer.simulate.model.gradients import gradient_times
from freqformer.simulate.model.measurements.common import heads_of, origin
from freqformer.simulate.model.profiles import check_number, check_whole
from freqformer.simulate.model.roofline import Machine
from freqformer.simulate.model.scale_out import (
    LAYER_MESSAGES,
    all_to_all_seconds,
    assign_heads,
    exposed_seconds,
)

CONFIGS = {"default": FreqFormerConfig(), "paper": FreqFormerConfig.paper()}
LEAST_BYTES = 16 << 20
"""Of a message that tells of a rate: smaller ones take the latency, which is not fitted."""
MOST_BYTES = 2**50
MOST_RANKS = 1 << 16
MOST_MS = 1e9


def distributed_results(file: str, values: dict[str, Any]) -> Iterator[Measurement]:
    """Times of all-to-alls, and of layers on one GPU or all."""
    for row in _measured(values):
        source = _origin(file, values, row)
        if row["kind"] == "links":
            yield from _messages(row, source)
        if row["kind"] == "layer" and row["without"] is None:
            yield _layer(row, source)


def measured_shares(file: str, values: dict[str, Any]) -> Iterator[MeasuredShare]:
    """What computation hides of a layer's all-to-alls, forward, of those that overlap."""
    for row in _measured(values):
        fitted = row["kind"] == "layer" and row["without"] is None and not row["backward"]
        if not fitted or "hidden_ms" not in row:
            continue
        check_number("nccl_ms", row["nccl_ms"], 1e-9, MOST_MS)
        check_number("hidden_ms", row["hidden_ms"], 0, row["nccl_ms"])
        share = row["hidden_ms"] / row["nccl_ms"]
        yield MeasuredShare("all_to_all_overlap", share, _origin(file, values, row))


def _measured(values: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows with a time: of others memory ran out, or they failed."""
    return [
        row for row in values["distributed"] if "failed" not in row and "out_of_memory" not in row
    ]


def _origin(file: str, values: dict[str, Any], row: dict[str, Any]) -> str:
    check_whole("ranks", row["ranks"], 1, MOST_RANKS)
    return f"{origin(f'distributed/{file}', values)}, {row['ranks']} GPUs"


def _messages(row: dict[str, Any], source: str) -> Iterator[Measurement]:
    large = [one for one in row["messages"] if one["bytes"] >= LEAST_BYTES]
    for count, one in enumerate(large):
        check_whole("bytes", one["bytes"], 1, MOST_BYTES)
        check_number("away_bytes", one["away_bytes"], 1, one["bytes"])

        def predict(machine: Machine, one: dict[str, Any] = one) -> float:
            return all_to_all_seconds(machine, one["away_bytes"], row["ranks"], messages=1)

        yield Measurement(
            f"all-to-all of {one['bytes'] >> 20} MiB, {row['ranks']} GPUs",
            1,
            one["ms"] / 1e3,
            predict,
            ("all_to_all_bandwidth",),
            source,
            set_aside=count % 2 == 1,
        )


def _layer(row: dict[str, Any], source: str) -> Measurement:
    """A whole layer with its projections, on the GPU with the most to do."""
    config, heads, head_dim = CONFIGS[row["config"]], heads_of(row), row["head_dim"]
    gpus = row["ranks"] if row["on"] == "all" else 1
    learned = bool(config.summary_tokens)
    plan = build_plan(
        Grid(*row["grid"]), config, num_heads=heads, head_dim=head_dim, learned_summaries=learned
    )
    bands, costs = config.bands(heads), plan.band_costs()
    groups = assign_heads([costs[band] for band in bands], gpus, "balanced")
    counts = [
        layer_counts(plan, group, router="statistics", low_branch=config.low_branch)
        for group in {tuple(sorted(bands[head] for head in group)) for group in groups}
    ]
    width, passes = heads * head_dim, 3 if row["backward"] else 1
    gates = 2 * heads if config.low_branch else 0

    def predict(machine: Machine) -> float:
        """Backward is two more products for each projection, and the all-to-alls once more."""
        size, tokens = machine.hardware.element_size, row["tokens"] / gpus
        flops = 2 * tokens * width * (4 * width + gates)
        moved = size * (8 * tokens * width + 4 * width**2)
        linear = machine.linear(passes * flops, passes * moved, 4 * passes).seconds
        times = []
        for one in counts:
            taken = sum(stage.seconds for stage in machine.layer(one).values())
            if row["backward"]:
                taken += sum(stage.seconds for stage in gradient_times(machine, one).values())
            times.append(taken)
        sent = tokens * (4 * width + gates) * size * (gpus - 1) / gpus
        turns = 2 if row["backward"] else 1
        return (
            linear
            + max(times)
            + turns * exposed_seconds(machine, sent, gpus, messages=LAYER_MESSAGES)
        )

    passed = "forward and backward" if row["backward"] else "forward"
    return Measurement(
        f"layer {row['config']}, {passed}, {gpus} GPU{'s' * (gpus > 1)}",
        row["tokens"],
        row["ms"] / 1e3,
        predict,
        (),
        source,
        set_aside=True,
    )
