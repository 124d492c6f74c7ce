"""A calibration as files: the table, every number as JSON, and figures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from freqformer._files import FileError, check_seal, read_json, sealed, write_json
from freqformer.calibration.candidates import Candidates
from freqformer.calibration.choice import Calibration, Choice
from freqformer.config import FreqFormerConfig
from freqformer.grid import Grid
from freqformer.routing import table
from freqformer.routing.origin import parse_origin

FORMAT = "freqformer-calibration-1"
RECORD_NAME = "calibration.json"
ERRORS_NAME, ALLOCATION_NAME, COST_NAME = (
    "error_by_candidate.png",
    "allocation.png",
    "cost_by_tolerance.png",
)
EARLIER = (RECORD_NAME, table.RECORD_NAME, table.TENSORS_NAME)
FILES = (*EARLIER, ERRORS_NAME, ALLOCATION_NAME, COST_NAME)
"""What a report consists of."""
MOST_BYTES = 1 << 30
FIELDS = {
    *(
        "format",
        "tolerance",
        "cost",
        "mean_error",
        "origin",
        "grid",
        "config",
        "mid_tiles",
        "windows",
        "candidates",
    ),
    *("flops_per_head", "axes", "errors", "chosen", "chosen_error", "chosen_cost", "seal"),
}
"""Of the record; those of earlier versions lack `origin` and `seal`."""


def write_report(calibration: Calibration, tolerance: float, folder: str | Path) -> Choice:
    """Write the table for a tolerance with all that speaks for it.

    The folder gets what `write_table` writes, error_by_candidate.png, allocation.png and
    cost_by_tolerance.png.

    Args:
        calibration: what was measured.
        tolerance: as in `Calibration.choose`.
        folder: made if missing.

    Returns: what was chosen.
    """
    from freqformer.calibration.figures import choice_figure, cost_figure, error_figure

    folder, choice = Path(folder), write_table(calibration, tolerance, folder)
    error_figure(calibration, folder / ERRORS_NAME)
    choice_figure(choice, folder / ALLOCATION_NAME)
    cost_figure(calibration, choice, tolerance, folder / COST_NAME)
    return choice


def write_table(calibration: Calibration, tolerance: float, folder: str | Path) -> Choice:
    """Write the table for a tolerance by `RoutingTable.save`, and every number as calibration.json;
    as `write_report`."""
    choice = calibration.choose(tolerance)
    choice.table.save(folder)
    write_json(
        Path(folder) / RECORD_NAME, sealed(_record(calibration, choice, tolerance)), indent=None
    )
    return choice


def _record(calibration: Calibration, choice: Choice, tolerance: float) -> dict[str, Any]:
    candidates = calibration.candidates
    names = (*candidates.names, "dense")
    return {
        "format": FORMAT,
        "tolerance": tolerance,
        "cost": choice.cost,
        "mean_error": float(choice.errors.mean()),
        "origin": calibration.origin,
        "grid": list(calibration.grid.shape),
        "config": candidates.config.to_dict(),
        "mid_tiles": list(candidates.mid_tiles),
        "windows": [list(window) for window in candidates.windows],
        "candidates": list(names),
        "flops_per_head": calibration.costs.tolist(),
        "axes": "buckets (least noise first), layers, heads; behind them the candidates for errors",
        "errors": calibration.errors.tolist(),
        "chosen": [
            [[names[place] for place in row] for row in layer] for layer in choice.column.tolist()
        ],
        "chosen_error": choice.errors.tolist(),
        "chosen_cost": choice.costs.tolist(),
    }


def read_calibration(folder: str | Path) -> Calibration:
    """What `write_report` was given, for tables of other tolerances without running the model
    again.

    Raises:
        ValueError: for a missing, damaged or foreign calibration.json, naming it and the remedy.
    """
    path = Path(folder) / RECORD_NAME
    remedy = "calibrate again, or give the folder it was written to"
    record = read_json(path, remedy=remedy, most_bytes=MOST_BYTES)
    try:
        if record["format"] != FORMAT:
            raise ValueError(f"its format is {record['format']!r}, not {FORMAT!r}")
        if unknown := sorted(set(record) - FIELDS):
            raise ValueError(f"it has unknown {unknown}")
        if "seal" in record:
            check_seal(record, path, remedy=remedy)
        config = FreqFormerConfig.from_dict(record["config"])
        windows = tuple((time, height, width) for time, height, width in record["windows"])
        candidates = Candidates(config, tuple(record["mid_tiles"]), windows)
        errors, costs = (
            torch.tensor(record[name], dtype=torch.float64) for name in ("errors", "flops_per_head")
        )
        if (
            errors.ndim != 4
            or errors.shape[-1] != len(candidates.operators)
            or len(costs) != errors.shape[-1] + 1
        ):
            raise ValueError(
                f"its errors are {tuple(errors.shape)} for {len(candidates.operators)} candidates"
            )
        return Calibration(
            errors, costs, candidates, Grid(*record["grid"]), parse_origin(record.get("origin"))
        )
    except FileError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError, OverflowError) as error:
        raise FileError(f"{path} is no readable calibration ({error}): {remedy}") from error
