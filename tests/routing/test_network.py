"""The routing network: it uses all that it is given."""

from __future__ import annotations

import pytest
import torch

from freqformer.routing import RoutingNetwork, even_allocation, sinusoidal_embedding
from freqformer.routing.statistics import NUM_STATISTICS


def make_router(heads: int = 3, **options) -> RoutingNetwork:
    torch.manual_seed(0)
    return RoutingNetwork(heads, **options)


@pytest.mark.parametrize("index", range(NUM_STATISTICS))
def test_every_statistic_alone_changes_the_logits(index):
    router = make_router(prior="none")
    statistics, timestep = torch.randn(2, 3, NUM_STATISTICS), torch.tensor([0.3, 0.6])
    changed = statistics.clone()
    changed[..., index] += 1
    assert ((router(changed, timestep) - router(statistics, timestep)).abs().amax(-1) > 1e-4).all()


@pytest.mark.parametrize("prior", ["noise_level", "none"])
def test_the_timestep_alone_changes_the_logits(prior):
    router = make_router(prior=prior)
    statistics = torch.randn(1, 3, NUM_STATISTICS).expand(5, -1, -1)
    logits = router(statistics, torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0]))
    for first in range(5):
        for second in range(first):
            assert ((logits[first] - logits[second]).abs().amax(-1) > 1e-4).all()


@pytest.mark.parametrize("cause", ["statistics", "timestep"])
def test_it_learns_a_choice_that_depends_on_one_input_alone(cause):
    router = make_router(prior="noise_level")
    generator = torch.Generator().manual_seed(0)

    def draw() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        statistics = torch.randn(64, 3, NUM_STATISTICS, generator=generator) * 2
        timestep = torch.rand(64, generator=generator)
        best = (
            (timestep * 3).long()[:, None].expand(-1, 3)
            if cause == "timestep"
            else statistics[..., :3].argmax(-1)
        )
        return statistics, timestep, best

    optimizer = torch.optim.Adam(router.parameters(), 1e-2)
    for _ in range(200):
        statistics, timestep, best = draw()
        loss = torch.nn.functional.cross_entropy(
            router(statistics, timestep).flatten(0, 1), best.flatten()
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    statistics, timestep, best = draw()
    assert (router(statistics, timestep).argmax(-1) == best).double().mean() > 0.85


def test_heads_with_the_same_statistics_differ():
    logits = make_router(prior="none")(torch.ones(1, 3, NUM_STATISTICS), torch.tensor([0.5]))
    assert (logits[0, 0] - logits[0, 1]).abs().max() > 1e-4


def test_the_prior_favours_low_at_high_noise_and_high_at_low_noise():
    statistics = torch.randn(2, 3, NUM_STATISTICS)
    noise_level = torch.tensor([1.0, 0.0])
    lean = make_router(prior="noise_level")(statistics, noise_level) - make_router(prior="none")(
        statistics, noise_level
    )
    expected = torch.tensor([[0.75, 0.0, -0.75], [-0.75, 0.0, 0.75]])[:, None].expand(-1, 3, -1)
    torch.testing.assert_close(lean, expected, rtol=0, atol=1e-6)


def test_initial_bands_lead_at_middle_noise():
    initial = even_allocation(9)
    logits = make_router(9, initial=initial)(torch.randn(1, 9, NUM_STATISTICS), torch.tensor([0.5]))
    assert logits.argmax(-1)[0].tolist() == initial == [0, 0, 0, 1, 1, 1, 2, 2, 2]


def test_even_allocation_gives_left_over_heads_to_high_then_low():
    assert [even_allocation(heads) for heads in (1, 2, 4, 8)] == [
        [2],
        [0, 2],
        [0, 1, 2, 2],
        [0, 0, 0, 1, 1, 2, 2, 2],
    ]


def test_the_router_is_small_and_never_runs_in_half_precision_under_autocast():
    router = make_router(24)
    assert 9_000 < sum(p.numel() for p in router.parameters()) < 11_000
    statistics, timestep = torch.randn(2, 24, NUM_STATISTICS), torch.rand(2)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = router(statistics, timestep)
    assert torch.equal(mixed, router(statistics, timestep))
    torch.testing.assert_close(router.bfloat16()(statistics, timestep), mixed, rtol=0.1, atol=0.05)
    assert router(statistics, timestep).dtype == torch.float32
    assert (
        make_router().double()(statistics[:, :3].double(), timestep.double()).dtype == torch.float64
    )


def test_sinusoids_are_of_geometric_frequencies():
    wave = sinusoidal_embedding(torch.tensor([0.0, 0.37]), 6, fastest=50.0)
    angles = [0.37 * 50 * 10_000 ** (-k / 3) for k in range(3)]
    expected = torch.tensor([[1.0] * 3 + [0.0] * 3, [0.0] * 6])
    expected[1] = torch.cat([torch.tensor(angles).cos(), torch.tensor(angles).sin()])
    torch.testing.assert_close(wave, expected)


def test_without_statistics_the_timestep_and_the_head_alone_decide():
    router = make_router(prior="none", statistics=False)
    logits = router(None, torch.tensor([0.1, 0.9]))
    assert logits.shape == (2, 3, 3)
    assert (logits[0] - logits[1]).abs().max() > 1e-4
    assert (logits[:, 0] - logits[:, 1]).abs().max() > 1e-4
    given = make_router(prior="none")
    shared = router.layers[0].weight.shape[1]
    given.load_state_dict(router.state_dict() | {"layers.0.weight": given.layers[0].weight})
    given.layers[0].weight.data[:, -shared:] = router.layers[0].weight
    torch.testing.assert_close(
        given(torch.zeros(2, 3, NUM_STATISTICS), torch.tensor([0.1, 0.9])), logits
    )


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="initial is"):
        RoutingNetwork(2, initial=[0, 3])
    with pytest.raises(ValueError, match="initial is"):
        RoutingNetwork(2, initial=[0])
    router = make_router()
    for statistics, timestep in (
        (torch.zeros(2, 3, NUM_STATISTICS), torch.zeros(3)),
        (torch.zeros(2, 4, NUM_STATISTICS), torch.zeros(2)),
        (torch.zeros(2, 3, NUM_STATISTICS - 1), torch.zeros(2)),
    ):
        with pytest.raises(ValueError, match="statistics has shape"):
            router(statistics, timestep)
    with pytest.raises(
        ValueError, match=r"statistics has shape None .*use routing_statistics on this layer"
    ):
        router(None, torch.zeros(2))
    with pytest.raises(
        ValueError, match=r"None and \(batch,\) are allowed: it was made with statistics=False"
    ):
        make_router(statistics=False)(torch.zeros(2, 3, NUM_STATISTICS), torch.zeros(2))
    with pytest.raises(ValueError, match="timestep"):
        make_router(statistics=False)(None, torch.zeros(2, 1))
