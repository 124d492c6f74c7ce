"""From errors to tables: cheapest within tolerance, dense where nothing fits, monotone, exact by
brute force."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest
import torch

from freqformer.calibration import Calibration
from freqformer.config import Band

TOLERANCES = (0.05, 0.2, 0.3, 0.5, 0.8, 2.0)


def cheapest(calibration: Calibration, tolerance: float) -> float:
    """The least cost of all tables relative to dense, by trying every window and tile count."""
    shares = calibration.costs / calibration.costs[-1]
    allowed = (
        torch.cat([calibration.errors, torch.zeros_like(calibration.errors[..., :1])], -1)
        <= tolerance
    )
    buckets, layers, heads, _ = allowed.shape
    windows = range(len(calibration.candidates.windows))
    totals = []
    for window in windows:
        total = 0.0
        for bucket, layer in product(range(buckets), range(layers)):
            sums = []
            for mid in range(len(calibration.candidates.mid_tiles)):
                places = [*calibration.candidates.columns(mid, window), -1]
                sums.append(
                    sum(
                        min(float(shares[i]) for i in places if allowed[bucket, layer, head, i])
                        for head in range(heads)
                    )
                )
            total += min(sums)
        totals.append(total / (buckets * layers * heads))
    return min(totals)


@pytest.mark.parametrize("tolerance", TOLERANCES)
def test_no_table_within_tolerance_is_cheaper(made_up, tolerance):
    choice = made_up.choose(tolerance)
    assert choice.cost == pytest.approx(cheapest(made_up, tolerance), rel=1e-12)
    assert float(choice.errors.max()) <= tolerance


def test_the_table_says_what_was_chosen(made_up):
    choice = made_up.choose(0.4)
    names, shares = made_up.candidates.names, made_up.costs / made_up.costs[-1]
    seen = set()
    for place in product(*map(range, choice.column.shape)):
        column = int(choice.column[place])
        band = Band(int(choice.table.bands[place]))
        seen.add(band)
        assert float(choice.costs[place]) == float(shares[column])
        if band == Band.DENSE:
            assert column == len(names)
            assert choice.errors[place] == 0
            continue
        count, window = int(choice.table.mid_tiles[place]), choice.table.config.window
        expected = {0: "low", 1: f"mid-{count}", 2: "high-" + "x".join(map(str, window))}[band]
        assert names[column] == expected
        assert choice.errors[place] == made_up.errors[place][column]
    assert seen == set(Band)
    assert len(choice.table.mid_tiles.unique()) > 1


def test_a_larger_tolerance_never_costs_more(made_up):
    levels = [float(level) for level in made_up.errors.unique()][::7]
    costs = [made_up.choose(level).cost for level in levels]
    assert costs == sorted(costs, reverse=True)
    assert costs[0] > 2 * costs[-1]


def test_dense_where_nothing_fits(made_up):
    choice = made_up.choose(float(made_up.errors.min()) / 2)
    assert (choice.table.bands == Band.DENSE).all()
    assert choice.cost == 1
    one = replace(made_up, errors=made_up.errors.clone())
    one.errors[1, 2, 3] = 9.0
    assert one.choose(2.0).table.bands[1, 2, 3] == Band.DENSE
    assert (one.choose(2.0).table.bands == Band.DENSE).sum() == 1


def test_what_costs_more_than_dense_is_never_chosen(made_up):
    dear = replace(made_up, costs=made_up.costs.clone(), errors=made_up.errors * 0)
    dear.costs[:-1] = dear.costs[-1] * 1.01
    assert (dear.choose(0.1).table.bands == Band.DENSE).all()


@pytest.mark.parametrize("budget", [0.3, 0.7])
def test_no_choice_as_cheap_as_that_within_a_budget_errs_less(made_up, budget):
    small = replace(made_up, errors=made_up.errors[:1, :2, :2])
    choice = small.choose_within(budget)
    assert choice.cost <= budget
    best = float(choice.errors.square().sum())
    errors = (
        torch.cat([small.errors, torch.zeros_like(small.errors[..., :1])], -1)[0].square().tolist()
    )
    shares = (small.costs / small.costs[-1]).tolist()
    counts, windows = range(len(small.candidates.mid_tiles)), range(len(small.candidates.windows))
    tried = 0
    for window, *mids in product(windows, counts, counts):
        options = [[*small.candidates.columns(mid, window), len(shares) - 1] for mid in mids]
        for picked in product(*(product(places, repeat=2) for places in options)):
            cost = sum(shares[i] for row in picked for i in row) / 4
            error = sum(
                errors[layer][head][i]
                for layer, row in enumerate(picked)
                for head, i in enumerate(row)
            )
            assert cost > choice.cost + 1e-12 or error >= best - 1e-12
            tried += 1
    assert tried == 2 * 3**2 * 4**4


def test_the_tolerance_of_a_budget_is_the_smallest(made_up):
    for budget in (0.2, 0.5, 0.9):
        tolerance = made_up.tolerance_for(budget)
        assert made_up.choose(tolerance).cost <= budget
        assert made_up.choose(tolerance * (1 - 1e-9)).cost > budget


@pytest.mark.parametrize("value", [0, -0.1, float("nan"), float("inf"), True, "0.1", None])
def test_tolerance_and_budget_are_positive(made_up, value):
    with pytest.raises(ValueError, match="tolerance is"):
        made_up.choose(value)
    for call in (made_up.choose_within, made_up.tolerance_for):
        with pytest.raises(ValueError, match="budget is"):
            call(value)


def test_an_impossible_budget_is_refused(made_up):
    for call in (made_up.choose_within, made_up.tolerance_for):
        with pytest.raises(ValueError, match=r"budget is 0\.001"):
            call(0.001)
