"""How much errors of a noise level and a layer change what is generated, and choices that follow from it."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from types import SimpleNamespace

import pytest
import torch

from freqformer.calibration import Calibration, Candidates, calibrate, measure_sensitivity
from freqformer.calibration.choice import Choice
from freqformer.config import Band


class MadeUpModel:
    """Its videos err by every head's squared error, weighed by bucket and by layer."""

    def __init__(self, choice: Choice, by_bucket: torch.Tensor, by_layer: torch.Tensor) -> None:
        self.choice, self.table, self.weights = choice, None, by_bucket[:, None] * by_layer
        self.tables: list[object] = []

    def set_routing_table(self, table) -> None:
        self.table = table
        self.tables.append(table)

    def generate(self) -> torch.Tensor:
        assert self.table is not None
        squares = self.choice.errors.square() * (self.table.bands != Band.DENSE)
        return torch.ones(2, 3).double() * (self.weights[..., None] * squares).sum().sqrt()


@pytest.fixture
def choice(made_up: Calibration) -> Choice:
    return made_up.choose_within(0.3)


def test_it_finds_how_much_each_bucket_and_layer_counts(choice):
    by_bucket, by_layer = torch.tensor([0.2, 1.0, 30.0]).double(), torch.tensor([3.0, 1.0, 0.1, 2.0]).double()
    # The product of a bucket and a layer is what it is where squared errors are a product too.
    low = replace(choice.table, bands=torch.zeros_like(choice.table.bands))
    flat = replace(choice, table=low, errors=torch.full_like(choice.errors, 0.3))
    model = MadeUpModel(flat, by_bucket, by_layer)
    found = measure_sensitivity(model, model.generate, flat)
    wanted = by_bucket[:, None] * by_layer
    torch.testing.assert_close(found, wanted / wanted.mean())
    assert model.table is None
    assert len(model.tables) == 3 + 4 + 2 + 1


def test_a_larger_error_for_the_same_video_is_less_sensitive(choice):
    model = MadeUpModel(choice, torch.ones(3).double(), torch.ones(4).double())
    found = measure_sensitivity(model, model.generate, choice)
    torch.testing.assert_close(found, torch.ones(3, 4).double(), rtol=1e-6, atol=0)


def test_a_choice_by_sensitivity_errs_least_as_weighed(made_up):
    small = replace(made_up, errors=made_up.errors[:2, :1, :2])
    sensitivity = torch.tensor([[0.1], [7.0]])
    choice = small.choose_within(0.4, sensitivity)
    plain = small.choose_within(0.4)
    weights = (sensitivity / sensitivity.mean())[..., None].double()

    def weighed(errors: torch.Tensor) -> float:
        return float((weights * errors.square()).sum())

    assert weighed(choice.errors) < weighed(plain.errors)
    assert choice.costs[1].mean() > plain.costs[1].mean()
    errors, shares = torch.cat([small.errors, torch.zeros(2, 1, 2, 1).double()], -1), small.costs / small.costs[-1]
    counts, windows = range(len(small.candidates.mid_tiles)), range(len(small.candidates.windows))
    for window, *mids in product(windows, counts, counts):
        places = [[*small.candidates.columns(mid, window), len(shares) - 1] for mid in mids]
        for picked in product(*(product(options, repeat=2) for options in places)):
            columns = torch.tensor(picked)[:, None]
            cost = float(shares[columns].mean())
            assert cost > choice.cost + 1e-12 or weighed(errors.gather(-1, columns[..., None])[..., 0]) >= weighed(
                choice.errors
            ) * (1 - 1e-9)


def test_equal_sensitivity_changes_nothing(made_up):
    plain, weighed = made_up.choose_within(0.3), made_up.choose_within(0.3, torch.full((3, 4), 5.0))
    assert torch.equal(plain.column, weighed.column)


@pytest.mark.parametrize(
    "sensitivity", [torch.ones(4, 3), torch.ones(3), -torch.ones(3, 4), torch.zeros(3, 4), torch.full((3, 4), torch.nan)]
)
def test_a_sensitivity_that_does_not_fit_is_refused(made_up, sensitivity):
    with pytest.raises(ValueError, match=r"sensitivity has shape .*; \(3, 4\), finite"):
        made_up.choose_within(0.3, sensitivity)


def test_what_says_nothing_is_refused(choice):
    model = MadeUpModel(choice, torch.ones(3).double(), torch.ones(4).double())
    with pytest.raises(ValueError, match="generate gives the same videos whatever the routing table is"):
        measure_sensitivity(model, lambda: torch.zeros(2), choice)
    with pytest.raises(ValueError, match="generate gave other videos at the second call"):
        measure_sensitivity(model, lambda: torch.rand(2), choice)
    dense = SimpleNamespace(errors=choice.errors.clone(), table=choice.table)
    dense.errors[1] = 0
    with pytest.raises(ValueError, match="choice has no error in a bucket or a layer"):
        measure_sensitivity(model, model.generate, dense)
    assert model.table is None


def test_on_a_model(dense_model, clips):
    """The gain of a bucket that no sampling step falls in is 0, and others change the video."""
    candidates = Candidates(dense_model.band_config, (1, 2), ((1, 1, 1),))
    _, calibration = calibrate(dense_model, clips[:1], 0.5, candidates=candidates, num_buckets=4, progress=False)
    choice = calibration.choose_within(0.6)
    noise = torch.randn(2, 2, 5, 8, 12, generator=torch.Generator().manual_seed(0))

    def generate() -> torch.Tensor:
        video = noise
        for level in (0.9, 0.6, 0.4):
            video = video - 0.3 * dense_model(video, torch.full((2,), 1000 * level)).sample
        return video

    found = measure_sensitivity(dense_model, generate, choice)
    assert found.shape == (4, 2)
    assert float(found.mean()) == pytest.approx(1)
    assert not found[0].any()
    assert bool((found[1:] > 0).all())
    assert dense_model.attentions[0].table_bands is None
