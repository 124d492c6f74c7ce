"""Reading committed benchmark results as measurements that a calibration can be fitted to."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from freqformer.config import Band, FreqFormerConfig
from freqformer.grid import TILE_SLOTS, Grid
from freqformer.plan import AttentionPlan, build_plan
from freqformer.routing import even_allocation
from freqformer.simulate.calibrate import Measurement
from freqformer.simulate.counts import dense_counts, layer_counts, workspace_bytes
from freqformer.simulate.hardware import Hardware
from freqformer.simulate.profiles import ProfileError
from freqformer.simulate.roofline import REFERENCE_CHANNELS, Machine

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
INFORMS = {
    "attention": ("attention_rate", "attention_item_blocks"),
    "prologue": ("prologue_bandwidth", "pooling_rate"),
    "selection": ("selection_rate", "selection_item_tiles"),
    "merge": ("merge_bandwidth",),
}


def read_results(paths: Sequence[Path], hardware: Hardware) -> list[Measurement]:
    """Measurements of benchmark result files, `layer.json`, `kernel.json` and `eager_cpu.json`.

    Raises:
        ProfileError: for a file that can't be read, that holds none of them, or that another machine made, naming it, and
            the field where one is missing.
    """
    return [measurement for path in paths for measurement in _read(path, hardware)]


def _read(path: Path, hardware: Hardware) -> list[Measurement]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ProfileError(f"{path} can't be read ({error}); give a JSON file that a benchmark wrote") from error
    try:
        machine = _machine(values)
        if hardware.name not in machine.lower().replace(" ", ""):
            raise ProfileError(f"{path} was measured on {machine}, not on {hardware.title}: name that with --hardware")
        if "layers" in values and "scaling" in values:
            return list(_layer_results(path.name, values))
        if "launch" in values and "dense" in values:
            return list(_kernel_results(path.name, values))
        if "speed" in values:
            return list(_eager_results(path.name, values))
    except (KeyError, TypeError, IndexError) as error:
        raise ProfileError(
            f"{path} lacks {error} where benchmarks/{path.name} writes it: run the benchmark again"
        ) from error
    raise ProfileError(
        f"{path} holds no known benchmark; give layer.json, kernel.json or eager_cpu.json of benchmarks/results"
    )


def _machine(values: dict[str, Any]) -> str:
    """What the benchmark ran on: the GPU's name, or `CPU` and the processor's."""
    machine = values["machine"]
    return machine["gpu"] if "gpu" in machine else f"CPU, {machine['cpu']}"


def _origin(file: str, values: dict[str, Any]) -> str:
    return f"benchmarks/results/{file}, {_machine(values)}, commit {values['machine']['commit'][:12]}"


def _layer_results(file: str, values: dict[str, Any]) -> Iterator[Measurement]:
    """Layers of the named models and of the scaling series: dense attention, the whole layer, and each stage."""
    source, head_dim = _origin(file, values), values["head_dim"]
    config = FreqFormerConfig.from_dict(values["config"])
    for name, group in values["layers"].items():
        variants = {variant: record for variant, record in group.items() if isinstance(record, dict) and "grid" in record}
        first = next(iter(variants.values()))
        yield _dense(f"{name}, dense", first, head_dim, group["dense_ms"], source)
        yield _router(f"{name}, live router", first, config, head_dim, group["live_router"]["ms"], source)
        for variant, record in variants.items():
            yield from _layer(f"{name}, {variant}", record, config, head_dim, variant == "learned summaries", source)
    for point in values["scaling"]["points"]:
        if point["dense_measured"]:
            yield _dense("scaling, dense", point, head_dim, point["dense_ms"], source)
        yield from _layer("scaling", point, config, head_dim, False, source)


def _kernel_results(file: str, values: dict[str, Any]) -> Iterator[Measurement]:
    """The attention launch alone on lists of full tiles, at several densities, and dense attention."""
    source, head_dim, tokens, heads = _origin(file, values), values["head_dim"], values["tokens"], values["heads"]
    yield _dense(f"kernel, dense, head_dim {head_dim}", values, head_dim, values["dense"]["ms"], source)
    tile = (1, 1, TILE_SLOTS)
    for density, record in values["launch"].items():
        kept = max(1, round(float(density) * tokens / TILE_SLOTS))
        config = FreqFormerConfig(tile=tile, mid_tiles=kept, summary_tokens=0)
        plan = build_plan(Grid(1, 1, tokens), config, num_heads=heads, head_dim=head_dim)
        predict = _predictor(plan, [Band.MID.value] * heads, "attention")
        name = f"kernel, {float(density):.0%} of blocks, head_dim {head_dim}"
        yield Measurement(name, tokens, record["ms"] / 1e3, predict, _of_attention("attention", head_dim), source)


def _eager_results(file: str, values: dict[str, Any]) -> Iterator[Measurement]:
    """The one layer of benchmarks/eager_cpu.py, forward in float32: 8 heads of 64, split 3/2/3, default configuration."""
    source, grid, allocation, head_dim = _origin(file, values), Grid(16, 32, 32), [0, 0, 0, 1, 1, 2, 2, 2], 64
    forward, tokens = values["speed"]["forward"], grid.num_tokens
    dense = dense_counts(tokens, len(allocation), head_dim, element_size=4)
    plan = build_plan(grid, FreqFormerConfig(), num_heads=len(allocation), head_dim=head_dim)
    for name, seconds, predict, informs in (
        ("dense", forward["dense_wall_s"], lambda machine: machine.dense(dense, head_dim).seconds, "dense_rate"),
        ("layer", forward["frequency_wall_s"], _predictor(plan, allocation, "layer", element_size=4), "attention_rate"),
    ):
        yield Measurement(f"eager, {name}", tokens, seconds, predict, (informs,), source)


def _predictor(plan: AttentionPlan, allocation: list[int], part: str, element_size: int = 2) -> Callable[[Machine], float]:
    """What a machine takes for one part of a layer."""
    counts = layer_counts(plan, allocation, element_size=element_size)

    def predict(machine: Machine) -> float:
        times = machine.layer(plan, allocation, counts)
        return sum(times[name].seconds for name in PARTS[part])

    return predict


def _of_attention(part: str, head_dim: int) -> tuple[str, ...]:
    """Calibration fields that a stage tells about; small heads tell what a softmax costs."""
    return INFORMS[part] + (("softmax_channels",) if part == "attention" and head_dim != REFERENCE_CHANNELS else ())


def _dense(name: str, record: dict[str, Any], head_dim: int, ms: float, source: str) -> Measurement:
    counts = dense_counts(record["tokens"], record["heads"], head_dim)

    def predict(machine: Machine) -> float:
        return machine.dense(counts, head_dim).seconds

    return Measurement(name, record["tokens"], ms / 1e3, predict, ("dense_rate",), source)


def _router(
    name: str, record: dict[str, Any], config: FreqFormerConfig, head_dim: int, ms: float, source: str
) -> Measurement:
    heads = record["heads"]
    plan = build_plan(Grid(*record["grid"]), config, num_heads=heads, head_dim=head_dim)
    allocation = even_allocation(heads)
    counts = layer_counts(plan, allocation, live_router=True)

    def predict(machine: Machine) -> float:
        return machine.layer(plan, allocation, counts)["router"].seconds

    return Measurement(name, record["tokens"], ms / 1e3, predict, ("router_bandwidth",), source)


def _layer(
    name: str, record: dict[str, Any], config: FreqFormerConfig, head_dim: int, learned: bool, source: str
) -> Iterator[Measurement]:
    heads = record["heads"]
    own = replace(config, window=tuple(record["window"]), mid_tiles=record["mid_tiles"])
    plan = build_plan(Grid(*record["grid"]), own, num_heads=heads, head_dim=head_dim, learned_summaries=learned)
    allocation = even_allocation(heads)
    every = tuple(field for fields in INFORMS.values() for field in fields)
    yield Measurement(
        f"{name}, layer", record["tokens"], record["layer_ms"] / 1e3, _predictor(plan, allocation, "layer"), every, source
    )
    times: dict[str, float] = {}
    for launch, microseconds in record["launches"]:
        part = next((part for kernel, part in LAUNCHES.items() if kernel in launch), None)
        if part is not None:
            times[part] = times.get(part, 0.0) + microseconds / 1e6
    for part, seconds in times.items():
        yield Measurement(
            f"{name}, {part}",
            record["tokens"],
            seconds,
            _predictor(plan, allocation, part),
            _of_attention(part, head_dim),
            source,
        )


def read_peaks(paths: Sequence[Path]) -> list[tuple[str, float, float]]:
    """Name, measured and counted peak bytes of every layer in `layer.json`: inputs, output and workspace.

    Files of other benchmarks have none.
    """
    documents = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
    return [row for values in documents if "scaling" in values for row in _peaks(values)]


def _peaks(values: dict[str, Any]) -> list[tuple[str, float, float]]:
    config, rows = FreqFormerConfig.from_dict(values["config"]), []
    groups = [(name, record) for name, group in values["layers"].items() for record in group.items()]
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
            num_heads=record["heads"],
            head_dim=values["head_dim"],
            learned_summaries="learned" in name,
        )
        tensors = 4 * 2 * record["tokens"] * record["heads"] * values["head_dim"]
        rows.append((name, tensors + record["workspace_bytes"], tensors + workspace_bytes(plan, 2)))
    return rows
