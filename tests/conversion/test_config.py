"""Configs of conversions, their schedule, and what they refuse."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from freqformer.conversion.config import ConvertConfig, StagesConfig, WeightsConfig
from freqformer.conversion.schedule import density_at, place_of
from freqformer.training.config import DataConfig

CONFIG = ConvertConfig("wan", "out")


def test_it_survives_json() -> None:
    config = replace(CONFIG, stages=StagesConfig(3, 2, 1), data=DataConfig(cache="cache"))
    assert ConvertConfig.from_dict(json.loads(json.dumps(config.to_record()))) == config
    assert "stop_after_seconds" not in config.to_record()["run"]


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"pipeline": ""}, "pipeline is ''"),
        ({"stages": {"layer_steps": 0, "velocity_steps": 0}}, "stages have 0 steps"),
        ({"stages": {"falling": 2}}, "falling is 2"),
        ({"stages": {"levels": 0}}, "levels is 0"),
        ({"weights": {"change": "full", "rank": 4}}, "rank is 4 with change 'full'"),
        ({"weights": {"rank": 0}}, "rank is 0"),
        ({"windows": {"density": 2}}, "density is 2"),
        ({"run": {"batch_size": 0}}, "batch_size is 0"),
        ({"run": {"steps": 0}}, r"run has unknown fields \['steps'\]"),
        ({"data": {"cache": "c", "first_frame": 0.5}}, "first_frame is 0.5; 0 is allowed"),
        ({"calls": "calls", "data": {"cache": "c"}}, "calls is 'calls' and data names clips"),
        ({"calls": "calls", "stages": {"data_steps": 3}}, "data_steps is 3 with recorded calls"),
        ({"calls": "calls", "run": {"batch_size": 2}}, "batch_size is 2 with recorded calls"),
        ({"optimizer": 3}, "optimizer is 3"),
    ],
)
def test_bad_values_are_named(values: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        ConvertConfig.from_dict({"pipeline": "wan", "output": "out", **values})


def test_lora_has_a_rank_and_full_none() -> None:
    assert CONFIG.adapter.rank == 32
    assert replace(CONFIG, weights=WeightsConfig("full")).adapter.rank == 0


def test_stages_come_one_after_another() -> None:
    stages = StagesConfig(2, 3, 1)
    places = [place_of(stages, step) for step in range(6)]
    assert [place.stage for place in places] == ["layers"] * 2 + ["velocity"] * 3 + ["data"]
    assert [place.step for place in places] == [0, 1, 0, 1, 2, 0]
    assert [place.progress for place in places][:3] == [0.0, 0.5, 0.0]
    assert place_of(StagesConfig(0, 2), 0).stage == "velocity"
    with pytest.raises(ValueError, match="step is 6"):
        place_of(stages, 6)


def test_density_is_the_asked_one_unless_it_is_to_fall() -> None:
    stages = StagesConfig(8, 8)
    assert [density_at(stages, 0.16, step) for step in range(16)] == [0.16] * 16


def test_density_falls_by_equal_factors() -> None:
    stages = StagesConfig(8, 8, falling=0.5, levels=4)
    found = [density_at(stages, 0.16, step) for step in range(16)]
    assert found[:2] == pytest.approx([0.16**0.25] * 2)
    assert found[4] == pytest.approx(0.16**0.75)
    assert found[6:] == pytest.approx([0.16] * 10)
    assert density_at(StagesConfig(1, 0, falling=0.0), 0.16, 0) == 0.16
