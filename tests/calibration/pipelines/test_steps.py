"""How errors of steps are weighed, and which buckets of a table a step stands for."""

from __future__ import annotations

import math
from itertools import product

import pytest
import torch
from tests.support.pages import check_says

from freqformer.calibration.pipelines.choice import BUCKETS, bucket_rows, dense_buckets
from freqformer.calibration.pipelines.energies import (
    COARSE,
    Energies,
    energy_parts,
    felt_energy,
    gram_of,
    projected_energy,
)
from freqformer.calibration.pipelines.settings import CalibrationSettings
from freqformer.calibration.pipelines.steps import (
    Step,
    measured_steps,
    probed_steps,
    step_weights,
)
from freqformer.grid import Grid, tile_layout
from freqformer.routing import timestep_bucket
from freqformer.training_free.preset import mid_density

LEVELS = (1.0, 0.9, 0.7, 0.4, 0.1)
STEPS = [
    Step("transformer", level, level - after)
    for level, after in zip(LEVELS, (*LEVELS[1:], 0.0), strict=True)
]


def energies(levels: tuple[float, ...]) -> Energies:
    sums = Energies(2, 3, CalibrationSettings().candidates)
    sums.of(Grid(4, 8, 8), 0)
    for level in levels:
        sums.add(0, 0, torch.tensor([level]), torch.ones(1, 3, 2))
    return sums


def coarse_energy(moved: torch.Tensor, grid: Grid, tile: tuple[int, int, int]) -> torch.Tensor:
    """Squares of means over tiles, each as often as its tile has tokens: (B, N, C) -> (B,)."""
    boxes = moved.unflatten(1, grid.shape)
    total = torch.zeros(len(moved), dtype=moved.dtype)
    for first in product(
        *(range(0, side, step) for side, step in zip(grid.shape, tile, strict=True))
    ):
        time, row, column = (
            slice(start, start + step) for start, step in zip(first, tile, strict=True)
        )
        box = boxes[:, time, row, column].flatten(1, 3)
        total += box.shape[1] * box.mean(1).square().sum(1)
    return total


def test_steps_are_the_noise_levels_of_all_transformers() -> None:
    parts = {"transformer_2": energies(LEVELS[2:]), "transformer": energies(LEVELS[:2])}
    steps = measured_steps(parts, 0.0)
    assert [step.level for step in steps] == list(LEVELS)
    assert [step.part for step in steps] == ["transformer"] * 2 + ["transformer_2"] * 3
    assert [step.length for step in steps] == pytest.approx([0.1, 0.2, 0.3, 0.3, 0.1])
    assert [step.level for step in measured_steps(parts, 0.3)] == [0.7, 0.4, 0.1]
    probed = [step.level for step in probed_steps(steps, 2)]
    assert probed == [1.0, 0.7, 0.4]  # the last of each is too short to tell


def test_weights_are_found_again_at_probes_and_lie_between_them_elsewhere() -> None:
    local = {step: 2.0 + step.level for step in STEPS}
    growth = {step: 20**step.level for step in STEPS}
    wanted = [growth[step] * step.length**2 for step in STEPS]
    probed = {step: growth[step] * local[step] * step.length**2 for step in (STEPS[0], STEPS[2])}
    weights = step_weights(STEPS, probed, local).tolist()
    assert weights[0] == pytest.approx(wanted[0])
    assert weights[2] == pytest.approx(wanted[2])
    middle = math.sqrt(growth[STEPS[0]] * growth[STEPS[2]])
    assert weights[1] == pytest.approx(middle * STEPS[1].length ** 2)
    assert weights[4] == pytest.approx(growth[STEPS[2]] * STEPS[4].length ** 2)


def test_a_step_stands_for_all_noise_down_to_the_next_one() -> None:
    rows = bucket_rows(LEVELS)
    for noise, row in ((1.0, 0), (0.95, 0), (0.9, 1), (0.71, 1), (0.4, 3), (0.1, 4), (0.0, 4)):
        bucket = int(timestep_bucket(torch.tensor([noise]), BUCKETS))
        assert int(rows[bucket]) == row
    dense = dense_buckets(STEPS[2:])
    assert not dense[timestep_bucket(torch.tensor([0.7]), BUCKETS)]
    assert dense[timestep_bucket(torch.tensor([0.9]), BUCKETS)]
    assert not dense_buckets(STEPS).any()


def test_energies_are_those_of_what_heads_add_once_projected() -> None:
    torch.manual_seed(0)
    projection = torch.nn.Linear(12, 7)
    difference = torch.randn(2, 5, 3, 4)
    found = projected_energy(difference, gram_of(projection, 3, difference.flatten(2)))
    for head in range(3):
        alone = torch.zeros_like(difference)
        alone[:, :, head] = difference[:, :, head]
        moved = projection(alone.flatten(2)) - projection.bias
        torch.testing.assert_close(found[:, head], moved.square().sum((1, 2)))


def test_what_tiles_miss_on_the_whole_counts_more() -> None:
    torch.manual_seed(0)
    projection = torch.nn.Linear(12, 7)
    grid, tile, before = Grid(3, 5, 4), (2, 2, 3), 2
    difference = torch.randn(2, before + grid.num_tokens + 1, 3, 4)
    layout = tile_layout(grid, tile)
    assert layout.ragged
    gram = gram_of(projection, 3, difference.flatten(2))
    found = energy_parts(difference, gram, layout, before)
    for head in range(3):
        alone = torch.zeros_like(difference)
        alone[:, :, head] = difference[:, :, head]
        moved = projection(alone.flatten(2)) - projection.bias
        fine = moved.square().sum((1, 2))
        coarse = coarse_energy(moved[:, before : before + grid.num_tokens], grid, tile)
        torch.testing.assert_close(found[:, head], torch.stack([fine, coarse], -1))
        for weight in (0.0, 2.0, COARSE):
            torch.testing.assert_close(felt_energy(found, weight)[:, head], fine + weight * coarse)


def test_means_over_tiles_are_told_from_what_differs_inside_them() -> None:
    layout = tile_layout(Grid(4, 4, 4), (2, 2, 2))
    gram = torch.eye(1)[None]
    even = torch.ones(1, 64, 1, 1)
    signs = (1 - 2 * (torch.arange(64) % 2)).float()[None, :, None, None]
    assert float(felt_energy(energy_parts(even, gram, layout))) == pytest.approx((1 + COARSE) * 64)
    assert float(felt_energy(energy_parts(signs, gram, layout))) == pytest.approx(64)
    check_says("docs/calibration.md", f"Σ ‖δ·W‖² over all tokens + {COARSE:g} · Σ n · ‖mean")


def test_another_size_is_refused() -> None:
    sums = energies(LEVELS)
    with pytest.raises(ValueError, match="one size is allowed"):
        sums.of(Grid(4, 8, 9), 0)


def test_candidates_lie_about_the_densities_that_are_asked_for() -> None:
    settings = CalibrationSettings(densities=(0.1, 0.5))
    grid = Grid(16, 32, 32)
    candidates = settings.candidates(grid, 40)
    assert candidates.mid_tiles[0] == 1
    found = [mid_density(grid, config, 40) for band, config in candidates.operators if band == 1]
    assert found[1:] == pytest.approx([0.1, 0.5], rel=0.03)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"steps": 1}, "steps is 1"),
        ({"probes": 0}, "probes is 0"),
        ({"trials": -1}, "trials is -1"),
        ({"start_percent": 1.0}, "start_percent is 1"),
        ({"densities": ()}, "densities is empty"),
        ({"densities": (0.1, 2)}, "densities is 2"),
    ],
)
def test_settings_out_of_range(wrong: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CalibrationSettings(**wrong)
