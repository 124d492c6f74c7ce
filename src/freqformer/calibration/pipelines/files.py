"""Tables of a pipeline and their report as files, beside the model or anywhere else."""

from __future__ import annotations

from math import isfinite
from pathlib import Path
from typing import Any

from freqformer._files import sealed, write_json
from freqformer.calibration.pipelines.choice import PipelineChoice, Tried
from freqformer.calibration.pipelines.figure import steps_figure
from freqformer.integrations.diffusers.tables import save_tables

FORMAT = "freqformer-pipeline-calibration-1"
RECORD_NAME = "pipeline_calibration.json"
FIGURE_NAME = "density_by_step.png"
FILES = (RECORD_NAME, FIGURE_NAME)
"""Of a report, beside the tables."""


def write_pipeline_report(choice: PipelineChoice, folder: str | Path) -> None:
    """Write a folder with the table of each transformer, named as it is in the pipeline, and what
    speaks for them: pipeline_calibration.json and density_by_step.png.

    Args:
        choice: of `calibrate_pipeline`.
        folder: made if missing.

    Raises:
        ValueError: where it can't be written.
    """
    folder = Path(folder)
    save_tables(choice.tables, folder)
    write_json(folder / RECORD_NAME, sealed(_record(choice)), indent=None)
    steps_figure(choice, folder / FIGURE_NAME)


def _record(choice: PipelineChoice) -> dict[str, Any]:
    calibration = choice.calibration.calibration
    names = (*calibration.candidates.names, "dense")
    return {
        "format": FORMAT,
        "density": choice.density,
        "expected_error": choice.expected_error,
        "grid": list(calibration.grid.shape),
        "config": calibration.candidates.config.to_dict(),
        "candidates": list(names),
        "flops_per_head": (calibration.costs / calibration.costs[-1]).tolist(),
        "steps": [
            {"transformer": step.part, "noise_level": step.level, "length": step.length}
            for step in choice.calibration.steps
        ],
        "axes": "steps (most noise first), layers, heads; behind them the candidates for errors, "
        "whose squares add up to that of the final latents, relative",
        "errors": calibration.errors.tolist(),
        "chosen": choice.choice.names,
        "chosen_from": None if choice.chosen is None else _tried(choice.chosen),
        "tried": [_tried(one) for one in choice.tried],
    }


def _tried(one: Tried) -> dict[str, Any]:
    decibels = one.nearness if isfinite(one.nearness) else None
    return {"name": one.name, "density": one.density, "decibels": decibels}
