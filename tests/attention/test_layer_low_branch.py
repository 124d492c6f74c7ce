"""The attention layer with a LOW branch beside every head's own: gates by token, and soft
routing."""

from __future__ import annotations

import pytest
import torch
from tests.support.layers import (
    CONFIG,
    DIM,
    GRID,
    HEADS,
    TIMESTEP,
    make_input,
    make_layer,
    make_rotary,
    make_table,
    weights_of,
)

from freqformer import FreqAttention, Grid
from freqformer.config import Band
from freqformer.plan import build_plan
from freqformer.routing import Decision, RouterInputs, branch_weights


class Held(torch.nn.Module):
    """A router that always gives these weights of the branches, (B, 2, H)."""

    def __init__(self, weights: torch.Tensor) -> None:
        super().__init__()
        self.weights = weights

    def decide(self, given: RouterInputs) -> Decision:
        return Decision(given.allocation.expand(len(given.timestep), -1), self.weights)


def with_gates(layer: FreqAttention, scale: float = 0.5) -> FreqAttention:
    """The layer with gates that differ by token, head and branch."""
    assert layer.gates is not None
    torch.nn.init.normal_(layer.gates.weight, std=scale)
    torch.nn.init.normal_(layer.gates.bias, std=scale)
    return layer


@pytest.mark.parametrize("order", ["raster", "tile"])
@pytest.mark.parametrize("allocation", [[0, 1, 2], [2, 3, 1]])
def test_low_branch_adds_a_gated_branch_to_every_head(order, allocation):
    layer = make_layer(routing="fixed", allocation=allocation, low_branch=True)
    own, low = (make_layer(routing="fixed", allocation=bands) for bands in (allocation, [0, 0, 0]))
    hidden, rotary = make_input(), make_rotary(order)
    outputs = []
    for plain in (own, low):
        plain.load_state_dict(weights_of(layer), strict=False)
        plain.to_out = torch.nn.Identity()
        outputs.append(
            plain(hidden, GRID, TIMESTEP, rotary, token_order=order).unflatten(2, (HEADS, -1))
        )
    assert torch.equal(
        layer(hidden, GRID, TIMESTEP, rotary, token_order=order),
        layer.to_out(outputs[0].flatten(2)),
    )
    with_gates(layer)
    own_gate, low_gate = layer.gates(hidden).split(HEADS, 2)
    expected = (1 + own_gate[..., None]) * outputs[0] + low_gate[..., None] * outputs[1]
    out = layer(hidden, GRID, TIMESTEP, rotary, token_order=order)
    torch.testing.assert_close(out, layer.to_out(expected.flatten(2)), rtol=1e-5, atol=1e-5)
    assert layer.allocation_used.tolist() == [allocation] * 2


def test_gates_and_both_branches_learn_beside_a_router_that_learns():
    layer = with_gates(make_layer(low_branch=True)).train()
    layer.set_router_training("all")
    hidden = make_input().requires_grad_()
    layer(hidden, GRID, TIMESTEP, make_rotary()).square().mean().backward()
    for name, parameter in layer.named_parameters():
        assert parameter.grad is not None, name
        assert bool(parameter.grad.isfinite().all()), name
    assert bool(layer.gates.weight.grad.any())
    assert all(bool(p.grad.any()) for p in layer.router.layers[-1].parameters())


def test_low_branch_costs_a_low_branch_and_counts_in_the_budget():
    layer, plain = make_layer(low_branch=True), make_layer().band_costs(GRID)
    costs = torch.tensor(layer.band_costs(GRID))
    # What shares are of is dense attention, which has nothing beside it.
    assert costs[:3].tolist() == pytest.approx([cost + plain[Band.LOW] for cost in plain[:3]])
    assert costs[Band.DENSE] == pytest.approx(plain[Band.DENSE])
    budget = float(costs[:3].mean() / costs[Band.DENSE])
    layer.set_flop_budget(budget)
    layer(make_input(), GRID, TIMESTEP)
    assert bool(
        (costs[layer.allocation_used].mean(-1) / costs[Band.DENSE] <= budget * (1 + 1e-6)).all()
    )


def test_a_table_leaves_low_branch_as_it_is():
    layer, hidden = with_gates(make_layer(low_branch=True)), make_input()
    fixed = make_layer(routing="fixed", allocation=[1, 1, 2], low_branch=True)
    fixed.load_state_dict(weights_of(layer), strict=False)
    layer.set_routing_table(make_table(torch.tensor([[[1, 1, 2]]])))
    assert torch.equal(layer(hidden, GRID, TIMESTEP), fixed(hidden, GRID, TIMESTEP))


def test_a_new_layer_routes_softly():
    torch.manual_seed(0)
    layer = FreqAttention(DIM, HEADS, CONFIG)
    assert layer.config.routing == "soft"
    assert layer.allocation.tolist() == [Band.HIGH] * HEADS
    assert layer.gates is not None
    assert layer.router.num_statistics == 8
    assert not layer.chooses
    layer(make_input(), GRID, TIMESTEP)
    assert layer.allocation_used.tolist() == [[Band.HIGH] * HEADS] * 2
    assert layer.router_logits.shape == (2, HEADS, 3)
    layer.set_router_training("off")
    for refused in (lambda: layer.set_router_training("all"), lambda: layer.set_flop_budget(0.5)):
        with pytest.raises(
            ValueError, match="no router chooses in the layer; make it with routing='hard'"
        ):
            refused()


def test_timestep_routing_is_given_the_timestep_alone():
    soft, timestep = (with_gates(make_layer(routing=routing)) for routing in ("soft", "timestep"))
    for layer, same in ((soft, False), (timestep, True)):
        logits = []
        for seed in (1, 2):
            layer(make_input(seed), GRID, TIMESTEP)
            logits.append(layer.router_logits)
        assert torch.equal(*logits) is same
        assert (logits[0][0] - logits[0][1]).abs().max() > 1e-3  # two timesteps
    assert not timestep.chooses


@pytest.mark.parametrize("routing", ["soft", "timestep"])
def test_soft_routing_weighs_each_heads_band_and_low_by_sample(routing):
    allocation = [1, 2, 0]
    layer, hidden, rotary = (
        with_gates(make_layer(routing=routing, allocation=allocation)),
        make_input(),
        make_rotary(),
    )
    outputs = []
    for bands in (allocation, [0, 0, 0]):
        plain = make_layer(routing="fixed", allocation=bands)
        plain.load_state_dict(weights_of(layer), strict=False)
        plain.to_out = torch.nn.Identity()
        outputs.append(plain(hidden, GRID, TIMESTEP, rotary).unflatten(2, (HEADS, -1)))
    out = layer(hidden, GRID, TIMESTEP, rotary)
    logits = layer.router_logits
    assert (logits[0] - logits[1]).abs().max() > 1e-3  # two timesteps
    own_gate, low_gate = layer.gates(hidden).split(HEADS, 2)
    own = torch.stack([logits[:, head, band] for head, band in enumerate(allocation)], 1)
    weights = 1 + own_gate + own[:, None], low_gate + logits[:, None, :, Band.LOW]
    expected = weights[0][..., None] * outputs[0] + weights[1][..., None] * outputs[1]
    torch.testing.assert_close(out, layer.to_out(expected.flatten(2)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("routing", ["soft", "timestep"])
def test_soft_routing_learns_everything(routing):
    layer = with_gates(make_layer(routing=routing)).train()
    layer(make_input(), GRID, TIMESTEP, make_rotary()).square().mean().backward()
    for name, parameter in layer.named_parameters():
        assert parameter.grad is not None, name
        assert bool(parameter.grad.isfinite().all()), name
    assert all(
        bool(parameter.grad.any()) for parameter in layer.router.parameters() if parameter.ndim > 1
    )


def test_a_table_moves_bands_under_soft_routing_and_leaves_its_weights():
    layer, hidden = with_gates(make_layer(routing="soft")), make_input()
    other = make_layer(routing="soft", allocation=[1, 1, 1])
    other.load_state_dict(weights_of(layer))
    layer.set_routing_table(make_table(torch.tensor([[[1, 1, 1]]])))
    out = layer(hidden, GRID, TIMESTEP)
    assert layer.allocation_used.tolist() == [[1, 1, 1]] * 2
    # The weight of the own branch is still that of the band that it was trained as.
    weights = branch_weights(layer.router_logits, layer.bands)
    other.router.head_bias.data[:, Band.MID] += 10
    assert not torch.allclose(other(hidden, GRID, TIMESTEP), out, atol=1e-3)
    other.router = Held(weights)
    assert torch.equal(other(hidden, GRID, TIMESTEP), out)


@pytest.mark.parametrize("grid", [Grid(5, 4, 6), Grid(3, 9, 7), Grid(1, 8, 8)], ids=str)
def test_a_budget_holds_with_the_low_branch_counted(grid):
    """Shares are of dense attention alone, though every head has a LOW branch in addition to its
    band."""
    layer = make_layer(low_branch=True)
    plan = build_plan(grid, CONFIG, num_heads=HEADS, head_dim=DIM // HEADS, learned_summaries=True)
    costs = torch.tensor(plan.band_costs())
    spent = costs[:3] + costs[Band.LOW]
    for share in (1.0, 1.3, 2.0):
        budget = float(spent.min() / costs[Band.DENSE]) * share
        layer.set_flop_budget(budget)
        layer(torch.randn(2, grid.num_tokens, DIM), grid, TIMESTEP)
        assert bool(
            (spent[layer.allocation_used].mean(-1) / costs[Band.DENSE] <= budget * (1 + 1e-6)).all()
        )
    for routing in ("soft", "timestep"):
        soft = torch.tensor(make_layer(routing=routing, allocation=[2, 2, 2]).band_costs(grid))
        torch.testing.assert_close(soft, torch.cat([spent, costs[3:]]))


@pytest.mark.parametrize("budget", [float("nan"), True, "0.5", -0.1])
def test_budgets_that_are_none_are_refused(budget):
    with pytest.raises(ValueError, match="budget is"):
        make_layer().set_flop_budget(budget)
