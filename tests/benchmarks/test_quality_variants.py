"""Variants of the quality study: equal FLOPs, equal starts, and what the gated ones compute."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from benchmarks.quality.building import build, record_of
from benchmarks.quality.costs import (
    allocation_density,
    attention_flops,
    bucket_chances,
    density,
    head_costs,
    token_flops,
    training_flops,
)
from benchmarks.quality.names import OLD_NAMES, current_name
from benchmarks.quality.operators import (
    LogSnrRouter,
    MixedAttention,
    Mixing,
    SummaryRouter,
    log_snr_steps,
)
from benchmarks.quality.sizes import SIZES, STUDY, Size, name_of
from benchmarks.quality.variants import (
    CUBES,
    TARGET_DENSITY,
    TOLERANCE,
    VARIANTS,
    bands,
    chosen,
    config_at,
)
from tests.support.layers import weights_of
from torch.utils.flop_counter import FlopCounterMode

from freqformer.attention import FreqAttention
from freqformer.config import Band, FreqFormerConfig
from freqformer.models.transformer import FreqFormerTransformer3DModel
from freqformer.routing import RoutingNetwork, timestep_bucket
from freqformer.training.objective import sample_timesteps

TINY = Size(video=(4, 16, 16), layers=2, head_dim=16, batch=2, validation_clips=2)


@pytest.mark.parametrize("name", [name for name in VARIANTS if name != "dense"])
def test_flops_meet_the_target_or_stay_a_tenth_below(name: str) -> None:
    ratio = density(VARIANTS[name]) / TARGET_DENSITY
    if VARIANTS[name].cheaper:
        assert ratio <= 1 - TOLERANCE
        fewer = 1 - density(VARIANTS[name]) / density(VARIANTS["soft_routing"])
        assert fewer == pytest.approx(1 / 6, abs=0.01)  # as its prediction says
    else:
        assert abs(ratio - 1) <= TOLERANCE
    assert density(VARIANTS[name], SIZES["16k-wide"]) == pytest.approx(density(VARIANTS[name]))


def test_old_names_mean_the_variants_of_today() -> None:
    assert set(OLD_NAMES.values()) <= set(VARIANTS)
    assert not set(OLD_NAMES) & set(VARIANTS)
    assert chosen("beside_both") is VARIANTS["soft_routing"]
    assert current_name("soft_routing") == "soft_routing"


def test_paper_is_the_record_of_the_library_at_the_size_of_the_study() -> None:
    shapes = {name: getattr(CUBES, name) for name in ("tile", "compression", "window", "mid_tiles")}
    expected = replace(FreqFormerConfig.paper(), **shapes)
    made = record_of(VARIANTS["paper"], STUDY)
    assert replace(made, allocation="thirds") == expected
    assert made.bands(STUDY.heads) == expected.bands(STUDY.heads)


def test_a_wide_model_has_twice_the_heads_of_every_band() -> None:
    assert bands((1, 2, 3), 12) == [0] * 2 + [1] * 4 + [2] * 6
    assert name_of(SIZES["16k-wide"]) == "16k-wide"
    with pytest.raises(ValueError, match="one of 16k, 16k-wide"):
        name_of(TINY)


def test_tiles_follow_the_size() -> None:
    assert config_at(VARIANTS["window"], SIZES["1k"]).tile == (2, 2, 2)
    assert config_at(VARIANTS["window"], STUDY) == VARIANTS["window"].config


def test_flops_of_the_token_layers_are_those_that_torch_counts() -> None:
    """Beside what is made once a clip; torch counts no attention on a CPU."""
    size = replace(TINY, batch=1)
    model = build(VARIANTS["dense"], size, 0).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, 3, *size.video), torch.tensor([500.0]))
    once = 2 * (256 * size.width + size.width**2 + 8 * size.width**2)
    assert counter.get_total_flops() == pytest.approx(token_flops(size) + once)
    attention = head_costs(VARIANTS["dense"], size)[Band.DENSE] * size.layers * size.heads
    assert attention_flops(1.0, size) == pytest.approx(attention)
    assert training_flops(0.5, 5, size) == pytest.approx(15 * (token_flops(size) + attention / 2))


def test_flops_of_a_schedule_are_expected_over_training() -> None:
    variant = VARIANTS["thirds_by_schedule"]
    timesteps = sample_timesteps(4000, 1.0, torch.Generator().manual_seed(0))
    table = torch.tensor([bands(split) for split in variant.splits])
    taken = table[timestep_bucket(timesteps, len(table))]
    assert allocation_density(taken, variant, STUDY) == pytest.approx(density(variant), rel=1e-3)
    assert sum(bucket_chances(6)) == pytest.approx(1)


def test_the_prior_is_that_of_an_untrained_router() -> None:
    variant = VARIANTS["thirds_moved_by_prior"]
    start = bands((2, 2, 2))
    network = RoutingNetwork(STUDY.heads, prior="noise_level", initial=start)
    for parameter in network.layers.parameters():
        torch.nn.init.zeros_(parameter)
    middles = (torch.arange(6) + 0.5) / 6
    picked = network(torch.zeros(6, STUDY.heads, 8), middles).argmax(-1)
    assert picked.sort(-1).values.tolist() == [bands(split) for split in variant.splits]


def test_variants_start_alike_where_they_can_and_seeds_differ() -> None:
    dense, router, vsa = (
        dict(build(VARIANTS[name], TINY, 1).named_parameters())
        for name in ("dense", "paper", "video_sparse_attention")
    )
    for name, parameter in dense.items():
        assert torch.equal(parameter, router[name])
        assert torch.equal(parameter, vsa[name])
    other = dict(build(VARIANTS["dense"], TINY, 2).named_parameters())
    assert not torch.equal(other["proj_in.weight"], dense["proj_in.weight"])


def plain_layer(config: FreqFormerConfig, allocation: list[int]) -> FreqAttention:
    """A layer whose heads have these bands, and nothing beside."""
    record = replace(config, allocation=tuple(allocation), routing="fixed", low_branch=False)
    return FreqAttention(32, 2, record)


def test_a_gated_head_starts_as_its_own_branch_and_can_turn_to_low() -> None:
    config = replace(CUBES, mid_tiles=2, summary_tokens=0)
    torch.manual_seed(0)
    gated = MixedAttention(32, config, [1, 2], Mixing(low_branch=True, gates="token"))
    plain = plain_layer(config, [1, 2])
    low = plain_layer(config, [Band.LOW] * 2)
    for layer in (plain, low):
        layer.load_state_dict(weights_of(gated), strict=False)
    x, grid, timestep = torch.randn(1, TINY.grid.num_tokens, 32), TINY.grid, torch.tensor([0.5])
    torch.testing.assert_close(gated(x, grid, timestep), plain(x, grid, timestep))
    with torch.no_grad():
        gated.gates.bias.copy_(torch.tensor([-1.0, -1.0, 1.0, 1.0]))
    torch.testing.assert_close(gated(x, grid, timestep), low(x, grid, timestep))


def test_the_default_is_the_variant_that_won() -> None:
    model = FreqFormerTransformer3DModel(
        patch_size=TINY.patch,
        num_layers=TINY.layers,
        num_attention_heads=6,
        attention_head_dim=TINY.head_dim,
    )
    won = build(VARIANTS["soft_routing"], TINY, 0)
    for layer, other in zip(model.attentions, won.attentions, strict=True):
        assert layer.config.routing == other.config.routing == "soft"
        assert torch.equal(layer.allocation, other.allocation)
        assert {name: p.shape for name, p in layer.named_parameters()} == {
            n: p.shape for n, p in other.named_parameters()
        }
        assert layer.config.summary_tokens == other.config.summary_tokens == 0


@pytest.mark.parametrize("statistics", [True, False])
@pytest.mark.parametrize("gates", ["routed", "both"])
def test_gates_by_a_network_can_turn_to_low_and_be_held(gates: str, statistics: bool) -> None:
    config = replace(CUBES, mid_tiles=2, summary_tokens=0)
    torch.manual_seed(0)
    mixed = MixedAttention(
        32, config, [1, 2], Mixing(low_branch=True, gates=gates, statistics=statistics)
    )
    low = plain_layer(config, [Band.LOW] * 2)
    low.load_state_dict(weights_of(mixed), strict=False)
    x, grid, timestep = (
        torch.randn(2, TINY.grid.num_tokens, 32),
        TINY.grid,
        torch.tensor([0.2, 0.8]),
    )
    live = mixed(x, grid, timestep)
    expected = low(x, grid, timestep)
    mixed.held_logits = torch.tensor(
        [[1.0, -1.0, 5.0], [1.0, 5.0, -1.0]]
    )  # the own bands are MID and HIGH
    assert mixed.gates_of(mixed.held_logits[None]).tolist() == [[[-1, -1], [1, 1]]]
    torch.testing.assert_close(mixed(x, grid, timestep), expected)
    mixed.held_logits = None
    assert torch.equal(mixed(x, grid, timestep), live)
    torch.nn.init.zeros_(mixed.router.layers[-1].weight)
    mixed.router.layers[-1].bias.data.copy_(torch.tensor([1.0, -1.0, -1.0]))
    torch.testing.assert_close(mixed(x, grid, timestep), expected)


@pytest.mark.parametrize("variant", ["timestep_routing", "soft_routing", "soft_routing_alone"])
def test_weights_by_the_timestep_alone_or_by_statistics_too(variant: str) -> None:
    timed = build(VARIANTS[variant], TINY, 0)
    timestep = torch.tensor([200.0, 800.0])
    logits = []
    for seed in (1, 2):
        timed(
            torch.randn(2, 3, *TINY.video, generator=torch.Generator().manual_seed(seed)), timestep
        )
        logits.append(torch.stack([x for x in timed.routing_logits if x is not None]))
    assert torch.equal(*logits) == (variant == "timestep_routing")
    assert (logits[0][:, 0] - logits[0][:, 1]).abs().max() > 1e-3


def test_a_router_chooses_own_bands_beside_low() -> None:
    model = build(VARIANTS["hard_routing_and_low"], TINY, 0).train()
    model.set_router_training("sampled")
    for parameter in model.parameters():
        if not bool(parameter.any()):  # so that gradients come through
            torch.nn.init.normal_(parameter, std=0.1)
    video = torch.randn(2, 3, *TINY.video)
    model(video, torch.tensor([100.0, 900.0])).sample.square().mean().backward()
    names = [
        name for name, p in model.named_parameters() if p.grad is not None and bool(p.grad.any())
    ]
    assert any("router" in name for name in names)
    assert any("attn1.gates" in name for name in names)


def test_weighed_summaries_start_quiet_without_noise_and_loud_with_it() -> None:
    config = replace(CUBES, window=(1, 1, 1), summary_tokens=8)
    torch.manual_seed(0)
    weighed = MixedAttention(32, config, [2, 2], Mixing(gates="token", weighed=True))
    x, grid, timestep = (
        torch.randn(3, TINY.grid.num_tokens, 32),
        TINY.grid,
        torch.tensor([0.0, 0.5, 1.0]),
    )
    assert isinstance(weighed.router, SummaryRouter)
    torch.nn.init.zeros_(weighed.router.layers[-1].weight)
    torch.nn.init.constant_(weighed.summary_offsets, -2.0)
    out = weighed(x, grid, timestep)
    for sample, low in enumerate((-4.0, -2.0, 0.0)):
        plain = plain_layer(config, [2, 2])
        plain.load_state_dict(weights_of(weighed), strict=False)
        plain.summary_offsets.data[:, 0] = low
        torch.testing.assert_close(
            out[sample : sample + 1], plain(x[sample : sample + 1], grid, timestep[:1])
        )
    out.square().sum().backward()
    assert all(
        p.grad is not None and bool(p.grad.any()) for p in weighed.router.layers[-1].parameters()
    )


def test_the_clock_of_the_noise_level_rises_and_reaches_the_weights() -> None:
    steps = log_snr_steps(torch.linspace(0, 1, 9))
    assert steps.shape == (9, 8)
    assert bool(steps.isfinite().all())
    assert bool((steps.diff(dim=0) < 0).any(1).all())  # every noise level is told from the next
    assert float(steps.abs().max()) <= 4
    layer = build(VARIANTS["soft_routing_by_log_snr"], TINY, 0).attentions[0]
    assert isinstance(layer.router, LogSnrRouter)
    x, timestep = torch.randn(2, TINY.grid.num_tokens, 96), torch.tensor([0.2, 0.9])
    out = layer(x, TINY.grid, timestep)
    logits = layer.router_logits
    assert logits is not None
    assert (logits[0] - logits[1]).abs().max() > 1e-3
    layer(torch.randn_like(x), TINY.grid, timestep)
    assert torch.equal(layer.router_logits, logits)  # no statistics
    out.square().sum().backward()
    assert all(bool(p.grad.any()) for p in layer.router.layers[-1].parameters())
    with pytest.raises(ValueError, match="log_snr is True and gates 'token'"):
        Mixing(low_branch=True, gates="token", log_snr=True)


def test_few_tiles_in_noise_have_a_table_and_weights() -> None:
    """Above two thirds of the noise levels heads are MID; soft routing goes on."""
    model = build(VARIANTS["soft_routing_few_tiles_in_noise"], TINY, 0)
    model(torch.zeros(2, 3, *TINY.video), torch.tensor([600.0, 700.0]))
    for used, logits in zip(model.allocations, model.routing_logits, strict=True):
        assert used is not None
        assert used.tolist() == [[Band.HIGH] * 6, [Band.MID] * 6]
        assert logits is not None


def test_a_gated_head_costs_both_branches() -> None:
    low, mid, _, _ = head_costs(VARIANTS["video_sparse_attention"])
    assert mid == pytest.approx(
        low + head_costs(replace(VARIANTS["video_sparse_attention"], mixing=None))[Band.MID]
    )


def test_a_low_branch_without_a_gate_is_refused() -> None:
    with pytest.raises(ValueError, match="low_branch is True and gates 'none'"):
        Mixing(low_branch=True)
    with pytest.raises(ValueError, match="low_branch is False and gates 'routed'"):
        Mixing(gates="routed")


def test_unknown_variants_are_refused() -> None:
    with pytest.raises(ValueError, match="variant is 'nothing'; choose among dense, window"):
        chosen("nothing")
