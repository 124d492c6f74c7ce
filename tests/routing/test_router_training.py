"""How a router learns: the gradient of the mixture through a hard choice, and its own loss."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from freqformer.attention import FreqAttention
from freqformer.config import FreqFormerConfig
from freqformer.grid import Grid
from freqformer.routing import RoutingTable, other_bands, routing_loss, straight_through

BATCH, HEADS, TOKENS, CHANNELS = 2, 5, 6, 4


def make_branches() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Outputs of all bands (3, B, N, H, D), logits, their choice, and a loss weight (B, N, H, D),
    in float64."""
    generator = torch.Generator().manual_seed(1)
    shape = (BATCH, TOKENS, HEADS, CHANNELS)
    branches = torch.randn(3, *shape, generator=generator, dtype=torch.float64)
    logits = torch.randn(
        BATCH, HEADS, 3, generator=generator, dtype=torch.float64, requires_grad=True
    )
    return (
        branches,
        logits,
        logits.detach().argmax(-1),
        torch.randn(shape, generator=generator, dtype=torch.float64),
    )


def pick(branches: torch.Tensor, bands: torch.Tensor) -> torch.Tensor:
    """The output of `bands` (B, H) from all branches."""
    index = bands[None, :, None, :, None].expand(1, -1, TOKENS, -1, CHANNELS)
    return branches.gather(0, index)[0]


def mixture_gradient(
    branches: torch.Tensor, logits: torch.Tensor, weight: torch.Tensor
) -> torch.Tensor:
    chance = logits.softmax(-1).permute(2, 0, 1)[:, :, None, :, None]
    return torch.autograd.grad(((chance * branches).sum(0) * weight).sum(), logits)[0]


def test_the_value_is_the_chosen_branch_and_its_gradient_is_whole():
    branches, logits, chosen, weight = make_branches()
    out = pick(branches, chosen).requires_grad_()
    bands = other_bands(chosen, "all")
    mixed = straight_through(out, [pick(branches, band) for band in bands], bands, logits)
    assert torch.equal(mixed, out)
    assert torch.equal(torch.autograd.grad((mixed * weight).sum(), out)[0], weight)


def test_with_all_branches_the_gradient_is_that_of_the_mixture():
    branches, logits, chosen, weight = make_branches()
    bands = other_bands(chosen, "all")
    mixed = straight_through(
        pick(branches, chosen), [pick(branches, band) for band in bands], bands, logits
    )
    gradient = torch.autograd.grad((mixed * weight).sum(), logits)[0]
    torch.testing.assert_close(
        gradient, mixture_gradient(branches, logits, weight), rtol=1e-10, atol=1e-12
    )


def test_with_one_sampled_branch_it_is_so_on_average():
    branches, logits, chosen, weight = make_branches()
    gradients = []
    # Heads are drawn independently and the gradient of a head sees its own draw only: both draws of
    # all heads at once are the whole average.
    for band in other_bands(chosen, "all"):
        mixed = straight_through(pick(branches, chosen), [pick(branches, band)], band[None], logits)
        gradients.append(torch.autograd.grad((mixed * weight).sum(), logits)[0])
    mean = torch.stack(gradients).mean(0)
    torch.testing.assert_close(
        mean, mixture_gradient(branches, logits, weight), rtol=1e-10, atol=1e-12
    )
    assert (gradients[0] - gradients[1]).abs().max() > 1e-3


def test_other_bands_leave_the_chosen_one_out_and_are_drawn_evenly():
    chosen = torch.randint(0, 3, (50, 40))
    both = other_bands(chosen, "all")
    assert both.shape == (2, 50, 40)
    assert torch.equal(
        torch.cat([chosen[None], both]).sort(0).values,
        torch.arange(3)[:, None, None].expand(3, 50, 40),
    )
    sampled = other_bands(chosen, "sampled", torch.Generator().manual_seed(0))
    assert sampled.shape == (1, 50, 40)
    assert (sampled[0] != chosen).all()
    first = (sampled[0] == both[0]).double().mean()
    assert abs(first - 0.5) < 0.06  # 5 standard deviations of 2000 fair draws
    again = other_bands(chosen, "sampled", torch.Generator().manual_seed(0))
    assert torch.equal(sampled, again)


def test_what_does_not_fit_is_refused():
    branches, logits, chosen, _ = make_branches()
    with pytest.raises(ValueError, match="mode is 'off'"):
        other_bands(chosen, "off")
    with pytest.raises(ValueError, match="others has 1 outputs for 2 bands"):
        straight_through(branches[0], [branches[1]], other_bands(chosen, "all"), logits)
    with pytest.raises(ValueError, match="logits holds 0 layers"):
        routing_loss([None], (1.0, 2.0, 3.0, 4.0), budget=0.5)
    for budget in (0.0, float("nan")):
        with pytest.raises(ValueError, match="budget is"):
            routing_loss([logits], (1.0, 2.0, 3.0, 4.0), budget=budget)


def test_routing_loss_is_the_excess_cost_less_the_entropy():
    costs = (1.0, 4.0, 2.0, 10.0)
    logits = [
        torch.tensor([[[0.0, math.log(2), 0.0]]]),
        None,
        torch.tensor([[[0.0, 0.0, math.log(6)]]]),
    ]
    chances = [(0.25, 0.5, 0.25), (0.125, 0.125, 0.75)]
    cost = sum(p * c / 10 for chance in chances for p, c in zip(chance, costs, strict=False)) / 2
    entropy = -sum(p * math.log(p) for chance in chances for p in chance) / 2 / math.log(3)
    loss = routing_loss(logits, costs, budget=0.1, budget_weight=2.0, entropy_weight=0.3)
    assert loss.item() == pytest.approx(2 * (cost / 0.1 - 1) ** 2 - 0.3 * entropy, rel=1e-5)
    within = routing_loss(logits, costs, budget=0.9, entropy_weight=0.0)
    assert within.item() == 0


def test_routing_loss_pulls_towards_cheap_bands():
    logits = torch.zeros(4, 6, 3, requires_grad=True)
    routing_loss([logits], (1.0, 4.0, 2.0, 10.0), budget=0.1).backward()
    assert logits.grad is not None
    assert (logits.grad[..., 0] < 0).all()
    assert (logits.grad[..., 1] > 0).all()


@pytest.mark.parametrize(
    ("mode", "steps"), [("all", 90), pytest.param("sampled", 170, marks=pytest.mark.slow)]
)
def test_training_finds_the_planted_band_of_every_head(mode, steps):
    """Targets are the layer's own output under hidden bands, which differ by head and by half of
    the noise levels."""
    torch.manual_seed(0)
    grid, heads = Grid(4, 6, 6), 20
    config = FreqFormerConfig(
        tile=(2, 2, 2), compression=8, window=(1, 1, 1), mid_tiles=3, summary_tokens=0
    )
    planted = torch.randint(0, 3, (2, 1, heads))
    table = RoutingTable(planted, torch.full_like(planted, 3), config)
    chooses = replace(
        config, allocation="thirds", routing="hard", low_branch=False, prior="noise_level"
    )
    layer = FreqAttention(heads * 4, heads, chooses)
    layer.set_router_training(mode)
    assert layer.router is not None
    with torch.no_grad():
        layer.query_norm.fill_(3.0)  # sharp attention, so that the bands' outputs differ
    optimizer = torch.optim.Adam(layer.router.parameters(), 0.015)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.05, steps)
    for _ in range(steps):
        hidden, timestep = (
            torch.randn(2, grid.num_tokens, heads * 4),
            torch.rand(2) * 0.4 + torch.tensor([0.0, 0.6]),
        )
        with torch.no_grad():
            layer.set_routing_table(table)
            target = layer(hidden, grid, timestep)
            layer.set_routing_table(None)
        loss = (layer(hidden, grid, timestep) - target).square().sum() / target.square().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    timestep = torch.tensor([0.05, 0.2, 0.35, 0.65, 0.8, 0.95])
    with torch.no_grad():
        layer(torch.randn(6, grid.num_tokens, heads * 4), grid, timestep)
    found = layer.allocation_used == planted[(timestep > 0.5).long(), 0]
    assert found.double().mean() >= 0.95
