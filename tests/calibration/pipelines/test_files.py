"""The report of a pipeline's calibration, from made-up errors."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from freqformer.calibration import Calibration, PipelineCalibration
from freqformer.calibration.pipelines.choice import Tried
from freqformer.calibration.pipelines.files import FIGURE_NAME, RECORD_NAME, write_pipeline_report
from freqformer.calibration.pipelines.steps import Step
from freqformer.integrations.diffusers.tables import load_tables

STEPS = [Step("transformer", 1.0, 0.3), Step("transformer", 0.7, 0.4), Step("other", 0.3, 0.3)]


@pytest.fixture
def calibration(made_up: Calibration) -> PipelineCalibration:
    return PipelineCalibration(made_up, STEPS, {})


def test_the_report_says_what_the_tables_are(
    calibration: PipelineCalibration, tmp_path: Path
) -> None:
    choice = calibration.choose(0.5)
    write_pipeline_report(choice, tmp_path)
    without = (tmp_path / FIGURE_NAME).read_bytes()
    record = json.loads((tmp_path / RECORD_NAME).read_text())
    assert record["density"] == choice.density <= 0.5
    assert [step["noise_level"] for step in record["steps"]] == [1.0, 0.7, 0.3]
    squares = [
        record["errors"][step][layer][head][record["candidates"].index(name)] ** 2
        for step, layers in enumerate(record["chosen"])
        for layer, heads in enumerate(layers)
        for head, name in enumerate(heads)
        if name != "dense"
    ]
    assert sum(squares) ** 0.5 == pytest.approx(record["expected_error"])
    assert without[:4] == b"\x89PNG"
    assert (record["chosen_from"], record["tried"]) == (None, [])
    far, near = Tried("preset", 0.4, -math.inf), Tried("least expected error", 0.3, 21.5)
    write_pipeline_report(replace(choice, chosen=near, tried=(far, near)), tmp_path)
    tried = json.loads((tmp_path / RECORD_NAME).read_text())
    told = {"name": "least expected error", "density": 0.3, "decibels": 21.5}
    assert tried["chosen_from"] == told
    assert tried["tried"] == [{"name": "preset", "density": 0.4, "decibels": None}, told]
    assert (tmp_path / FIGURE_NAME).read_bytes() != without
    found = load_tables(tmp_path)
    assert isinstance(found, dict)
    assert set(found) == {"transformer", "other"}
    assert torch.equal(found["other"].bands, choice.tables["other"].bands)


def test_a_tolerance_is_of_the_sum(calibration: PipelineCalibration) -> None:
    errors = []
    for tolerance in (0.5, 1.0, 2.0):
        choice = calibration.choose_tolerance(tolerance)
        assert choice.expected_error <= tolerance
        errors.append(choice.density)
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > errors[-1]
    assert calibration.choose_tolerance(1e3).density < 0.2
