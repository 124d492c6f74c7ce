"""Results as JSON and CSV.

The JSON's schema has a version; fields are only added within one. Units are in the names: `_s`
seconds, `_bytes`, `_per_s`.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from freqformer.simulate.model.scale_out import ScaleOut
from freqformer.simulate.model.sensitivity import Variant
from freqformer.simulate.model.simulation import Level, Result
from freqformer.simulate.present.describe import (
    LEFT_OUT,
    plan_settings,
    scale_note,
    settings,
    settings_record,
)

SCHEMA = "freqformer-simulation-2"

CSV_FIELDS = (
    "model",
    "hardware",
    "requested",
    "tokens",
    "grid",
    "seconds_of_video",
    "density",
    "dense.flops",
    "freqformer.flops",
    "kv_bytes",
    "traffic_bytes",
    "time_s",
    "tokens_per_s",
    "arithmetic_intensity",
    "peak_memory_bytes",
    "speedup",
    "training.time_s",
    "training.speedup",
    "training.peak_memory_bytes",
    "step.time_s",
    "step.speedup",
    "step.peak_memory_bytes",
    "generation.time_s",
    "generation.speedup",
    "generation.video_seconds_per_s",
    "preset",
    "routing.kind",
    "routing.schedule",
    "learned_summaries",
    "low_branch",
)
"""Columns of the CSV; dotted names are the JSON's paths."""


def scenario_record(result: Result) -> dict[str, Any]:
    """One scenario as JSON-able values. The figures at the top are of one attention layer, forward;
    those of `training` of the same layer, forward and backward."""
    case, counts, layer = result.scenario, result.counts, result.layer
    hardware = case.machine.hardware
    return {
        "model": case.model.name,
        "hardware": hardware.name,
        "efficiency": {
            "measured_on": case.machine.efficiency.name,
            "transferred": case.machine.efficiency.transferred,
        },
        "requested": case.requested,
        "tokens": case.tokens,
        "text_tokens": case.model.joint_text_tokens,
        "grid": list(case.grid.shape),
        "tile": list(result.plan.layout.tile),
        "padding": result.plan.layout.padding,
        "seconds_of_video": case.seconds_of_video,
        "config": plan_settings(result.plan.config),
        **settings_record(case),
        "heads": dict(zip(("low", "mid", "high", "dense"), _heads(result.allocation), strict=True)),
        "density": result.density,
        "dense": {
            "flops": result.dense_counts.flops,
            "backward_flops": result.dense_counts.backward_flops,
            "kv_bytes": result.dense_counts.kv_bytes,
            "time_s": layer.dense_seconds,
            "peak_memory_bytes": layer.dense_peak_memory_bytes,
        },
        "freqformer": {
            "flops": counts.flops,
            "backward_flops": counts.backward_flops,
            "attention_flops": counts.attention.useful,
            "executed_attention_flops": counts.attention.executed,
            "band_flops": {band: flops.useful for band, flops in counts.band_flops.items()},
            "kv_bytes": counts.kv_bytes,
            "summary_bytes": counts.summary_bytes,
            "workspace_bytes": counts.workspace_bytes,
            "stages": {
                name: asdict(counts.stages[name])
                | asdict(time)
                | {"time_s": time.seconds, "bound": time.bound}
                for name, time in result.stages.items()
            },
        },
        "kv_bytes": counts.kv_bytes,
        "traffic_bytes": result.traffic_bytes,
        "time_s": layer.seconds,
        "tokens_per_s": layer.tokens_per_s,
        "arithmetic_intensity": result.arithmetic_intensity,
        "peak_memory_bytes": layer.peak_memory_bytes,
        "speedup": layer.speedup,
        "training": _level(result.training)
        | {"gradients": {name: asdict(stage) for name, stage in result.gradients.items()}},
        "step": _level(result.step) | {"fits_memory": result.fits_memory},
        "generation": _level(result.generation)
        | {"steps": case.model.steps, "heads_by_step": result.heads_by_step},
    }


def _heads(allocation: Sequence[int]) -> list[int]:
    return [sum(band == which for band in allocation) for which in range(4)]


def _level(level: Level) -> dict[str, Any]:
    return {
        "time_s": level.seconds,
        "dense_time_s": level.dense_seconds,
        "dense_flops": level.dense_flops,
        "speedup": level.speedup,
        "tokens_per_s": level.tokens_per_s,
        "video_seconds_per_s": level.video_seconds_per_s,
        "peak_memory_bytes": level.peak_memory_bytes,
        "dense_peak_memory_bytes": level.dense_peak_memory_bytes,
        "parts_s": level.parts,
    }


def document(
    results: Sequence[Result], variants: Sequence[Variant], rows: Sequence[ScaleOut]
) -> dict[str, Any]:
    """Everything of one run as JSON-able values: scenarios, sensitivity, scale-out, and where
    figures come from."""
    machine = results[0].scenario.machine
    return {
        "schema": SCHEMA,
        "settings": settings(results[0].scenario),
        "left_out": LEFT_OUT,
        "hardware": asdict(machine.hardware),
        "efficiency": asdict(machine.efficiency),
        "model": asdict(results[0].scenario.model),
        "scenarios": [scenario_record(result) for result in results],
        "sensitivity": [
            {"knob": variant.knob, "value": variant.value} | _short(variant.result)
            for variant in variants
        ],
        "scale_out": [asdict(row) for row in rows],
        "scale_out_rests_on": scale_note(machine.efficiency),
    }


def _short(result: Result) -> dict[str, Any]:
    return {
        "tokens": result.scenario.tokens,
        "density": result.density,
        "time_s": result.layer.seconds,
        "speedup": result.layer.speedup,
        "generation_speedup": result.generation.speedup,
        "peak_memory_bytes": result.layer.peak_memory_bytes,
    }


def json_text(values: dict[str, Any]) -> str:
    """A document as JSON."""
    return json.dumps(values, indent=2, default=list, allow_nan=False) + "\n"


def csv_text(results: Sequence[Result]) -> str:
    """One row per scenario with the columns `CSV_FIELDS`."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(CSV_FIELDS)
    for result in results:
        record = scenario_record(result)
        record["grid"] = "x".join(map(str, record["grid"]))
        writer.writerow([_at(record, name) for name in CSV_FIELDS])
    return buffer.getvalue()


def _at(record: dict[str, Any], name: str) -> Any:
    value: Any = record
    for part in name.split("."):
        value = value[part]
    return value
