"""Training configs: what they refuse, and their way through JSON."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest

from freqformer.training.config import (
    CheckpointConfig,
    DataConfig,
    ObjectiveConfig,
    OptimizerConfig,
    RoutingConfig,
    RunConfig,
    TrainConfig,
)

NUMBERS = [
    (DataConfig, "fps"),
    (OptimizerConfig, "learning_rate"),
    (OptimizerConfig, "weight_decay"),
    (OptimizerConfig, "max_grad_norm"),
    (OptimizerConfig, "ema_decay"),
    (ObjectiveConfig, "shift"),
    (ObjectiveConfig, "logit_mean"),
    (ObjectiveConfig, "logit_std"),
    (RoutingConfig, "budget"),
    (RoutingConfig, "budget_weight"),
    (RoutingConfig, "entropy_weight"),
    (RunConfig, "max_seconds"),
]
WHOLE = [
    (DataConfig, "num_frames"),
    (DataConfig, "height"),
    (DataConfig, "width"),
    (DataConfig, "workers"),
    (DataConfig, "cache_mib"),
    (OptimizerConfig, "warmup_steps"),
    (RunConfig, "max_steps"),
    (RunConfig, "batch_size"),
    (RunConfig, "accumulation"),
    (RunConfig, "seed"),
    (CheckpointConfig, "every_steps"),
    (CheckpointConfig, "keep"),
]


@pytest.mark.parametrize(("section", "name"), NUMBERS)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -1e3, "1", True])
def test_numbers_out_of_range_are_refused_by_name(section, name, value):
    with pytest.raises(ValueError, match=f"^{name} is .* allowed"):
        section(**{name: value})


@pytest.mark.parametrize(("section", "name"), WHOLE)
@pytest.mark.parametrize("value", [math.nan, -1, 1.5, "1", True])
def test_counts_out_of_range_are_refused_by_name(section, name, value):
    with pytest.raises(ValueError, match=f"^{name} is .* allowed"):
        section(**{name: value})


@pytest.mark.parametrize(
    ("section", "values"),
    [
        (DataConfig, {"path": 3}),
        (OptimizerConfig, {"betas": (0.9,)}),
        (OptimizerConfig, {"betas": (0.9, 1.0)}),
        (OptimizerConfig, {"betas": 0.9}),
        (ObjectiveConfig, {"stratified": 1}),
        (RoutingConfig, {"mode": "both"}),
        (RunConfig, {"precision": "fp16"}),
        (RunConfig, {"device": "cuda"}),
        (RunConfig, {"progress": None}),
        (RunConfig, {"gradient_checkpointing": 1}),
        (RunConfig, {"compile": "yes"}),
        (CheckpointConfig, {"resume": "yes"}),
        (TrainConfig, {"output": ""}),
        (TrainConfig, {"output": "out", "model": None}),
        (TrainConfig, {"output": "out", "model": {"head_dim": math.nan}}),
        (TrainConfig, {"output": "out", "model": {"head_dim": {1, 2}}}),
        (TrainConfig, {"output": "out", "data": {"fps": 8}}),
    ],
)
def test_other_bad_values_are_refused_by_name(section, values):
    name = list(values)[-1]
    with pytest.raises(ValueError, match=f"^{name} is .*(allowed|choose)"):
        section(**values)


def test_json_round_trip():
    config = TrainConfig(
        "out",
        model={"num_layers": 2, "patch_size": [1, 4, 4]},
        data=DataConfig(path="clips", fps=12.5),
        optimizer=OptimizerConfig(betas=(0.8, 0.9)),
        run=RunConfig(max_seconds=3.0, precision="bf16"),
    )
    assert TrainConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert TrainConfig.from_dict({"output": "out", "run": {"seed": 3}}) == TrainConfig("out", run=RunConfig(seed=3))
    assert replace(config, output="elsewhere") != config


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"output": "out", "modle": {}}, r"config has unknown fields \['modle'\]"),
        ({"output": "out", "run": {"steps": 3}}, r"run has unknown fields \['steps'\]"),
        ({"output": "out", "run": 3}, r"run has unknown fields 3"),
    ],
)
def test_unknown_fields_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        TrainConfig.from_dict(values)
