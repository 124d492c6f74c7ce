"""Routers: one interface, and what each decides."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from freqformer.config import FreqFormerConfig
from freqformer.routing import (
    FixedRouter,
    HardRouter,
    Router,
    RouterInputs,
    RoutingNetwork,
    SoftRouter,
    TableRouter,
    TimestepRouter,
    branch_weights,
    make_router,
)

BANDS = (0, 1, 2)
TIMESTEP = torch.tensor([0.1, 0.9])
LOGITS = torch.tensor([[[3.0, 2, 1], [1, 2, 3], [1, 3, 2]], [[1.0, 2, 3], [6, 5, 4], [0, 1, 2]]])
FIXED = FreqFormerConfig(allocation="thirds", routing="fixed", low_branch=False)
HARD = replace(FIXED, routing="hard")


def inputs(**changes: Any) -> RouterInputs:
    def score(network: RoutingNetwork) -> tuple[torch.Tensor, torch.Tensor]:
        return LOGITS, LOGITS.argmax(-1)

    def weigh(network: RoutingNetwork) -> tuple[torch.Tensor, torch.Tensor]:
        return LOGITS, branch_weights(LOGITS, BANDS)

    given: dict[str, Any] = {
        "timestep": TIMESTEP,
        "allocation": torch.tensor(BANDS),
        "present": BANDS,
        "score": score,
        "weigh": weigh,
        "costs": lambda: (1.0, 2.0, 4.0, 8.0),
    }
    return RouterInputs(**given | changes)


def refused(network: RoutingNetwork) -> Any:
    raise AssertionError("no network is to run")


@pytest.mark.parametrize(
    ("config", "kind"),
    [
        (FreqFormerConfig(), SoftRouter),
        (replace(FreqFormerConfig(), routing="timestep"), TimestepRouter),
        (HARD, HardRouter),
        (FIXED, FixedRouter),
    ],
)
def test_the_record_names_the_router(config: FreqFormerConfig, kind: type) -> None:
    router = make_router(config, 3)
    assert type(router) is kind
    assert isinstance(router, Router)


def test_parameters_have_the_names_of_the_network() -> None:
    """Saved states of layers name them `router.`, whatever decides."""
    names = set(RoutingNetwork(3).state_dict())
    for config in (FreqFormerConfig(), HARD, replace(FreqFormerConfig(), routing="timestep")):
        router = make_router(config, 3)
        assert isinstance(router, RoutingNetwork)
        assert set(router.state_dict()) == names
    assert list(FixedRouter().state_dict()) == []


def test_fixed_bands_are_the_layers_own() -> None:
    decision = FixedRouter().decide(inputs(score=refused))
    assert decision.bands.tolist() == [[0, 1, 2]] * 2
    assert decision.logits is None
    assert decision.branch_weights is None


def test_a_hard_router_takes_the_best_band_within_its_budget_while_it_does_not_learn() -> None:
    router = make_router(replace(HARD, prior="noise_level"), 3)
    assert isinstance(router, HardRouter)
    assert router.prior == "noise_level"
    assert router.head_bias.tolist() == torch.eye(3).tolist()  # where it starts
    decision = router.decide(inputs())
    assert decision.bands.tolist() == [[0, 2, 1], [2, 0, 2]]
    assert decision.logits is LOGITS
    router.flop_budget = 0.2  # 4.8 of 24: at most one head above LOW and MID
    assert router.decide(inputs()).bands.tolist() != decision.bands.tolist()
    router.mode = "all"
    assert router.decide(inputs()).bands.tolist() == decision.bands.tolist()
    with torch.no_grad():
        assert not router.learns
    assert not router.eval().learns


@pytest.mark.parametrize("kind", [SoftRouter, TimestepRouter])
def test_soft_routers_keep_bands_and_weigh_them_against_low(kind: Any) -> None:
    router = kind(3)
    assert router.prior == "none"
    assert router.num_statistics == (8 if kind is SoftRouter else 0)
    decision = router.decide(inputs())
    assert decision.bands.tolist() == [[0, 1, 2]] * 2
    assert decision.branch_weights.tolist() == [
        [[3, 2, 2], [3, 1, 1]],  # own bands, then LOW
        [[1, 5, 2], [1, 6, 0]],
    ]
    assert torch.equal(decision.branch_weights, branch_weights(LOGITS, BANDS))


def test_a_table_gives_bands_by_timestep_and_leaves_weights_to_the_router() -> None:
    table = torch.tensor([[2, 2, 1], [0, 3, 0]])
    decision = TableRouter(table).decide(inputs(score=refused))
    assert decision.bands.tolist() == table.tolist()
    assert decision.logits is None
    weighed = TableRouter(table, SoftRouter(3)).decide(inputs())
    assert weighed.bands.tolist() == table.tolist()
    assert weighed.branch_weights is not None
    assert torch.equal(weighed.branch_weights, branch_weights(LOGITS, BANDS))
