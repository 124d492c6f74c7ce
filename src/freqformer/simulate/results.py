"""Reading committed benchmark results as measurements that a calibration can be fitted to."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from freqformer._files import read_json
from freqformer.buffers import workspace_bytes
from freqformer.config import Band, FreqFormerConfig
from freqformer.grid import TILE_SLOTS, Grid
from freqformer.plan import AttentionPlan, build_plan
from freqformer.routing import even_allocation
from freqformer.simulate.calibrate import Measurement
from freqformer.simulate.counts import dense_counts, layer_counts
from freqformer.simulate.gradients import (
    dense_gradient_time,
    gradient_counts,
    gradient_times,
    training_bytes,
)
from freqformer.simulate.hardware import Hardware
from freqformer.simulate.profiles import ProfileError, check_number, check_whole
from freqformer.simulate.roofline import REFERENCE_CHANNELS, Machine
from freqformer.simulate.shapes import MOST_HEADS

LAUNCHES = {
    "prepare_tiles": "prologue",
    "finish_rows": "prologue",
    "select_tiles": "selection",
    "attention_kernel": "attention",
    "expand_low": "merge",
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
    "collapse_low": "merge",
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
MOST_ROUTER_LAUNCHES = 4
"""Of the router that is counted; results with more were taken of statistics over all tokens, which
it no longer has."""
BACKWARD_HEADS = 8
"""Heads of the launches in benchmarks/backward.py, and"""
BACKWARD_CONFIG = FreqFormerConfig(
    compression=32, mid_tiles=32, window=(3, 3, 3), summary_tokens=256
)
"""its layers' configuration."""
MOST_BYTES = 2**50
"""Of a measured peak."""
MOST_SHOWN = 300
"""Characters of an error about a file's content that are repeated."""
_REMEDY = "give a JSON file that a benchmark wrote"


def read_results(paths: Sequence[Path], hardware: Hardware) -> list[Measurement]:
    """Measurements of benchmark result files, `layer.json`, `kernel.json`, `backward.json` and
    `eager_cpu.json`.

    Raises:
        ProfileError: for a file that can't be read, that holds none of them, or that another
            machine made, naming it, and the field where one is missing.
    """
    return [measurement for path in paths for measurement in _read(path, hardware)]


def _read(path: Path, hardware: Hardware) -> list[Measurement]:
    values = read_json(path, remedy=_REMEDY, error=ProfileError)
    with _checked(path):
        machine = _machine(values)
        if hardware.name not in machine.lower().replace(" ", ""):
            raise ProfileError(
                f"{path} was measured on {machine}, not on {hardware.title}: name that with "
                "--hardware"
            )
        if "layers" in values and "scaling" in values:
            return list(_layer_results(path.name, values))
        if "launch" in values and "dense" in values:
            return list(_kernel_results(path.name, values))
        if "layers" in values and "launches" in values:
            return list(_backward_results(path.name, values))
        if "speed" in values:
            return list(_eager_results(path.name, values))
    raise ProfileError(
        f"{path} holds no known benchmark; give layer.json, kernel.json, backward.json or "
        "eager_cpu.json of "
        "benchmarks/results"
    )


@contextlib.contextmanager
def _checked(path: Path) -> Iterator[None]:
    """Raise ProfileError where a file does not hold what a benchmark writes: what its readers
    stumble over has many types."""
    try:
        yield
    except (KeyError, IndexError, StopIteration) as error:
        raise ProfileError(
            f"{path} lacks {error} where benchmarks/{path.name} writes it: run the benchmark again"
        ) from error
    except (ValueError, TypeError, AttributeError, ArithmeticError) as error:
        if str(path) in str(error):
            raise
        raise ProfileError(
            f"{path} holds what benchmarks/{path.name} does not write ({str(error)[:MOST_SHOWN]}): "
            "run the benchmark again"
        ) from error


def _machine(values: dict[str, Any]) -> str:
    """What the benchmark ran on: the GPU's name, or `CPU` and the processor's."""
    machine = values["machine"]
    return machine["gpu"] if "gpu" in machine else f"CPU, {machine['cpu']}"


def _heads(record: dict[str, Any]) -> int:
    """Heads that something was measured with; ProfileError for a number of which no memory holds a
    list."""
    check_whole("heads", record["heads"], 1, MOST_HEADS)
    return record["heads"]


def _origin(file: str, values: dict[str, Any]) -> str:
    return (
        f"benchmarks/results/{file}, {_machine(values)}, commit {values['machine']['commit'][:12]}"
    )


def _layer_results(file: str, values: dict[str, Any]) -> Iterator[Measurement]:
    """Layers of the named models and of the scaling series: dense attention, the whole layer, and
    each stage."""
    source, head_dim = _origin(file, values), values["head_dim"]
    config = FreqFormerConfig.from_dict(values["config"])
    for name, group in values["layers"].items():
        variants = {
            variant: record
            for variant, record in group.items()
            if isinstance(record, dict) and "grid" in record
        }
        first = next(iter(variants.values()))
        yield _dense(f"{name}, dense", first, head_dim, group["dense_ms"], source)
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
            yield _dense("scaling, dense", point, head_dim, point["dense_ms"], source)
        yield from _layer("scaling", point, config, head_dim, False, source)
        yield from _router("scaling, live router", point, config, head_dim, source)


def _kernel_results(file: str, values: dict[str, Any]) -> Iterator[Measurement]:
    """The attention launch alone on lists of full tiles, at several densities, and dense
    attention."""
    source, head_dim, tokens, heads = (
        _origin(file, values),
        values["head_dim"],
        values["tokens"],
        _heads(values),
    )
    yield _dense(
        f"kernel, dense, head_dim {head_dim}", values, head_dim, values["dense"]["ms"], source
    )
    for density, record in values["launch"].items():
        plan = _kernel_plan(tokens, heads, head_dim, float(density))
        predict = _predictor(plan, [Band.MID.value] * heads, "attention")
        name = f"kernel, {float(density):.0%} of blocks, head_dim {head_dim}"
        yield Measurement(
            name, tokens, record["ms"] / 1e3, predict, _of_attention("attention", head_dim), source
        )


def _kernel_plan(tokens: int, heads: int, head_dim: int, density: float) -> AttentionPlan:
    """Every head MID, this share of the tiles listed, every tile full."""
    config = FreqFormerConfig(
        tile=(1, 1, TILE_SLOTS),
        mid_tiles=max(1, round(density * tokens / TILE_SLOTS)),
        summary_tokens=0,
    )
    return build_plan(Grid(1, 1, tokens), config, num_heads=heads, head_dim=head_dim)


def _backward_results(file: str, values: dict[str, Any]) -> Iterator[Measurement]:
    """The gradient launches alone, and forward and backward of whole layers and of dense
    attention."""
    source, head_dim, tokens = _origin(file, values), values["head_dim"], values["tokens"]
    for density, record in values["launches"].items():
        plan, allocation = (
            _kernel_plan(tokens, BACKWARD_HEADS, head_dim, float(density)),
            [Band.MID.value] * BACKWARD_HEADS,
        )
        predict = _gradient_predictor(plan, allocation, "attention")
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
    dense = dense_counts(trained["tokens"], _heads(trained), head_dim)

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
        num_heads=_heads(record),
        head_dim=head_dim,
        learned_summaries=learned,
    )


def _trained_layer(
    name: str, plan: AttentionPlan, record: dict[str, Any], source: str
) -> Iterator[Measurement]:
    allocation, tokens = even_allocation(plan.num_heads), record["tokens"]
    forward, backward = _predictor(plan, allocation, "layer"), _gradient_predictor(plan, allocation)
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
    for part, seconds in _part_seconds(record["launches"], GRADIENT_LAUNCHES).items():
        predict = _gradient_predictor(plan, allocation, part)
        yield Measurement(
            f"{name}, {part}", tokens, seconds, predict, GRADIENTS_INFORM[part], source
        )


def _part_seconds(launches: Sequence[tuple[str, float]], known: dict[str, str]) -> dict[str, float]:
    """Seconds of each part of a layer, from the names and microseconds of its launches."""
    times: dict[str, float] = {}
    for launch, microseconds in launches:
        part = next((part for kernel, part in known.items() if kernel in launch), None)
        if part is not None:
            times[part] = times.get(part, 0.0) + microseconds / 1e6
    return times


def _eager_results(file: str, values: dict[str, Any]) -> Iterator[Measurement]:
    """The one layer of benchmarks/eager_cpu.py in float32: 8 heads of 64, split 3/2/3, 256
    summaries."""
    source, grid, allocation, head_dim = (
        _origin(file, values),
        Grid(16, 32, 32),
        [0, 0, 0, 1, 1, 2, 2, 2],
        64,
    )
    forward, trained = values["speed"]["forward"], values["speed"]["forward and backward"]
    dense = dense_counts(grid.num_tokens, len(allocation), head_dim, element_size=4)
    config = FreqFormerConfig(summary_tokens=256)
    plan = build_plan(grid, config, num_heads=len(allocation), head_dim=head_dim)
    layer = _predictor(plan, allocation, "layer", element_size=4)
    gradients = _gradient_predictor(plan, allocation, element_size=4)

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


def _predictor(
    plan: AttentionPlan, allocation: list[int], part: str, element_size: int = 2
) -> Callable[[Machine], float]:
    """What a machine takes for one part of a layer."""
    counts = layer_counts(plan, allocation, element_size=element_size)

    def predict(machine: Machine) -> float:
        times = machine.layer(plan, allocation, counts)
        return sum(times[name].seconds for name in PARTS[part])

    return predict


def _gradient_predictor(
    plan: AttentionPlan, allocation: list[int], part: str | None = None, element_size: int = 2
) -> Callable[[Machine], float]:
    """What a machine takes for one part of a layer's backward; None: all of it."""
    counts = layer_counts(plan, allocation, element_size=element_size)
    gradients = gradient_counts(plan, allocation, counts, element_size=element_size)

    def predict(machine: Machine) -> float:
        times = gradient_times(machine, plan, allocation, gradients)
        return sum(
            times[name].seconds for name in (times if part is None else GRADIENT_PARTS[part])
        )

    return predict


def _of_attention(part: str, head_dim: int) -> tuple[str, ...]:
    """Calibration fields that a stage tells about; small heads tell what a softmax costs."""
    return INFORMS[part] + (
        ("softmax_channels",) if part == "attention" and head_dim != REFERENCE_CHANNELS else ()
    )


def _dense(name: str, record: dict[str, Any], head_dim: int, ms: float, source: str) -> Measurement:
    counts = dense_counts(record["tokens"], _heads(record), head_dim)

    def predict(machine: Machine) -> float:
        return machine.dense(counts, head_dim).seconds

    return Measurement(name, record["tokens"], ms / 1e3, predict, ("dense_rate",), source)


def _router(
    name: str, record: dict[str, Any], config: FreqFormerConfig, head_dim: int, source: str
) -> Iterator[Measurement]:
    """The live router, where it was measured as it is counted: its kernels alone, without what
    launching them costs."""
    measured = record.get("live_router")
    if measured is None or measured["num_launches"] > MOST_ROUTER_LAUNCHES:
        return
    heads = _heads(record)
    plan = build_plan(Grid(*record["grid"]), config, num_heads=heads, head_dim=head_dim)
    allocation = even_allocation(heads)
    counts = layer_counts(plan, allocation, router="statistics")

    def predict(machine: Machine) -> float:
        time = machine.layer(plan, allocation, counts)["router"]
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
    heads = _heads(record)
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
        _predictor(plan, allocation, "layer"),
        every,
        source,
    )
    for part, seconds in _part_seconds(record["launches"], LAUNCHES).items():
        yield Measurement(
            f"{name}, {part}",
            record["tokens"],
            seconds,
            _predictor(plan, allocation, part),
            _of_attention(part, head_dim),
            source,
        )


def read_peaks(paths: Sequence[Path]) -> list[tuple[str, float, float]]:
    """Name, measured and counted peak bytes of every layer in `layer.json`: inputs, output and
    workspace; and in `backward.json`: inputs, output's gradient, and all that forward and backward
    hold beside them.

    Files of other benchmarks have none.

    Raises:
        ProfileError: for a file that can't be read or holds what no benchmark writes, naming it.
    """
    rows = []
    for path in paths:
        values = read_json(path, remedy=_REMEDY, error=ProfileError)
        with _checked(path):
            if "scaling" in values:
                own = _peaks(values)
            elif "layers" in values and "launches" in values:
                own = list(_trained_peaks(values))
            else:
                own = []
            for name, measured, _ in own:
                check_number(f"peak bytes of {name!r}", measured, 1, MOST_BYTES)
        rows += own
    return rows


def _trained_peaks(values: dict[str, Any]) -> Iterator[tuple[str, float, float]]:
    for name, record in values["layers"].items():
        inputs = 4 * 2 * record["tokens"] * _heads(record) * values["head_dim"]
        held = training_bytes(_trained_plan(name, record, values["head_dim"]), 2)
        yield f"{name}, forward and backward", inputs + record["peak_bytes"], inputs + held


def _peaks(values: dict[str, Any]) -> list[tuple[str, float, float]]:
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
            num_heads=_heads(record),
            head_dim=values["head_dim"],
            learned_summaries="learned" in name,
        )
        tensors = 4 * 2 * record["tokens"] * _heads(record) * values["head_dim"]
        rows.append(
            (
                name,
                tensors + record["workspace_bytes"],
                tensors + workspace_bytes(plan, plan.num_heads, 2),
            )
        )
    return rows
