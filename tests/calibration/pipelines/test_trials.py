"""What is tried, and in which order, without a model."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from tests.support.pages import check_says

from freqformer.calibration import Calibration, CalibrationSettings, PipelineCalibration
from freqformer.calibration.pipelines.by_step import digest, priced
from freqformer.calibration.pipelines.choice import Tried, evened
from freqformer.calibration.pipelines.state import FARTHEST, nearness_of
from freqformer.calibration.pipelines.steps import Step
from freqformer.calibration.pipelines.trials import (
    Trial,
    first_trials,
    moved,
    moves,
    preset_by_step,
    tried_trials,
    with_window,
)
from freqformer.config import Band
from freqformer.grid import Grid
from freqformer.routing import RoutingTable

GRID = Grid(8, 16, 16)
STEPS, LAYERS, HEADS = 6, 4, 2
FIRST = 10
"""Tables that are tried before the search."""
LEVELS = [1 - step / STEPS for step in range(STEPS)]


def made_up(seed: int) -> Calibration:
    """Errors that fall with the cost, and over the steps."""
    candidates = CalibrationSettings().candidates(GRID, 0)
    costs = torch.tensor(candidates.costs(GRID, num_heads=1, head_dim=1), dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    spread = torch.rand(
        STEPS, LAYERS, HEADS, len(costs) - 1, generator=generator, dtype=torch.float64
    )
    by_step = torch.logspace(0, -2, STEPS, dtype=torch.float64).view(-1, 1, 1, 1)
    return Calibration(
        by_step * (0.2 + spread) * (1 - costs[:-1] / costs[-1]), costs, candidates, GRID
    )


@pytest.fixture
def calibration() -> PipelineCalibration:
    steps = [Step("transformer", level, 1 / STEPS) for level in LEVELS]
    return PipelineCalibration(made_up(0), steps, {}, made_up(1))


def cost_of(calibration: PipelineCalibration, table: RoutingTable) -> float:
    return priced(table, calibration.calibration, calibration.exact).cost


def tried_by(
    calibration: PipelineCalibration,
    limit: int,
    nearness: Callable[[Trial], float],
    density: float = 0.3,
) -> list[tuple[Trial, Tried]]:
    return tried_trials(calibration, density, limit, nearness)


def test_all_kinds_of_choices_compete_within_the_density(calibration: PipelineCalibration) -> None:
    trials = list(first_trials(calibration, 0.3))
    assert [trial.name for trial in trials] == [
        "least expected error",
        "preset",
        "steps' weights to the 0.5",
        "by tokens alone",
        "least expected error, 0.5 of the density",
        "steps weigh the same",
        "steps weigh the same, one tolerance for all heads",
        "least expected error, 0.75 of the density",
        "least expected error, 0.25 of the density",
        "by tokens alone, steps' weights to the 0.5",
    ]
    assert len({trial.key for trial in trials}) == len(trials)
    costs = {trial.name: cost_of(calibration, trial.table) for trial in trials}
    for name, cost in costs.items():
        share = float(name.split(", ")[1].split()[0]) if " of the density" in name else 1.0
        assert 0.85 * share * 0.3 < cost <= share * 0.3
    expected = calibration.calibration.choose_within(0.3).table
    assert trials[0].key == digest(expected)
    # Steps that weigh the same have more alike shares.
    spread = [
        float(priced(trials[place].table, calibration.calibration, 0).costs.mean((1, 2)).std())
        for place in (0, 2, 5)
    ]
    assert spread == sorted(spread, reverse=True)


def test_the_page_says_what_trials_cost() -> None:
    settings = CalibrationSettings()
    calls = settings.trials * 2 * settings.steps
    check_says(
        "docs/calibration.md",
        f"`CalibrationSettings(trials={settings.trials})`",
        f"{settings.trials} × 2 × {settings.steps} = {calls} calls for two prompts",
    )


def test_what_is_not_known_or_too_little_is_left_out(calibration: PipelineCalibration) -> None:
    bare = PipelineCalibration(calibration.calibration, calibration.steps, {})
    assert not any("tokens" in trial.name for trial in first_trials(bare, 0.3))
    names = [trial.name for trial in first_trials(bare, 0.01)]
    assert "preset" not in names
    assert not any("0.25" in name for name in names)
    assert any("0.5 of the density" in name for name in names)
    with pytest.raises(ValueError, match="raise it"):
        list(first_trials(bare, 0.001))


@pytest.mark.parametrize("density", [0.06, 0.1, 0.3, 0.5])
def test_the_preset_keeps_to_the_density(calibration: PipelineCalibration, density: float) -> None:
    table = preset_by_step(calibration, density)
    assert table is not None
    assert 0.9 * density < cost_of(calibration, table) <= density
    costs = priced(table, calibration.calibration, 0).costs.mean((1, 2)).tolist()
    assert costs == sorted(costs, reverse=True)
    assert len(set(costs)) > 1
    assert set(table.bands.unique().tolist()) <= {Band.MID.value, Band.DENSE.value}


def test_the_nearest_wins_whatever_was_expected(calibration: PipelineCalibration) -> None:
    """An expected error that misleads loses."""
    asked: list[str] = []

    def nearness(trial: Trial) -> float:
        asked.append(trial.key)
        return 20.0 if trial.name == "preset" else 10.0

    pairs = tried_by(calibration, FIRST, nearness)
    assert len(pairs) == len(set(asked)) == len(asked) == FIRST
    best, tried = max(pairs, key=lambda pair: pair[1].nearness)
    assert best.name == tried.name == "preset"
    assert tried.nearness == 20.0
    assert tried.density == cost_of(calibration, best.table)
    assert pairs[0][0].name == "least expected error"
    assert len(tried_by(calibration, 1, nearness)) == 1


def test_the_search_climbs_within_its_number(calibration: PipelineCalibration) -> None:
    """Nearer the more of the last third's FLOPs: the search takes them from the first third."""

    def last_third(trial: Trial) -> float:
        return float(priced(trial.table, calibration.calibration, 0).costs[-2:].sum())

    pairs = tried_by(calibration, 16, last_third)
    assert len(pairs) == 16
    nearness = [tried.nearness for _, tried in pairs]
    assert max(nearness[FIRST:]) > max(nearness[:FIRST])
    assert all(tried.density <= 0.3 for _, tried in pairs)
    best, _ = max(pairs, key=lambda pair: pair[1].nearness)
    assert "; steps 1-2 to 5-6" in best.name
    # What was said decides all, so that a stopped search goes the same way again.
    again = tried_by(calibration, 16, last_third)
    assert [trial.key for trial, _ in again] == [trial.key for trial, _ in pairs]


def test_the_search_ends_where_nothing_is_nearer(calibration: PipelineCalibration) -> None:
    pairs = tried_by(calibration, 100, lambda _: 1.0)
    first = next(iter(first_trials(calibration, 0.3)))
    assert FIRST < len(pairs) <= FIRST + len(moves(first.table))
    assert len({trial.key for trial, _ in pairs}) == len(pairs)


def test_moves_are_between_thirds_and_far_ones_come_first(calibration: PipelineCalibration) -> None:
    trial = next(iter(first_trials(calibration, 0.3)))
    found = moves(trial.table)
    assert [move.name for move in found[:4]] == [
        "steps 1-2 to 5-6",
        "steps 5-6 to 1-2",
        "layers 1-2 to 4",
        "layers 4 to 1-2",
    ]
    assert len(found) == 12
    two = RoutingTable(trial.table.bands[:2, :1], trial.table.mid_tiles[:2, :1], trial.table.config)
    assert [move.name for move in moves(two)] == ["steps 1 to 2", "steps 2 to 1"]


def test_a_move_takes_a_tenth_and_leaves_the_rest(calibration: PipelineCalibration) -> None:
    trial = next(iter(first_trials(calibration, 0.4)))
    before = priced(trial.table, calibration.calibration, 0).costs
    for move in moves(trial.table):
        found = moved(calibration, trial, move)
        if found is None:
            continue
        after = priced(found.table, calibration.calibration, 0).costs
        source, target = (
            float((after - before).index_select(move.axis, torch.tensor(places)).sum())
            for places in (move.source, move.target)
        )
        amount = 0.1 * float(before.sum())
        # Heads can't be cut: what the first leaves goes to the second.
        assert -1.7 * amount < source <= -amount + 1e-9
        left = 0.4 * before.numel() - float(before.sum())
        assert 0.5 * amount < target <= left - source + 1e-9
        assert 0.37 < after.mean() <= 0.4 + 1e-9
        rest = [
            place
            for place in range(before.shape[move.axis])
            if place not in (*move.source, *move.target)
        ]
        kept = torch.tensor(rest)
        assert torch.equal(
            found.table.bands.index_select(move.axis, kept),
            trial.table.bands.index_select(move.axis, kept),
        )
    thin = next(iter(first_trials(calibration, 0.005)))
    assert all(moved(calibration, thin, move) is None for move in moves(thin.table)[1:2])


def test_one_window_is_kept(made_up: Calibration) -> None:
    found = with_window(made_up, (1, 2, 2))
    assert found.candidates.windows == ((1, 2, 2),)
    assert torch.equal(found.errors[..., :4], made_up.errors[..., :4])
    assert torch.equal(found.errors[..., 4], made_up.errors[..., 5])
    assert found.costs.tolist() == made_up.costs[[0, 1, 2, 3, 5, 6]].tolist()


def test_steps_of_a_calibration_come_nearer_to_one_another() -> None:
    calibration = made_up(3)
    torch.testing.assert_close(evened(calibration, 1.0).errors, calibration.errors)
    by_step = calibration.errors.square().mean((1, 2, 3)).sqrt()
    for power in (0.5, 0.0):
        found = evened(calibration, power).errors
        rooted = found.square().mean((1, 2, 3)).sqrt()
        torch.testing.assert_close(rooted / rooted[0], (by_step / by_step[0]) ** power)
        # Within a step nothing changes.
        torch.testing.assert_close(
            found[1] / found[1].sum(), calibration.errors[1] / calibration.errors[1].sum()
        )


def test_nearness_is_the_mean_over_prompts_in_decibels() -> None:
    references = [torch.full((4,), 5.0), torch.full((1,), 1.0)]
    assert nearness_of([1.0, 0.1], references) == pytest.approx((20 + 10) / 2)
    assert nearness_of([0.0, 0.0], references) > 200
    assert nearness_of([FARTHEST, 0.1], references) == -math.inf
