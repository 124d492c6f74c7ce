"""A LOW branch in every head: its counts against masks of tokens, PyTorch's own operations and
tensors; it shares the operation's launches."""

from __future__ import annotations

import random
from collections import Counter

import pytest
import torch
from tests.simulate.model.test_counts import HEAD_DIM, scenario
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from freqformer import Band, FreqFormerConfig, Grid, build_plan
from freqformer.cost import Call, Cost
from freqformer.ops.merge import gated_sum
from freqformer.ops.merge.cost import spread_flops
from freqformer.plan import AttentionPlan
from freqformer.simulate.model.counts import LayerCounts, layer_counts
from freqformer.simulate.model.efficiency import load_efficiency
from freqformer.simulate.model.gradients import gradient_counts, gradient_times
from freqformer.simulate.model.hardware import load_hardware
from freqformer.simulate.model.low_branch import gate_gradients, gates_cost, low_branch
from freqformer.simulate.model.roofline import Machine, work_items

FIELDS = ("flops", "executed", "read_bytes", "write_bytes", "launches")


def cases() -> list[tuple[AttentionPlan, list[int]]]:
    """Random plans, some with text, some with learned summaries, and an allocation each."""
    return [
        scenario(seed, random.Random(seed).choice(["topk", "axial", "radial"]))
        for seed in range(40)
    ]


def both(plan: AttentionPlan, allocation: list[int]) -> tuple[LayerCounts, LayerCounts]:
    """A layer without a LOW branch, and with it."""
    return layer_counts(plan, allocation), layer_counts(plan, allocation, low_branch=True)


def test_a_default_layer_takes_four_launches():
    """The prologue's two, one attention launch, one merge; no second prologue and no launch for the
    sum. The gates are a linear layer of the layer's own."""
    plan = build_plan(Grid(4, 16, 16), FreqFormerConfig(summary_tokens=0), num_heads=2, head_dim=64)
    stages = layer_counts(plan, [Band.HIGH] * 2, low_branch=True).stages
    launches = {name: stage.launches for name, stage in stages.items()}
    assert launches["prologue"] + launches["summaries"] == 2
    assert (launches["selection"], launches["attention"], launches["merge"]) == (0, 1, 1)
    assert sum(launches.values()) == 4 + launches["gates"] == 5


def test_launches_are_those_of_heads_of_every_band():
    """Of the branch only the merge is a launch more, where no head is LOW; in backward two for the
    gates' gradients."""
    for plan, allocation in cases():
        without, found = both(plan, allocation)
        merged = int(Band.LOW not in allocation)
        for one, other, added in (
            (without.stages, found.stages, {"gates": 1, "merge": merged}),
            (
                gradient_counts(without),
                gradient_counts(found),
                # Gradients of low tokens' outputs, of the gates, and their rounding.
                {"gates": 3, "merge": 2 + merged},
            ),
        ):
            assert set(other) - set(one) == set(added) - {"merge"}
            for name, stage in other.items():
                before = one[name].launches if name in one else 0
                assert stage.launches == before + added.get(name, 0), name


def test_attention_is_own_bands_and_low_queries_once():
    """Video queries of LOW are added to heads of other bands; text queries see everything once, and
    a LOW head's own band is the branch."""
    for plan, allocation in cases():
        without, found = both(plan, allocation)
        video, text, low = (
            plan.layout.grid.num_tokens,
            plan.num_text_tokens,
            plan.num_low_tokens,
        )
        seen = sum(plan.extra_segments(Band.LOW))
        others = sum(band != Band.LOW for band in allocation)
        pairs = others * low * seen
        assert found.attention.useful == without.attention.useful + 4 * HEAD_DIM * pairs
        side = plan.layout.block
        blocks = -(-low // side) * sum(-(-size // side) for size in plan.extra_segments(Band.LOW))
        executed = 4 * HEAD_DIM * side**2 * others * blocks
        assert found.attention.executed == without.attention.executed + executed
        assert found.kv_bytes == without.kv_bytes + others * 4 * HEAD_DIM * side * blocks
        assert found.band_flops == without.band_flops
        queries = found.stages["attention"].write_bytes - without.stages["attention"].write_bytes
        assert queries == others * low * (2 * HEAD_DIM + 4)
        assert (found.stages["attention"] == without.stages["attention"]) == (not others)
        assert video or text


def test_work_items_are_longest_first_with_low_ones_among_them():
    for plan, allocation in cases():
        call = Call(plan, Counter(map(Band, allocation)), low_branch=True)
        items = work_items(call)
        assert items == sorted(items, reverse=True)
        slots = sum(length * count for length, count in items) * 4 * HEAD_DIM * plan.layout.block**2
        assert slots == layer_counts(plan, allocation, low_branch=True).attention.executed


def test_the_prologue_reads_once_and_writes_low_tokens_too():
    for plan, allocation in cases():
        without, found = (counts.stages["prologue"] for counts in both(plan, allocation))
        others = sum(band != Band.LOW for band in allocation)
        assert found.read_bytes == without.read_bytes
        rows = others * 3 * plan.num_low_tokens
        assert found.write_bytes == without.write_bytes + rows * HEAD_DIM * 2


def test_summaries_are_those_that_either_branch_sees():
    """LOW sees mid and high ones, a HIGH head low and mid ones: three kinds, none made twice."""
    config = FreqFormerConfig(tile=(4, 4, 8), summary_tokens=4)
    for learned, kinds in ((True, {0: 2, 1: 3, 2: 3, 3: 2}), (False, {0: 0, 1: 1, 2: 1, 3: 0})):
        plan = build_plan(
            Grid(4, 16, 16), config, num_heads=1, head_dim=HEAD_DIM, learned_summaries=learned
        )
        for band, number in kinds.items():
            counts = layer_counts(plan, [band], low_branch=True)
            assert counts.summary_bytes == number * plan.cells.num_cells * 2 * HEAD_DIM * 2
        if learned:
            # Of mid and high ones together, two poolings a head, whatever its band.
            executed = {
                layer_counts(plan, [band], low_branch=True).stages["summaries"].executed
                for band in range(4)
            }
            assert executed == {2 * 2.0 * plan.layout.num_tiles * 128**2 * HEAD_DIM}


def test_the_merge_reads_and_writes_real_tensors_once():
    """Own outputs, low tokens' outputs and gates in; the sum out: for a head that is not LOW."""
    tokens, heads = 270, 3
    plan = build_plan(
        Grid(3, 9, 10), FreqFormerConfig(summary_tokens=256), num_heads=heads, head_dim=16
    )
    merge = layer_counts(plan, [1, 2, 3], low_branch=True).stages["merge"]
    own = torch.randn(1, tokens, heads, 16, dtype=torch.bfloat16)
    low = torch.randn(heads, plan.num_low_tokens, 16, dtype=torch.bfloat16)
    gates = torch.randn(1, tokens, 2, heads, dtype=torch.bfloat16)
    out = gated_sum(own, own, gates)
    assert merge.read_bytes == own.nbytes + low.nbytes + gates.nbytes
    assert merge.write_bytes == out.nbytes
    # Two products and two sums of every output, and the interpolation.
    assert merge.flops == heads * spread_flops(plan) + 4 * out.numel()


def test_the_merge_of_a_low_head_reads_low_tokens_alone():
    """Gates reach no text, which stays where it is."""
    plan = build_plan(
        Grid(3, 9, 10),
        FreqFormerConfig(summary_tokens=256),
        num_heads=1,
        head_dim=16,
        num_text_tokens=7,
    )
    merge = layer_counts(plan, [Band.LOW], low_branch=True).stages["merge"]
    assert merge.flops == spread_flops(plan) + 4 * 270 * 16
    assert merge.read_bytes == plan.num_low_tokens * 16 * 2 + 270 * 2 * 2
    assert merge.write_bytes == 270 * 16 * 2


def test_backward_of_gates_and_merge_is_pytorchs_of_the_sum():
    """Products of PyTorch's backward, in the merge's launches and in the one that gathers; low
    tokens in place of LOW's outputs, which are computed again."""
    tokens, heads, head_dim = 270, 3, 16
    plan = build_plan(
        Grid(3, 9, 10), FreqFormerConfig(summary_tokens=256), num_heads=heads, head_dim=head_dim
    )
    without, found = (gradient_counts(counts) for counts in both(plan, [1, 2, 3]))
    shape = (1, tokens, heads, head_dim)
    own, slope = (torch.randn(shape, dtype=torch.bfloat16) for _ in range(2))
    gates = torch.randn(1, tokens, 2, heads, dtype=torch.bfloat16)
    low = heads * plan.num_low_tokens * head_dim * 2
    merge, gather = found["merge"], found["gather"]
    # slope * (1 + gate); slope * gate; and for both gates a product and a sum over channels.
    weighed = (1 + 1 + 2 * 2) * own.numel()
    assert merge.flops + gather.flops == heads * spread_flops(plan) + weighed
    assert merge.executed + gather.executed == 2 * heads * spread_flops(plan) + weighed
    # Two launches read the slope, and the gates' gradients are summed in float32.
    assert merge.read_bytes == 2 * slope.nbytes + gates.nbytes + low + 2 * gates.nbytes
    assert merge.write_bytes == low + gates.nbytes + gates.nbytes
    # LOW's queries are gathered too, and the own band's gates and their gradients.
    queries = heads * plan.num_low_tokens
    assert gather.read_bytes - without["gather"].read_bytes == 3 * low + gates.nbytes / 2
    assert gather.write_bytes - without["gather"].write_bytes == low + 8 * queries + gates.nbytes
    assert gather.launches == 1


def test_gates_are_pytorchs_linear_layer():
    for plan, allocation in cases():
        heads, tokens = len(allocation), plan.layout.grid.num_tokens
        width = heads * HEAD_DIM
        hidden = torch.randn(1, tokens, width, dtype=torch.bfloat16, requires_grad=True)
        linear = nn.Linear(width, 2 * heads, dtype=torch.bfloat16)
        with FlopCounterMode(display=False) as forward:
            made = linear(hidden)
        with FlopCounterMode(display=False) as backward:
            made.sum().backward()
        call = Call(plan, Counter(map(Band, allocation)), low_branch=True)
        gates, gradients = gates_cost(call), gate_gradients(call)
        learned = linear.weight.nbytes + linear.bias.nbytes
        assert gates.flops == forward.get_total_flops()
        assert (gates.read_bytes, gates.write_bytes) == (hidden.nbytes + learned, made.nbytes)
        assert gradients["gates"].flops == backward.get_total_flops()
        # The layer's input has a gradient of the projections too, which is read and added to.
        assert gradients["gates"].read_bytes == made.nbytes + 2 * hidden.nbytes + learned
        assert gradients["gates"].write_bytes == hidden.nbytes + learned


def test_what_it_adds_is_the_difference():
    """To every stage, forward and backward; useful FLOPs of the backward are its stages'."""
    for plan, allocation in cases():
        without, found = both(plan, allocation)
        assert found.call is not None
        nothing = Cost(0, 0, 0, 0, 0)
        for backward, one, other in (
            (False, without.stages, found.stages),
            (True, gradient_counts(without), gradient_counts(found)),
        ):
            added = low_branch(found.call, backward=backward)
            assert set(added) == set(other)
            for name, cost in added.items():
                for field in FIELDS:
                    expected = getattr(one.get(name, nothing), field) + getattr(cost, field)
                    assert getattr(other[name], field) == pytest.approx(expected), (name, field)
        assert found.backward_flops == pytest.approx(
            sum(stage.flops for stage in gradient_counts(found).values())
        )


@pytest.fixture(scope="module")
def machine() -> Machine:
    hardware = load_hardware("h200")
    return Machine(hardware, load_efficiency(hardware))


@pytest.mark.parametrize("learned", [False, True])
def test_stages_that_it_does_not_change_take_the_same_time(machine, learned):
    plan = build_plan(
        Grid(16, 64, 64),
        FreqFormerConfig(summary_tokens=256),
        num_heads=6,
        head_dim=128,
        learned_summaries=learned,
    )
    without, found = both(plan, [0, 1, 2] * 2)
    times, before = machine.layer(found), machine.layer(without)
    assert list(times) == list(found.stages)
    assert times["selection"] == before["selection"]
    assert (times["summaries"] == before["summaries"]) == (not learned)
    for name in ("prologue", "attention", "merge"):
        assert times[name].seconds > before[name].seconds, name
    gates = found.stages["gates"]
    assert times["gates"] == machine.linear(gates.flops, gates.bytes, 1)
    backward = gradient_times(machine, found)
    assert list(backward) == list(gradient_counts(found))
    counted = gradient_counts(found)
    assert backward["gates"] == machine.linear(counted["gates"].flops, counted["gates"].bytes, 3)


def test_parts_of_the_queries_share_the_branch(machine):
    plan = build_plan(
        Grid(16, 64, 64), FreqFormerConfig(summary_tokens=256), num_heads=2, head_dim=128
    )
    counts = layer_counts(plan, [1, 2], low_branch=True)
    whole, shared = (machine.layer(counts, parts=parts) for parts in (1, 4))
    for name in ("prologue", "merge", "gates"):
        assert shared[name].memory_s == pytest.approx(whole[name].memory_s / 4), name


def test_some_heads_of_a_layer_add_up_to_it():
    """Gates of the heads of one machine read their share of the input; the biases and weights are
    their own."""
    plan = build_plan(
        Grid(3, 9, 10), FreqFormerConfig(summary_tokens=256), num_heads=4, head_dim=HEAD_DIM
    )
    some, rest, whole = (
        layer_counts(plan, [2] * heads, low_branch=True).stages for heads in (1, 3, 4)
    )
    for name in ("attention", "merge", "gates"):
        for field in FIELDS[:-1]:
            assert getattr(some[name], field) + getattr(rest[name], field) == pytest.approx(
                getattr(whole[name], field)
            ), (name, field)
