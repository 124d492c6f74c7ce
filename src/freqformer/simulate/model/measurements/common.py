"""What measurements of every benchmark share: parts of a layer, and what the model says of one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from freqformer.config import FreqFormerConfig
from freqformer.grid import TILE_SLOTS, Grid
from freqformer.plan import AttentionPlan, build_plan
from freqformer.simulate.model.counts import dense_counts, layer_counts
from freqformer.simulate.model.fit import Measurement
from freqformer.simulate.model.gradients import (
    gradient_times,
)
from freqformer.simulate.model.profiles import check_whole
from freqformer.simulate.model.roofline import REFERENCE_CHANNELS, Machine
from freqformer.simulate.model.transformers import MOST_HEADS

LAUNCHES = {
    "prepare_tiles": "prologue",
    "pool_tiles": "prologue",
    "finish_rows": "prologue",
    "select_tiles": "selection",
    "attention_kernel": "attention",
    "merge_kernel": "merge",
    "expand_low": "merge",  # its name in results before it took a LOW branch
}
"""Which part of a layer a launch belongs to, by the kernel's name."""
PARTS = {
    "prologue": ("prologue", "summaries"),
    "selection": ("selection",),
    "attention": ("attention",),
    "merge": ("merge",),
    "layer": ("prologue", "summaries", "selection", "attention", "merge"),
}
"""The model's stages in each part."""
GRADIENT_LAUNCHES = {
    "gather_grads": "attention",
    "query_grads": "attention",
    "video_grads": "attention",
    "extra_grads": "attention",
    "pool_slopes": "prologue",
    "tile_grads": "prologue",
    "collapse_kernel": "merge",
    "collapse_low": "merge",  # likewise
}
GRADIENT_PARTS = {
    "attention": ("gather", "attention"),
    "prologue": ("prologue", "summaries"),
    "merge": ("merge",),
}
INFORMS = {
    "attention": ("attention_rate", "attention_item_blocks"),
    "prologue": ("prologue_bandwidth", "pooling_rate"),
    "selection": ("selection_rate", "selection_item_tiles"),
    "merge": ("merge_bandwidth",),
}
GRADIENTS_INFORM = {
    "attention": ("attention_gradient_rate",),
    "prologue": ("prologue_gradient_bandwidth", "pooling_gradient_rate"),
    "merge": ("merge_gradient_bandwidth",),
}


def machine_name(values: dict[str, Any]) -> str:
    """What the benchmark ran on: the GPU's name, or `CPU` and the processor's."""
    machine = values["machine"]
    return machine["gpu"] if "gpu" in machine else f"CPU, {machine['cpu']}"


def heads_of(record: dict[str, Any]) -> int:
    """Heads that something was measured with; ProfileError for a number of which no memory holds a
    list."""
    check_whole("heads", record["heads"], 1, MOST_HEADS)
    return record["heads"]


def origin(file: str, values: dict[str, Any]) -> str:
    commit = values["machine"]["commit"][:12]
    return f"benchmarks/results/{file}, {machine_name(values)}, commit {commit}"


def kernel_plan(tokens: int, heads: int, head_dim: int, density: float) -> AttentionPlan:
    """Every head MID, this share of the tiles listed, every tile full."""
    config = FreqFormerConfig(
        tile=(1, 1, TILE_SLOTS),
        mid_tiles=max(1, round(density * tokens / TILE_SLOTS)),
        summary_tokens=0,
    )
    return build_plan(Grid(1, 1, tokens), config, num_heads=heads, head_dim=head_dim)


def part_seconds(launches: Sequence[tuple[str, float]], known: dict[str, str]) -> dict[str, float]:
    """Seconds of each part of a layer, from the names and microseconds of its launches."""
    times: dict[str, float] = {}
    for launch, microseconds in launches:
        part = next((part for kernel, part in known.items() if kernel in launch), None)
        if part is not None:
            times[part] = times.get(part, 0.0) + microseconds / 1e6
    return times


def predictor(
    plan: AttentionPlan, allocation: list[int], part: str, element_size: int = 2
) -> Callable[[Machine], float]:
    """What a machine takes for one part of a layer."""
    counts = layer_counts(plan, allocation, element_size=element_size)

    def predict(machine: Machine) -> float:
        times = machine.layer(counts)
        return sum(times[name].seconds for name in PARTS[part])

    return predict


def gradient_predictor(
    plan: AttentionPlan, allocation: list[int], part: str | None = None, element_size: int = 2
) -> Callable[[Machine], float]:
    """What a machine takes for one part of a layer's backward; None: all of it."""
    counts = layer_counts(plan, allocation, element_size=element_size)

    def predict(machine: Machine) -> float:
        times = gradient_times(machine, counts)
        return sum(
            times[name].seconds for name in (times if part is None else GRADIENT_PARTS[part])
        )

    return predict


def of_attention(part: str, head_dim: int) -> tuple[str, ...]:
    """Efficiency fields that a stage tells about; small heads tell what a softmax costs."""
    return INFORMS[part] + (
        ("softmax_channels",) if part == "attention" and head_dim != REFERENCE_CHANNELS else ()
    )


def dense(name: str, record: dict[str, Any], head_dim: int, ms: float, source: str) -> Measurement:
    counts = dense_counts(record["tokens"], heads_of(record), head_dim)

    def predict(machine: Machine) -> float:
        return machine.dense(counts, head_dim).seconds

    return Measurement(name, record["tokens"], ms / 1e3, predict, ("dense_rate",), source)
