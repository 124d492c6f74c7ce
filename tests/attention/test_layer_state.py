"""Layers made, moved, saved and loaded in every way that torch has: bands come along, and come out
right."""

from __future__ import annotations

import copy
import pickle
from dataclasses import replace
from typing import Any

import pytest
import torch
from tests.support.layers import (
    CONFIG,
    GRID,
    HEADS,
    TIMESTEP,
    make_input,
    make_layer,
    make_table,
    weights_of,
)

from freqformer import FreqAttention
from freqformer.config import Band

OPTIONS: list[dict[str, Any]] = [
    {"routing": "soft", "allocation": [1, 2, 2]},
    {"routing": "hard"},
    {"routing": "fixed", "allocation": [2, 1, 3]},
    {"allocation": "dense"},
]


def on_meta(**options: Any) -> FreqAttention:
    with torch.device("meta"):
        return make_layer(**options)


def assert_same(layer: FreqAttention, whole: FreqAttention) -> None:
    assert layer.allocation.tolist() == whole.allocation.tolist() == list(whole.bands)
    with torch.no_grad():
        assert torch.equal(layer(make_input(), GRID, TIMESTEP), whole(make_input(), GRID, TIMESTEP))


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("old", [False, True])
def test_a_layer_from_the_meta_device_is_the_layer(options, old):
    whole = make_layer(**options)
    state = weights_of(whole) if old else whole.state_dict()  # older versions saved no bands
    layer = on_meta(**options)
    assert layer.allocation.device.type == "meta"
    layer.to_empty(device="cpu")
    layer.allocation.fill_(7)  # what memory happens to hold
    assert_same(loaded(layer, state), whole)
    assert_same(loaded(on_meta(**options), state, assign=True), whole)
    assert set(state) == set(weights_of(whole) if old else whole.state_dict())


def loaded(layer: FreqAttention, state: dict[str, torch.Tensor], **options: Any) -> FreqAttention:
    layer.load_state_dict(state, **options)
    return layer


def test_memory_that_is_given_later_holds_the_bands_at_once():
    layer = on_meta(routing="fixed", allocation=[2, 1, 3]).to_empty(device="cpu")
    assert layer.allocation.tolist() == [2, 1, 3]


def test_a_table_survives_moves_and_the_meta_device():
    layer, whole = on_meta(), make_layer()
    table = make_table(torch.tensor([[[0, 1, 2]], [[2, 3, 1]]]))
    for one in (layer, whole):
        one.set_routing_table(table)
    layer.to_empty(device="cpu").load_state_dict(whole.state_dict())
    assert_same(layer, whole)
    assert layer.allocation_used is not None
    assert layer.allocation_used.tolist() == [[0, 1, 2], [2, 3, 1]]
    assert_same(copy.deepcopy(whole), whole)
    assert [name for name in whole.state_dict() if "table" in name] == []


@pytest.mark.parametrize("options", OPTIONS)
def test_copies_and_pickles_work_before_and_after_a_call(options):
    layer = make_layer(**options)
    for _ in range(2):
        assert_same(pickle.loads(pickle.dumps(layer)), layer)
        assert_same(copy.deepcopy(layer), layer)
        layer(make_input(), GRID, TIMESTEP)


def test_weights_of_other_bands_are_refused_by_name():
    soft, other = (make_layer(routing="soft", allocation=bands) for bands in ([2, 2, 2], [1, 2, 2]))
    for strict in (True, False):
        with pytest.raises(
            ValueError,
            match=r"allocation \[1, 2, 2\], and this one has \[2, 2, 2\].*leave 'allocation' out",
        ):
            soft.load_state_dict(other.state_dict(), strict=strict)
    soft.load_state_dict(weights_of(other))
    assert soft.allocation.tolist() == [2, 2, 2]
    # Where a router chooses, the allocation is only where it started.
    learned, start = (make_layer(allocation=bands) for bands in ([0, 1, 2], [2, 2, 2]))
    learned.load_state_dict(start.state_dict())
    assert learned.allocation.tolist() == [0, 1, 2]
    assert_same_output(learned, start)


def assert_same_output(layer: FreqAttention, other: FreqAttention) -> None:
    with torch.no_grad():
        assert torch.equal(layer(make_input(), GRID, TIMESTEP), other(make_input(), GRID, TIMESTEP))


def test_summaries_that_are_not_learned_are_those_of_the_low_band():
    """What the operation has without parameters; nothing is learned, saved or loaded of them."""
    config = replace(CONFIG, learned_summaries=False, mid_tiles=2)
    layer = make_layer(config, routing="fixed", allocation=[Band.MID] * HEADS)
    assert layer.summary_queries is layer.summary_offsets is None
    plain = make_layer(
        replace(config, summary_tokens=0), routing="fixed", allocation=[Band.MID] * HEADS
    )
    plain.load_state_dict(layer.state_dict())
    with torch.no_grad():
        summarised = layer(make_input(), GRID, TIMESTEP)
        assert not torch.equal(plain(make_input(), GRID, TIMESTEP), summarised)
        plain.set_mid_tiles(2, config.summary_tokens)
        assert torch.equal(plain(make_input(), GRID, TIMESTEP), summarised)
        plain.set_mid_tiles(3, 0)
        assert not torch.equal(plain(make_input(), GRID, TIMESTEP), summarised)
    assert (plain.config.mid_tiles, plain.config.summary_tokens) == (3, 0)


def test_what_heads_see_is_not_changed_where_something_else_says_it():
    learned = make_layer(CONFIG, routing="soft")
    with pytest.raises(ValueError, match=r"summary_tokens is 4 .* learned_summaries True"):
        learned.set_mid_tiles(2, 4)
    layer = make_layer(replace(CONFIG, learned_summaries=False), routing="soft")
    for number in (0, 1.5):
        with pytest.raises(ValueError, match=f"mid_tiles is {number}"):
            layer.set_mid_tiles(number, 0)
    layer.set_routing_table(make_table(torch.zeros(1, 1, HEADS, dtype=torch.int64)))
    for change in (lambda: layer.set_window((1, 1, 1)), lambda: layer.set_mid_tiles(2, 0)):
        with pytest.raises(ValueError, match="the layer has a routing table"):
            change()


def test_what_no_head_uses_is_no_parameter_and_older_states_with_it_load():
    plain = replace(CONFIG, summary_tokens=0)
    layer, summarised = (make_layer(config, routing="soft") for config in (plain, CONFIG))
    assert layer.summary_queries is None
    # Other weights of a seed are the same with and without.
    assert all(
        torch.equal(x, summarised.state_dict()[name]) for name, x in layer.state_dict().items()
    )
    old = weights_of(summarised)
    layer.load_state_dict(old)
    assert "summary_queries" in old
    with pytest.raises(RuntimeError, match="summary_queries"):
        layer.load_state_dict(summarised.state_dict())
    dense_heads = make_layer(
        replace(CONFIG, band_features="band_gains"),
        routing="fixed",
        allocation=[Band.DENSE] * HEADS,
    )
    assert {name.split(".")[0] for name, _ in dense_heads.named_parameters()} == {
        *("to_q", "to_k", "to_v", "to_out", "query_norm", "key_norm")
    }
    with pytest.raises(ValueError, match=r"a layer with allocation \[3, 3, 3\] has learned none"):
        dense_heads.set_routing_table(make_table(torch.tensor([[[0, 1, 2]]]), dense_heads.config))


@pytest.mark.parametrize("options", OPTIONS)
def test_offloaded_layers_run_with_hooks_on_every_module(options):
    accelerate = pytest.importorskip("accelerate")
    whole = make_layer(**options)
    for buffers in (False, True):
        layer = copy.deepcopy(whole)
        accelerate.cpu_offload(layer, execution_device=torch.device("cpu"), offload_buffers=buffers)
        assert layer.to_q.weight.device.type == "meta"
        assert_same_output(layer, whole)
