"""A density that falls with the noise: its mean, its order, and how few densities there are."""

from __future__ import annotations

from math import log

import pytest

from freqformer.training_free.schedule import LEVELS, falling_densities, step_of


def levels(steps: int, shift: float, start: float = 0.0) -> tuple[float, ...]:
    """Noise levels of a flow sampler's banded steps, and 0."""
    evenly = [1 - step / steps for step in range(steps + 1)]
    return tuple(shift * u / (1 + (shift - 1) * u) for u in evenly[round(start * steps) :])


@pytest.mark.parametrize("density", [0.5, 0.2, 0.05])
@pytest.mark.parametrize("start", [0.0, 0.2])
@pytest.mark.parametrize("shift", [1.0, 3.0, 8.0])
@pytest.mark.parametrize("steps", [1, 4, 8, 30, 50, 1000])
def test_the_mean_is_the_density(steps: int, shift: float, start: float, density: float) -> None:
    found = falling_densities(levels(steps, shift, start), density, 0.02)
    assert len(found) == steps - round(start * steps)
    assert sum(found) / len(found) == pytest.approx(density)
    assert list(found) == sorted(found, reverse=True)
    assert min(found) >= 0.02 - 1e-12
    assert max(found) <= 1
    assert len(set(found)) <= LEVELS


def test_noisy_steps_get_most_of_it() -> None:
    every = falling_densities(levels(30, 1.0), 0.2)
    assert every[0] > 2 * 0.2
    assert every[-1] < 0.7 * 0.2
    gentle = falling_densities(levels(30, 1.0), 0.2, knee=1.5)
    assert gentle[0] < every[0]
    assert gentle[-1] > every[-1]
    # Where the noisiest steps are dense, what is left is spread more evenly.
    guarded = falling_densities(levels(30, 1.0, 0.2), 0.2)
    assert 0.2 < guarded[0] < every[0]


def test_groups_change_the_densities_least() -> None:
    """Of all ways to cut six steps into three groups, by the definition."""
    noise = levels(6, 1.0)
    one_by_one = [1 / (1.2 - level) for level in noise[:-1]]
    wanted = [0.1 * one / (sum(one_by_one) / 6) for one in one_by_one]
    ways = []
    for first in range(1, 5):
        for second in range(first + 1, 6):
            groups = (wanted[:first], wanted[first:second], wanted[second:])
            ways.append([sum(group) / len(group) for group in groups for _ in group])

    def change(way: list[float]) -> float:
        return sum(own * log(own / new) ** 2 for own, new in zip(wanted, way, strict=True))

    assert falling_densities(noise, 0.1) == pytest.approx(min(ways, key=change))


def test_what_can_not_fall_stays() -> None:
    noise = levels(8, 3.0)
    assert falling_densities(noise, 1.0) == (1.0,) * 8
    assert falling_densities(noise, 0.1, least=0.1) == (0.1,) * 8
    assert falling_densities(noise, 1.0, most=1.01) == (1.0,) * 8
    assert falling_densities((0.7,), 0.2) == ()
    assert falling_densities((0.7, 0.7, 0.7, 0.0), 0.2) == pytest.approx((0.2,) * 3)


def test_short_steps_get_less() -> None:
    """A large shift makes the noisiest steps short, so that its density hardly falls."""
    even = falling_densities(levels(30, 1.0), 0.2)
    shifted = falling_densities(levels(30, 3.0), 0.2)
    assert shifted[0] < 0.7 * even[0]
    assert falling_densities(levels(30, 8.0), 0.2)[0] == pytest.approx(0.2, rel=0.1)
    # A last step that is nearly nothing is as the one before.
    stopping = (*levels(30, 1.0)[:-1], 0.0005, 0.0)
    assert len(set(falling_densities(stopping, 0.2)[-8:])) == 1
    # Two steps at one level, as second-order samplers make them, are each half as long.
    doubled = falling_densities((1.0, 1.0, 0.5, 0.5, 0.0), 0.2)
    assert doubled[::2] == doubled[1::2] == pytest.approx(falling_densities((1.0, 0.5, 0.0), 0.2))


def test_the_figures_of_the_page() -> None:
    """Those that docs/diffusers.md names."""
    falling = falling_densities(levels(50, 3.0, 0.2), 0.2)
    assert falling[0] / 0.2 == pytest.approx(1.2, abs=0.01)
    assert falling[-1] / 0.2 == pytest.approx(0.86, abs=0.01)
    for shift in (5.0, 8.0, 12.0):
        for steps in (20, 30, 50):
            assert len(set(falling_densities(levels(steps, shift, 0.2), 0.2))) == 1


def test_a_call_belongs_to_the_nearest_step() -> None:
    noise = levels(30, 5.0)
    for step, level in enumerate(noise[:-1]):
        assert [step_of(noise, level + off) for off in (-1e-4, 0, 1e-4)] == [step] * 3
    assert step_of(noise, 1.0) == 0
    assert step_of(noise, 0.0) == 29
    assert step_of((0.75, 0.25, 0.0), 0.5) == 0
    assert step_of((0.75, 0.25, 0.0), 0.49) == 1
    assert step_of((0.8, 0.0), 0.1) == 0
