"""Training configs: what they refuse, and their way through JSON."""

from __future__ import annotations

import json
import math
from dataclasses import fields, is_dataclass, replace
from typing import get_type_hints

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

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
@pytest.mark.parametrize("value", [math.nan, -1, 1.5, "1", True, 2**70, 10**400, [1]])
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
        (TrainConfig, {"output": "out", "model": {"attention_head_dim": math.nan}}),
        (TrainConfig, {"output": "out", "model": {"attention_head_dim": {1, 2}}}),
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
    assert TrainConfig.from_dict({"output": "out", "run": {"seed": 3}}) == TrainConfig(
        "out", run=RunConfig(seed=3)
    )
    assert replace(config, output="elsewhere") != config


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"output": "out", "modle": {}}, r"config has unknown fields \['modle'\]"),
        ({"output": "out", "run": {"steps": 3}}, r"run has unknown fields \['steps'\]"),
        (
            {"output": "out", "run": 3},
            r"run is 3; an object with fields of .*'max_steps'.* is allowed",
        ),
        ({"output": "out", "run": []}, r"run is \[\]; an object with fields"),
        (
            {"output": "out", "data": "videos/"},
            r"data is 'videos/'; an object with fields of \['path'",
        ),
        ({"output": "out", "data": None}, r"data is None; an object with fields"),
        ({}, r"config lacks \['output'\]; give it"),
        ([], r"config is \[\]; an object with fields"),
        ({"output": "out", "run": {3: 1, "seed": 2}}, r"run has unknown fields \[3\]"),
    ],
)
def test_fields_that_are_unknown_missing_or_no_objects_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        TrainConfig.from_dict(values)


def test_a_model_that_takes_text_is_refused_before_anything_starts():
    with pytest.raises(
        ValueError,
        match=r"model has cross_attention_dim=32; None is allowed: these clips have no text.*Leave",
    ):
        TrainConfig("out", model={"cross_attention_dim": 32})
    assert TrainConfig("out", model={"cross_attention_dim": None}).model == {
        "cross_attention_dim": None
    }


def test_clips_beyond_any_memory_are_refused():
    with pytest.raises(
        ValueError, match=r"num_frames, height and width are 100000 x 65536 x 65536; .* at most"
    ):
        DataConfig(num_frames=100_000, height=65_536, width=65_536)


def test_errors_cut_long_values_short():
    with pytest.raises(ValueError, match="choose one of fp32, bf16") as raised:
        RunConfig(precision="x" * 10**6)
    assert len(str(raised.value)) < 300


def test_a_model_nested_without_end_is_refused():
    nested: list = []
    for _ in range(100_000):
        nested = [nested]
    with pytest.raises(ValueError, match="nested deeper than 16 levels"):
        TrainConfig("out", model={"frequency": nested})


FIELDS = {
    name: [item.name for item in fields(kind)]
    for name, kind in get_type_hints(TrainConfig).items()
    if is_dataclass(kind)
}
EDGES = [
    0,
    1,
    -1,
    0.5,
    2**63,
    10**400,
    1e308,
    math.nan,
    math.inf,
    "",
    "auto",
    "videos/\0",
    None,
    True,
    [],
    {},
]
VALUES = st.recursive(
    st.sampled_from(EDGES) | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=6,
)
SECTIONS = {
    name: VALUES | st.dictionaries(st.sampled_from(names) | st.text(max_size=4), VALUES, max_size=4)
    for name, names in FIELDS.items()
}
CONFIGS = VALUES | st.fixed_dictionaries(
    {"output": VALUES | st.just("out")}, optional={"model": VALUES, **SECTIONS}
)


@settings(max_examples=300, deadline=None)
@given(CONFIGS)
def test_any_json_is_a_config_or_a_value_error(values):
    try:
        made = TrainConfig.from_dict(values)
    except ValueError:
        event("refused")
    else:
        event("taken")
        assert TrainConfig.from_dict(json.loads(json.dumps(made.to_dict()))) == made
