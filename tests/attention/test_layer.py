"""The attention layer: one pipeline for fixed, learned and frozen routing, and the dense layer
beside it."""

from __future__ import annotations

import copy
from dataclasses import replace

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
    record_fields,
    weights_of,
)

from freqformer import AttentionParameters, FreqAttention, Grid, frequency_attention
from freqformer.attention import DenseAttention
from freqformer.config import Band
from freqformer.grid import tile_layout
from freqformer.plan import build_plan
from freqformer.routing import RoutingTable


@pytest.mark.parametrize("rotary", [None, make_rotary()])
def test_all_dense_heads_are_the_dense_layer(rotary):
    banded = make_layer(routing="fixed", allocation=[3, 3, 3])
    dense = make_layer(allocation="dense")
    dense.load_state_dict(weights_of(banded))
    hidden = make_input()
    expected = dense(hidden, GRID, TIMESTEP, rotary)
    torch.testing.assert_close(
        banded(hidden, GRID, TIMESTEP, rotary), expected, rtol=1e-5, atol=1e-6
    )
    assert torch.equal(dense.allocation_used, torch.full((2, 3), Band.DENSE.value))


@pytest.mark.parametrize("order", ["raster", "tile"])
def test_a_dense_layer_takes_a_table_and_low_summaries_alone(order):
    dense, hidden, rotary = make_layer(allocation="dense"), make_input(), make_rotary(order)
    config = replace(CONFIG, window=(1, 2, 1), compression=8)  # other bands than the layer's own
    before = dense(hidden, GRID, TIMESTEP, rotary, token_order=order)
    dense.set_routing_table(make_table(torch.full((1, 1, HEADS), Band.DENSE.value)))
    torch.testing.assert_close(
        dense(hidden, GRID, TIMESTEP, rotary, token_order=order), before, rtol=1e-5, atol=1e-6
    )
    dense.set_routing_table(make_table(torch.tensor([[[0, 1, 2]]]), config))
    out = dense(hidden, GRID, TIMESTEP, rotary, token_order=order)
    tensors = (to(hidden).unflatten(2, (HEADS, -1)) for to in (dense.to_q, dense.to_k, dense.to_v))
    parameters = AttentionParameters(
        rotary=rotary, query_norm=dense.query_norm, key_norm=dense.key_norm
    )
    expected = frequency_attention(
        *tensors,
        grid=GRID,
        allocation=[0, 1, 2],
        config=config,
        parameters=parameters,
        token_order=order,
    )
    assert torch.equal(out, dense.to_out(expected.flatten(2)))
    dense.set_routing_table(None)
    assert torch.equal(dense(hidden, GRID, TIMESTEP, rotary, token_order=order), before)


def test_the_dense_layer_has_the_same_parameters_but_router_summaries_and_gains():
    names = set(make_layer(replace(CONFIG, band_features="band_gains")).state_dict())
    extra = {
        name
        for name in names
        if name.split(".")[0] in ("router", "summary_queries", "summary_offsets", "gains")
    }
    assert set(make_layer(allocation="dense").state_dict()) == names - extra
    assert "gains" not in make_layer().state_dict()


@pytest.mark.parametrize("options", [{}, {"routing": "fixed"}, {"allocation": "dense"}])
def test_raster_and_tile_order_agree(options):
    layer, hidden = make_layer(**options), make_input()
    layout = tile_layout(GRID, CONFIG.tile)
    tiled = layer(
        hidden[:, layout.raster_to_tile], GRID, TIMESTEP, make_rotary("tile"), token_order="tile"
    )
    bands = layer.allocation_used
    raster = layer(hidden, GRID, TIMESTEP, make_rotary("raster"), token_order="raster")
    assert torch.equal(layer.allocation_used, bands)
    torch.testing.assert_close(tiled, raster[:, layout.raster_to_tile], rtol=1e-4, atol=1e-6)


def test_the_router_hears_the_input_and_the_timestep():
    layer, hidden = make_layer(prior="none"), make_input()
    layer(hidden, GRID, TIMESTEP)
    first = layer.router_logits
    layer(make_input(seed=9), GRID, TIMESTEP)
    assert ((layer.router_logits - first).abs().amax(-1) > 1e-4).all()
    layer(hidden, GRID, TIMESTEP + 0.05)
    assert ((layer.router_logits - first).abs().amax(-1) > 1e-4).all()
    layer(hidden, GRID, TIMESTEP)
    assert torch.equal(layer.router_logits, first)


def test_every_parameter_gets_a_gradient():
    for features in ("full", "high_pass_values", "band_gains", "own_band"):
        layer = make_layer(replace(CONFIG, band_features=features))
        layer.set_router_training("all")
        layer(make_input(), GRID, TIMESTEP, make_rotary()).square().sum().backward()
        silent = [
            name
            for name, p in layer.named_parameters()
            if p.grad is None or not p.grad.abs().max() > 0
        ]
        assert silent == []


@pytest.mark.parametrize("mode", ["all", "sampled"])
def test_learning_changes_no_output(mode):
    layer, hidden = make_layer(), make_input()
    expected = layer(hidden, GRID, TIMESTEP, make_rotary())
    layer.set_router_training(mode)
    assert torch.equal(layer(hidden, GRID, TIMESTEP, make_rotary()), expected)


def test_the_routers_gradient_is_that_of_mixed_branches():
    layer, hidden = make_layer(), make_input()
    with torch.no_grad():
        layer.to_out.weight.copy_(torch.eye(DIM))
        layer.to_out.bias.zero_()
        branches = []
        for band in range(3):
            layer.set_routing_table(make_table(torch.full((1, 1, HEADS), band)))
            branches.append(layer(hidden, GRID, TIMESTEP).unflatten(2, (HEADS, -1)))
    layer.set_routing_table(None)
    layer.set_router_training("all")
    weight = torch.randn_like(hidden)
    (layer(hidden, GRID, TIMESTEP) * weight).sum().backward()
    gradient = layer.router.head_bias.grad.clone()
    logits = layer.router_logits.detach().requires_grad_()
    mixture = sum(
        logits.softmax(-1)[:, None, :, band, None] * branch for band, branch in enumerate(branches)
    )
    (mixture.flatten(2) * weight).sum().backward()
    torch.testing.assert_close(gradient, logits.grad.sum(0), rtol=1e-3, atol=1e-5)


def test_the_router_learns_only_in_training_with_gradients():
    layer, hidden = make_layer(), make_input()
    layer(hidden, GRID, TIMESTEP).sum().backward()
    assert layer.router.head_bias.grad is None
    layer.set_router_training("all")
    layer.eval()
    layer(hidden, GRID, TIMESTEP).sum().backward()
    assert layer.router.head_bias.grad is None
    layer.train()
    layer(hidden, GRID, TIMESTEP).sum().backward()
    assert layer.router.head_bias.grad.abs().max() > 0


def test_a_table_decides_by_timestep_in_place_of_the_router():
    layer, hidden = make_layer(), make_input()
    layer.set_routing_table(make_table(torch.tensor([[[0, 1, 2]], [[2, 3, 1]]])))
    out = layer(hidden, GRID, TIMESTEP, make_rotary())
    assert layer.router_logits is None
    assert layer.allocation_used.tolist() == [[0, 1, 2], [2, 3, 1]]
    for sample, bands in enumerate(([0, 1, 2], [2, 3, 1])):
        fixed = make_layer(routing="fixed", allocation=bands)
        fixed.load_state_dict(weights_of(layer, "router"))
        expected = fixed(
            hidden[sample : sample + 1], GRID, TIMESTEP[sample : sample + 1], make_rotary()
        )
        torch.testing.assert_close(out[sample : sample + 1], expected, rtol=1e-5, atol=1e-6)
    layer.set_routing_table(None)
    layer(hidden, GRID, TIMESTEP)
    assert layer.router_logits is not None


def test_buckets_may_keep_other_numbers_of_tiles():
    layer, hidden = make_layer(), torch.cat([make_input(), make_input(seed=3)])
    timestep = torch.tensor([0.1, 0.9, 0.4, 0.6])
    bands = torch.ones(3, 1, HEADS, dtype=torch.int64)
    mid_tiles = torch.tensor([1, 4, 0])[:, None, None].expand(3, 1, HEADS)
    layer.set_routing_table(RoutingTable(bands, mid_tiles, CONFIG))
    out = layer(hidden, GRID, timestep, make_rotary())
    for sample, kept in enumerate((1, None, 4, 4)):
        fixed = make_layer(replace(CONFIG, mid_tiles=kept), routing="fixed", allocation=[1, 1, 1])
        fixed.load_state_dict(weights_of(layer, "router"))
        expected = fixed(
            hidden[sample : sample + 1], GRID, timestep[sample : sample + 1], make_rotary()
        )
        torch.testing.assert_close(out[sample : sample + 1], expected, rtol=1e-5, atol=1e-6)


def test_a_table_pins_the_tile_of_a_layer_that_pins_none():
    pinned, free = make_layer(), make_layer(replace(CONFIG, tile=None))
    free.load_state_dict(pinned.state_dict())
    table = make_table(torch.tensor([[[0, 1, 2]]]))
    hidden = make_input()
    outputs = []
    for layer in (pinned, free):
        layer.set_routing_table(table)
        outputs.append(layer(hidden, GRID, TIMESTEP, make_rotary()))
    assert torch.equal(*outputs)


def test_a_flop_budget_holds_and_waits_while_the_router_learns():
    layer, hidden = make_layer(), make_input()
    costs = torch.tensor(
        build_plan(
            GRID, CONFIG, num_heads=HEADS, head_dim=DIM // HEADS, learned_summaries=True
        ).band_costs()
    )
    layer(hidden, GRID, TIMESTEP)
    free = layer.allocation_used
    spent = costs[free].sum(-1) / (HEADS * costs[3])
    budget = float(spent.min()) * 0.9
    layer.set_flop_budget(budget)
    layer(hidden, GRID, TIMESTEP)
    assert (costs[layer.allocation_used].sum(-1) / (HEADS * costs[3]) <= budget * (1 + 1e-6)).all()
    layer.set_router_training("sampled")
    layer(hidden, GRID, TIMESTEP)
    assert torch.equal(layer.allocation_used, free)
    layer.set_flop_budget(1e-6)
    layer.eval()
    with pytest.raises(ValueError, match="budget is 1e-06 of dense attention"):
        layer(hidden, GRID, TIMESTEP)


@pytest.mark.parametrize(
    "options", [{}, {"allocation": "dense"}, {"routing": "soft"}, {"routing": "timestep"}]
)
def test_half_precision_is_near_full_precision(options):
    layer, hidden = make_layer(**options), make_input()
    if layer.chooses:
        layer.set_router_training("sampled")
    full = layer(hidden, GRID, TIMESTEP, make_rotary())
    with torch.autocast("cpu", torch.bfloat16):
        mixed = layer(hidden, GRID, TIMESTEP, make_rotary())
    bands = layer.allocation_used
    half = copy.deepcopy(layer).bfloat16()
    out = half(hidden.bfloat16(), GRID, TIMESTEP, make_rotary())
    assert torch.equal(half.allocation_used, bands)
    for result in (mixed, out):
        assert result.dtype == torch.bfloat16
        assert (result - full).norm() < 0.03 * full.norm()


def test_a_layer_can_be_copied_after_a_call():
    layer = make_layer()
    layer(make_input(), GRID, TIMESTEP)
    copied = copy.deepcopy(layer)
    assert copied.router_logits is None
    assert layer.router_logits is not None


@pytest.mark.parametrize(
    ("dim", "heads", "options", "message"),
    [
        (24, 5, {}, "dim is 24 and num_heads 5"),
        (9, 3, {}, "even head_dim"),
        (24, 0, {}, "num_heads 0"),
        (24, 3, {"allocation": (0, 1)}, r"allocation is \[0, 1\]; 3 bands from 0 to 3"),
        (24, 3, {"allocation": "dense"}, r"make_attention\(dim, num_heads, config\)"),
    ],
)
def test_wrong_sizes_are_refused(dim, heads, options, message):
    with pytest.raises(ValueError, match=message):
        FreqAttention(dim, heads, replace(CONFIG, **record_fields(options)))
    with pytest.raises(ValueError, match=r"config\.allocation is 'high'; 'dense' is allowed"):
        DenseAttention(24, 3, CONFIG)


def test_autocast_reaches_the_operation(monkeypatch):
    """In bfloat16, though bands and statistics around it are float32: what a GPU's matrix units
    take."""
    taken = []

    def attend(*tensors, **given):
        taken.append((*(x.dtype for x in tensors), given["impl"]))
        return frequency_attention(*tensors, **given)

    monkeypatch.setattr("freqformer.attention.base.frequency_attention", attend)
    with torch.autocast("cpu", torch.bfloat16):
        out = make_layer()(make_input(), GRID, TIMESTEP)
    assert taken == [(torch.bfloat16,) * 3 + ("auto",)]
    assert out.dtype == torch.bfloat16


def test_the_computation_can_be_chosen_for_all_calls():
    layer, hidden = make_layer(), make_input()
    layer.set_impl("reference")
    chosen = layer(hidden, GRID, TIMESTEP)
    assert torch.equal(chosen, layer(hidden, GRID, TIMESTEP, impl="reference"))
    eager = layer(hidden, GRID, TIMESTEP, impl="eager")
    assert not torch.equal(chosen, eager)
    torch.testing.assert_close(chosen, eager, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="impl is 'fast'"):
        layer.set_impl("fast")


def test_wrong_inputs_are_refused():
    layer, hidden = make_layer(), make_input()
    for states, grid, timestep in (
        (hidden[:, 1:], GRID, TIMESTEP),
        (hidden[..., 1:], GRID, TIMESTEP),
        (hidden[0], GRID, TIMESTEP),
        (hidden, Grid(5, 4, 5), TIMESTEP),
        (hidden, GRID, TIMESTEP[:1]),
        (hidden, GRID, TIMESTEP[:, None]),
    ):
        with pytest.raises(ValueError, match="hidden_states has shape"):
            layer(states, grid, timestep)


def test_what_needs_a_router_or_bands_says_so():
    fixed, dense = make_layer(routing="fixed"), make_layer(allocation="dense")
    table = make_table(torch.tensor([[[0, 1, 2]]]))
    for layer in (fixed, dense):
        layer.set_router_training("off")
        layer.set_flop_budget(None)
        with pytest.raises(ValueError, match="no router"):
            layer.set_router_training("all")
        with pytest.raises(ValueError, match="no router"):
            layer.set_flop_budget(0.5)
    with pytest.raises(ValueError, match="mode is 'both'"):
        make_layer().set_router_training("both")
    dense.set_routing_table(None)
    with pytest.raises(ValueError, match="a dense layer has learned none"):
        dense.set_routing_table(replace(table, config=replace(CONFIG, band_features="band_gains")))
    with pytest.raises(ValueError, match="layer 1 of 3 heads"):
        dense.set_routing_table(table, 1)
    with pytest.raises(ValueError, match="layer 1 of 3 heads"):
        fixed.set_routing_table(table, 1)
    fixed.set_routing_table(table)
    assert fixed(make_input(), GRID, TIMESTEP).shape == (2, GRID.num_tokens, DIM)


def test_a_call_in_inference_mode_leaves_nothing_that_training_stumbles_over():
    grid = Grid(3, 4, 7)  # of no other test: its layout, plan and matrices are first made here
    layer = make_layer(replace(CONFIG, band_features="own_band"))
    hidden = torch.randn(2, grid.num_tokens, DIM)
    with torch.inference_mode():
        layer(hidden, grid, TIMESTEP, token_order="raster")
    layer(hidden, grid, TIMESTEP, token_order="raster").sum().backward()
    assert layer.to_q.weight.grad is not None


def test_how_it_is_computed_is_no_part_of_what_bands_mean():
    """Neither Triton nor PyTorch has code that gives other bits at every run, whatever
    `deterministic` says."""
    layer, other = (
        make_layer(replace(CONFIG, deterministic=value), routing="fixed") for value in (True, False)
    )
    table = make_table(torch.tensor([[[0, 1, 2]], [[2, 1, 0]]]))
    outputs = []
    for one in (layer, other):
        one.set_routing_table(table)
        assert {config.deterministic for config in one.configs} == {one.config.deterministic}
        for _ in range(2):
            one.zero_grad()
            out = one(make_input(), GRID, TIMESTEP)
            out.square().sum().backward()
            assert one.to_q.weight.grad is not None
            outputs.append((out, one.to_q.weight.grad.clone()))
    assert all(
        torch.equal(x, y) for pair in outputs[1:] for x, y in zip(pair, outputs[0], strict=True)
    )
