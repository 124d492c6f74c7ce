"""The configuration: defaults, JSON round trip, and what it refuses."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from freqformer.config import Band, FreqFormerConfig


def test_defaults() -> None:
    config = FreqFormerConfig()
    assert (config.compression, config.mid_tiles, config.window, config.summary_tokens) == (
        32,
        16,
        (3, 3, 3),
        256,
    )
    assert (config.band_features, config.mid_pattern, config.low_output) == (
        "full",
        "topk",
        "interpolate",
    )
    assert config.deterministic is True
    assert [int(band) for band in (Band.LOW, Band.MID, Band.HIGH, Band.DENSE)] == [0, 1, 2, 3]


@pytest.mark.parametrize(
    "changes",
    [{}, {"tile": (4, 4, 8), "window": (1, 3, 5), "mid_tiles": None, "compression": 10.5}],
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
    ],
)
def test_bad_values_are_named(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=name):
        FreqFormerConfig(**{name: value})


def test_unknown_fields_are_named() -> None:
    with pytest.raises(ValueError, match="windows"):
        FreqFormerConfig.from_dict({"windows": [3, 3, 3]})


@pytest.mark.parametrize("values", [None, "", True, 1e300, [["tile", None]], {1: 2, "x": 3}])
def test_what_holds_no_fields_is_refused(values: Any) -> None:
    with pytest.raises(ValueError, match=r"config (is .*; a dict with fields|has unknown fields)"):
        FreqFormerConfig.from_dict(values)
