"""Costs and expected errors of tables by step."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from freqformer.calibration import Calibration
from freqformer.calibration.pipelines.by_step import cheapest_density, digest, priced
from freqformer.config import Band
from freqformer.grid import tile_layout
from freqformer.routing import RoutingTable


def alike(made_up: Calibration, band: Band, count: int = 1) -> RoutingTable:
    """All heads of one band."""
    bands = torch.full(made_up.errors.shape[:3], band.value)
    return RoutingTable(bands, torch.full_like(bands, count), made_up.candidates.config)


@pytest.mark.parametrize("density", [0.3, 0.5, 0.8])
def test_a_choice_keeps_its_costs_and_errors(made_up: Calibration, density: float) -> None:
    chosen = made_up.choose_within(density)
    found = priced(chosen.table, made_up, 0)
    torch.testing.assert_close(found.costs, chosen.costs)
    torch.testing.assert_close(found.errors, chosen.errors)
    assert found.cost == pytest.approx(chosen.cost)
    names = (*made_up.candidates.names, "dense")
    assert found.names == [
        [[names[place] for place in row] for row in layer] for layer in chosen.column.tolist()
    ]


def test_exact_tokens_cost_every_head(made_up: Calibration) -> None:
    costs = made_up.candidates.costs(made_up.grid, num_heads=1, head_dim=1, num_text_tokens=40)
    beside = replace(made_up, costs=torch.tensor(costs, dtype=torch.float64))
    for place, (band, count) in enumerate(
        ((Band.LOW, 1), (Band.MID, 1), (Band.MID, 2), (Band.MID, 4), (Band.HIGH, 1))
    ):
        found = priced(alike(made_up, band, count), beside, 40)
        assert found.cost == pytest.approx(costs[place] / costs[-1])
    least = cheapest_density(beside)
    assert beside.choose_within(least + 1e-9).cost == pytest.approx(least)
    with pytest.raises(ValueError, match="is feasible"):
        beside.choose_within(least - 1e-3)


def test_errors_between_measured_numbers_of_tiles_lie_between_theirs(made_up: Calibration) -> None:
    few, three, more = (priced(alike(made_up, Band.MID, count), made_up, 0) for count in (2, 3, 4))
    torch.testing.assert_close(three.errors, (few.errors + more.errors) / 2)
    assert few.cost < three.cost < more.cost
    every = tile_layout(made_up.grid, made_up.candidates.config.tile).num_tiles
    nearly = priced(alike(made_up, Band.MID, every - 1), made_up, 0)
    torch.testing.assert_close(nearly.errors, more.errors / (every - 4))
    assert not priced(alike(made_up, Band.MID, every), made_up, 0).errors.any()
    dense = priced(alike(made_up, Band.DENSE), made_up, 0)
    assert (dense.cost, float(dense.errors.sum())) == (1.0, 0.0)


def test_tables_that_compute_the_same_have_one_digest(made_up: Calibration) -> None:
    low, mid, high = (alike(made_up, band) for band in (Band.LOW, Band.MID, Band.HIGH))
    assert digest(low) == digest(alike(made_up, Band.LOW, 2))
    assert digest(mid) != digest(alike(made_up, Band.MID, 2))
    wider = replace(made_up.candidates.config, window=(1, 2, 2))
    assert digest(mid) == digest(replace(mid, config=wider))
    assert digest(high) != digest(replace(high, config=wider))
    assert len({digest(low), digest(mid), digest(high)}) == 3
