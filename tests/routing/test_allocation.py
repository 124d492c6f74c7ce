"""Allocation: argmax, and the exact best within a FLOP budget."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from freqformer.config import FreqFormerConfig
from freqformer.grid import Grid
from freqformer.plan import build_plan
from freqformer.routing import allocate

COSTS = (1.0, 5.0, 3.0, 20.0)


def best_by_trying_all(logits: torch.Tensor, costs: tuple[float, ...], budget: float) -> float:
    """The largest sum of logits (H, 3) of any allocation within the budget."""
    best = -float("inf")
    for bands in product(range(3), repeat=len(logits)):
        if sum(costs[band] for band in bands) <= budget * (1 + 1e-9) * len(logits) * costs[3]:
            best = max(best, sum(float(logits[head, band]) for head, band in enumerate(bands)))
    return best


def test_without_a_budget_the_largest_logit_wins():
    logits = torch.randn(3, 4, 3)
    assert torch.equal(allocate(logits), logits.argmax(-1))


@settings(max_examples=60)
@given(
    heads=st.integers(1, 6),
    seed=st.integers(0, 10_000),
    costs=st.tuples(*[st.floats(0.1, 10)] * 3),
    share=st.floats(0, 1.2),
)
def test_the_best_allocation_within_a_budget_is_found(heads, seed, costs, share):
    costs = (*costs, 10.0)
    budget = min(costs) / 10 + share * (max(costs[:3]) - min(costs)) / 10
    logits = torch.randn(
        2, heads, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )
    bands = allocate(logits, costs=costs, budget=budget)
    for sample in range(2):
        spent = sum(costs[band] for band in bands[sample].tolist())
        assert spent <= budget * (1 + 1e-9) * heads * 10
        score = float(logits[sample].gather(-1, bands[sample][:, None]).sum())
        assert score == pytest.approx(best_by_trying_all(logits[sample], costs, budget), abs=1e-9)


def test_a_wide_budget_changes_nothing_and_the_smallest_leaves_one_choice():
    logits = torch.randn(5, 7, 3)
    assert torch.equal(allocate(logits, costs=COSTS, budget=1.0), logits.argmax(-1))
    assert (allocate(logits, costs=COSTS, budget=1 / 20) == 0).all()


def test_the_plan_holds_what_the_budget_promised():
    plan = build_plan(
        Grid(8, 16, 16), FreqFormerConfig(window=(1, 3, 3), mid_tiles=4), num_heads=6, head_dim=32
    )
    logits = torch.randn(20, 6, 3)
    for budget in (0.15, 0.3, 0.5):
        for bands in allocate(logits, costs=plan.band_costs(), budget=budget):
            assert plan.density(bands.tolist()) <= budget * (1 + 1e-6)


def test_a_budget_that_nothing_meets_is_refused():
    logits = torch.zeros(1, 2, 3)
    with pytest.raises(ValueError, match=r"budget is 0\.01.*0\.05 up is feasible"):
        allocate(logits, costs=COSTS, budget=0.01)
    with pytest.raises(ValueError, match="budget is nan"):
        allocate(logits, costs=COSTS, budget=float("nan"))
    for costs in (None, (1.0, 2.0, 3.0), (1.0, 2.0, 3.0, float("nan")), (0.0, 1.0, 1.0, 1.0)):
        with pytest.raises(ValueError, match="costs is"):
            allocate(logits, costs=costs, budget=0.5)
