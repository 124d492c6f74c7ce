"""What is measured: names, costs, and choices that are refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.calibration.conftest import CANDIDATES, CONFIG

from freqformer.calibration import Candidates
from freqformer.config import Band, FreqFormerConfig
from freqformer.grid import Grid
from freqformer.plan import build_plan


def test_operators_and_names_are_in_one_order():
    assert CANDIDATES.names == ("low", "mid-1", "mid-2", "mid-4", "high-1x1x1", "high-1x2x2")
    assert [band for band, _ in CANDIDATES.operators] == [
        Band.LOW,
        *[Band.MID] * 3,
        *[Band.HIGH] * 2,
    ]
    assert [config.mid_tiles for _, config in CANDIDATES.operators[1:4]] == [1, 2, 4]
    assert [config.window for _, config in CANDIDATES.operators[4:]] == [(1, 1, 1), (1, 2, 2)]
    low, mid, high = CANDIDATES.columns(2, 1)
    assert [CANDIDATES.names[place] for place in (low, mid, high)] == ["low", "mid-4", "high-1x2x2"]


def test_costs_are_the_plans():
    grid = Grid(5, 4, 6)
    costs = CANDIDATES.costs(grid, num_heads=3, head_dim=8)
    plan = build_plan(grid, replace(CONFIG, mid_tiles=4, window=(1, 2, 2)), num_heads=3, head_dim=8)
    assert [costs[place] for place in (0, 3, 5, 6)] == list(plan.band_costs())
    assert costs[1] < costs[2] < costs[3]


def test_usual_candidates_follow_the_config():
    usual = Candidates.usual(FreqFormerConfig(window=(3, 3, 1)))
    assert usual.names == ("low", "mid-8", "mid-16", "mid-32", "high-3x3x1", "high-5x5x3")
    assert Candidates.usual(replace(CONFIG, mid_pattern="radial")).names == (
        "low",
        "mid-2",
        "high-1x1x1",
    )
    assert Candidates.usual(FreqFormerConfig()).pinned(Grid(8, 16, 16)).config.tile is not None


@pytest.mark.parametrize(
    ("config", "counts", "windows"),
    [
        (CONFIG, (), ((1, 1, 1),)),
        (CONFIG, (2,), ()),
        (CONFIG, (2, 1), ((1, 1, 1),)),
        (CONFIG, (2, 2), ((1, 1, 1),)),
        (CONFIG, (2,), ((1, 1, 1), (1, 1, 1))),
        (CONFIG, (0,), ((1, 1, 1),)),
        (CONFIG, (2,), ((1, 0, 1),)),
        (replace(CONFIG, mid_pattern="axial"), (2, 4), ((1, 1, 1),)),
        (replace(CONFIG, mid_pattern="axial"), (2,), ((1, 3, 1),)),
    ],
)
def test_what_can_not_be_measured_is_refused(config, counts, windows):
    with pytest.raises(ValueError, match=r"mid_tiles is|window is"):
        Candidates(config, counts, windows)


def test_gains_have_to_be_learned():
    with pytest.raises(ValueError, match="band_features is 'band_gains'"):
        Candidates.usual(replace(CONFIG, band_features="band_gains"))
