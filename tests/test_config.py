"""The configuration: defaults, JSON round trip, and what it refuses."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import pytest

from freqformer.config import Band, FreqFormerConfig
from freqformer.grid import Grid
from freqformer.plan import build_plan


def test_defaults() -> None:
    config = FreqFormerConfig()
    assert (config.compression, config.mid_tiles, config.window, config.summary_tokens) == (
        32,
        16,
        (3, 3, 3),
        0,
    )
    assert (config.band_features, config.mid_pattern, config.low_output) == (
        "full",
        "topk",
        "interpolate",
    )
    assert config.deterministic is True
    assert (config.allocation, config.routing, config.low_branch, config.prior) == (
        "high",
        "soft",
        True,
        "none",
    )
    assert [int(band) for band in (Band.LOW, Band.MID, Band.HIGH, Band.DENSE)] == [0, 1, 2, 3]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"allocation": (0, 1, 2), "routing": "timestep"},
        {"allocation": "thirds", "routing": "hard", "low_branch": False, "prior": "noise_level"},
        {"tile": (4, 4, 8), "window": (1, 3, 5), "mid_tiles": None, "compression": 10.5},
    ],
)
def test_json_round_trip(changes: dict[str, Any]) -> None:
    config = FreqFormerConfig(**changes)
    read = FreqFormerConfig.from_dict(json.loads(json.dumps(config.to_dict())))
    assert read == config
    assert hash(read) == hash(config)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("tile", (4, 4, 9)),
        ("tile", (4, 4)),
        ("tile", (0, 4, 4)),
        ("tile", 4),
        ("compression", math.nan),
        ("compression", 0.5),
        ("compression", 129),
        ("compression", math.inf),
        ("compression", "32"),
        ("compression", True),
        ("mid_cutoff", math.nan),
        ("mid_cutoff", 0),
        ("mid_cutoff", 1.1),
        ("band_features", "all"),
        ("mid_pattern", "random"),
        ("mid_tiles", 0),
        ("mid_tiles", 2.5),
        ("mid_tiles", math.nan),
        ("radial_radius", -1),
        ("radial_radius", math.nan),
        ("window", (3, 3)),
        ("window", (3, 3, 0)),
        ("window", (3, 3, math.nan)),
        ("window", "333"),
        ("summary_tokens", -1),
        ("summary_tokens", math.nan),
        ("low_output", "nearest"),
        ("deterministic", 1),
        ("allocation", "halves"),
        ("allocation", 1),
        ("allocation", ()),
        ("allocation", (0, 1, 4)),
        ("allocation", (0, 1.5, 2)),
        ("allocation", (True, 1, 2)),
        ("routing", "learned"),
        ("routing", ["soft"]),
        ("low_branch", 1),
        ("learned_summaries", None),
        ("prior", "paper"),
    ],
)
def test_bad_values_are_named(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=name):
        FreqFormerConfig(**{name: value})


def test_unknown_fields_are_named() -> None:
    with pytest.raises(ValueError, match="windows"):
        FreqFormerConfig.from_dict({"windows": [3, 3, 3]})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prior": "noise_level"}, "prior is 'noise_level' with routing 'soft'; only a router"),
        ({"prior": "noise_level", "routing": "fixed"}, "take prior 'none', or routing 'hard'"),
        ({"low_branch": False}, "low_branch is False with routing 'soft', which weighs"),
        ({"low_branch": False, "routing": "timestep"}, "take routing 'fixed' for heads without"),
        ({"allocation": (2, 3)}, r"allocation is \(2, 3\) with routing 'soft'; bands 0 to 2"),
        ({"allocation": (2, 3), "routing": "hard"}, "take routing 'fixed' for DENSE heads"),
        ({"allocation": "dense"}, "with routing 'soft' and low_branch True; .*Config.dense"),
        ({"allocation": "dense", "routing": "fixed"}, "low_branch False: take"),
        ({"allocation": "dense", "routing": "hard", "low_branch": False}, "routing 'hard'"),
    ],
)
def test_what_cannot_act_together_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FreqFormerConfig(**changes)


def test_rules_are_resolved_by_the_number_of_heads() -> None:
    assert FreqFormerConfig().bands(5) == (2, 2, 2, 2, 2)
    assert FreqFormerConfig.paper().bands(5) == (0, 0, 1, 2, 2)
    assert FreqFormerConfig.dense().bands(2) == (3, 3)
    own = FreqFormerConfig(allocation=(0, 2, 3), routing="fixed")
    assert own.bands(3) == (0, 2, 3)
    with pytest.raises(ValueError, match=r"allocation is \[0, 2, 3\]; 4 bands from 0 to 3"):
        own.bands(4)
    with pytest.raises(ValueError, match="num_heads is 0"):
        own.bands(0)


def test_presets() -> None:
    paper = FreqFormerConfig.paper()
    assert paper == FreqFormerConfig(
        allocation="thirds",
        routing="hard",
        prior="noise_level",
        summary_tokens=256,
        low_branch=False,
    )
    assert FreqFormerConfig.dense().is_dense
    assert not paper.is_dense
    assert FreqFormerConfig.from_dict({"preset": "paper", "mid_tiles": 3}) == replace(
        paper, mid_tiles=3
    )
    assert FreqFormerConfig.from_dict({"preset": "dense"}) == FreqFormerConfig.dense()
    assert FreqFormerConfig.from_dict({"preset": "default"}) == FreqFormerConfig()
    with pytest.raises(ValueError, match="preset is 'best'; choose one of default, paper, dense"):
        FreqFormerConfig.from_dict({"preset": "best"})


def test_plans_are_shared_by_records_that_differ_in_layers_alone() -> None:
    default = FreqFormerConfig()
    assert default.for_plan() == default
    hard = FreqFormerConfig(allocation=(0, 1, 2), routing="hard", low_branch=False)
    sizes: dict[str, Any] = {"num_heads": 3, "head_dim": 8}
    plan = build_plan(Grid(2, 4, 4), default, **sizes)
    assert plan is build_plan(Grid(2, 4, 4), hard, **sizes)
    other = FreqFormerConfig(deterministic=False)
    assert other != default
    assert plan is build_plan(Grid(2, 4, 4), other, **sizes)
    assert plan.config == default
    assert plan is not build_plan(Grid(2, 4, 4), replace(hard, mid_tiles=1), **sizes)
    assert FreqFormerConfig.paper().for_plan() == FreqFormerConfig(summary_tokens=256)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ({"band_features": "values"}, {"band_features": "high_pass_values"}),
        ({"band_features": "gains"}, {"band_features": "band_gains"}),
        ({"band_features": "strict"}, {"band_features": "own_band"}),
        ({"low_output": "synthesis"}, {"low_output": "inverse_dct"}),
    ],
)
def test_words_of_older_versions_are_taken(old: dict[str, Any], new: dict[str, Any]) -> None:
    (word,) = new.values()
    with pytest.warns(FutureWarning, match=f"is '{word}'"):
        assert FreqFormerConfig.from_dict(old) == FreqFormerConfig(**new)


@pytest.mark.parametrize("values", [None, "", True, 1e300, [["tile", None]], {1: 2, "x": 3}])
def test_what_holds_no_fields_is_refused(values: Any) -> None:
    with pytest.raises(ValueError, match=r"config (is .*; a dict with fields|has unknown fields)"):
        FreqFormerConfig.from_dict(values)
