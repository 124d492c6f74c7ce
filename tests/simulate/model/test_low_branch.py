"""A LOW branch in every head: its counts against masks of tokens, PyTorch's own operations and
tensors; it shares the operation's launches."""

from __future__ import annotations

import csv
import json
import random
from collections import Counter
from dataclasses import replace

import pytest
import torch
from tests.simulate.model.test_counts import HEAD_DIM, scenario
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from typer.testing import CliRunner

from freqformer import Band, FreqFormerConfig, Grid, build_plan
from freqformer.cli import app
from freqformer.cost import Call, Cost
from freqformer.ops.gates.reference import gated_sum
from freqformer.ops.merge.cost import spread_flops
from freqformer.plan import AttentionPlan
from freqformer.simulate import Routing, simulate
from freqformer.simulate import scenario as named
from freqformer.simulate.model.counts import LayerCounts, layer_counts
from freqformer.simulate.model.efficiency import load_efficiency
from freqformer.simulate.model.gradients import gradient_counts, gradient_times
from freqformer.simulate.model.hardware import load_hardware
from freqformer.simulate.model.low_branch import gate_gradients, gates_cost, low_branch
from freqformer.simulate.model.roofline import Machine, work_items
from freqformer.simulate.model.scale_out import scale_out
from freqformer.simulate.present.charts import COLOURS, all_charts
from freqformer.simulate.present.export import scenario_record
from freqformer.simulate.present.report import report_page

LEVELS = ("layer", "training", "step", "generation")
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
    """Of the branch only the merge is a launch more, where no head is LOW; in backward likewise."""
    for plan, allocation in cases():
        without, found = both(plan, allocation)
        merged = int(Band.LOW not in allocation)
        for one, other, added in (
            (without.stages, found.stages, {"gates": 1}),
            (gradient_counts(without), gradient_counts(found), {"gates": 3, "added gradient": 1}),
        ):
            assert set(other) - set(one) == set(added)
            for name, stage in other.items():
                before = one[name].launches if name in one else 0
                more = merged if name == "merge" else added.get(name, 0)
                assert stage.launches == before + more, name


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
        blocks = -(-low // 128) * sum(-(-size // 128) for size in plan.extra_segments(Band.LOW))
        executed = 4 * HEAD_DIM * 128**2 * others * blocks
        assert found.attention.executed == without.attention.executed + executed
        assert found.kv_bytes == without.kv_bytes + others * 4 * HEAD_DIM * 128 * blocks
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
        slots = sum(length * count for length, count in items) * 4 * HEAD_DIM * 128**2
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
    plan = build_plan(Grid(3, 9, 10), FreqFormerConfig(), num_heads=heads, head_dim=16)
    merge = layer_counts(plan, [1, 2, 3], low_branch=True).stages["merge"]
    own = torch.randn(1, tokens, heads, 16, dtype=torch.bfloat16)
    low = torch.randn(heads, plan.num_low_tokens, 16, dtype=torch.bfloat16)
    gates = torch.randn(1, tokens, 2, heads, dtype=torch.bfloat16)
    out = gated_sum(own, own, gates)
    assert merge.read_bytes == own.nbytes + low.nbytes + gates.nbytes
    assert merge.write_bytes == out.nbytes
    # Two products and two sums of every output, and the interpolation.
    assert merge.flops == heads * spread_flops(plan) + 4 * out.numel()


def test_the_merge_of_a_low_head_weighs_one_branch():
    plan = build_plan(
        Grid(3, 9, 10), FreqFormerConfig(), num_heads=1, head_dim=16, num_text_tokens=7
    )
    merge = layer_counts(plan, [Band.LOW], low_branch=True).stages["merge"]
    assert merge.flops == spread_flops(plan) + 2 * 277 * 16
    # Low tokens and text queries' outputs, gates; every output is written.
    assert merge.read_bytes == (plan.num_low_tokens + 7) * 16 * 2 + 277 * 2 * 2
    assert merge.write_bytes == 277 * 16 * 2


def test_one_backward_pass_over_gates_and_merge():
    """What PyTorch's backward of the sum needs and gives, low tokens in place of LOW's outputs,
    which are computed again."""
    tokens, heads, head_dim = 270, 3, 16
    plan = build_plan(Grid(3, 9, 10), FreqFormerConfig(), num_heads=heads, head_dim=head_dim)
    found = gradient_counts(layer_counts(plan, [1, 2, 3], low_branch=True))["merge"]
    own, spread, slope = (
        torch.randn(1, tokens, heads, head_dim, dtype=torch.bfloat16, requires_grad=True)
        for _ in range(3)
    )
    gates = torch.randn(1, tokens, 2, heads, dtype=torch.bfloat16, requires_grad=True)
    made = torch.autograd.grad(gated_sum(own, spread, gates), (own, spread, gates), slope)
    low = heads * plan.num_low_tokens * head_dim * 2
    assert found.read_bytes == slope.nbytes + own.nbytes + gates.nbytes + low
    assert found.write_bytes == made[0].nbytes + made[2].nbytes + low
    # slope + slope * gate; slope * gate; and for both gates a product and a sum over channels.
    weighed = (2 + 1 + 2 * 2) * own.numel()
    assert found.flops == heads * spread_flops(plan) + weighed
    assert found.executed == 2 * heads * spread_flops(plan) + weighed


def test_gates_are_pytorchs_linear_layer():
    for plan, allocation in cases():
        heads, tokens = len(allocation), plan.layout.grid.num_tokens + plan.num_text_tokens
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
        assert gradients["gates"].read_bytes == made.nbytes + hidden.nbytes + learned
        assert gradients["gates"].write_bytes == hidden.nbytes + learned
        # The layer's input has a gradient of the projections too: two are read, one is written.
        added = gradients["added gradient"]
        assert (added.read_bytes, added.write_bytes) == (2 * hidden.nbytes, hidden.nbytes)


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
        Grid(16, 64, 64), FreqFormerConfig(), num_heads=6, head_dim=128, learned_summaries=learned
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
    plan = build_plan(Grid(16, 64, 64), FreqFormerConfig(), num_heads=2, head_dim=128)
    counts = layer_counts(plan, [1, 2], low_branch=True)
    whole, shared = (machine.layer(counts, parts=parts) for parts in (1, 4))
    for name in ("prologue", "merge", "gates"):
        assert shared[name].memory_s == pytest.approx(whole[name].memory_s / 4), name


def test_some_heads_of_a_layer_add_up_to_it():
    """Gates of the heads of one machine read their share of the input; the biases and weights are
    their own."""
    plan = build_plan(Grid(3, 9, 10), FreqFormerConfig(), num_heads=4, head_dim=HEAD_DIM)
    some, rest, whole = (
        layer_counts(plan, [2] * heads, low_branch=True).stages for heads in (1, 3, 4)
    )
    for name in ("attention", "merge", "gates"):
        for field in FIELDS[:-1]:
            assert getattr(some[name], field) + getattr(rest[name], field) == pytest.approx(
                getattr(whole[name], field)
            ), (name, field)


@pytest.fixture(scope="module")
def pair():
    """The same scenario without the branch and with it."""
    case = named("wan2.1-1.3b", "h200", 65_536, preset="paper")
    return simulate(case), simulate(replace(case, low_branch=True))


def test_it_is_off_unless_asked_for():
    """Counts and memory of a layer as they were before there was the option; no efficiency has a
    part in them."""
    config = FreqFormerConfig(
        tile=(4, 4, 8), compression=32, mid_tiles=32, window=(3, 3, 3), summary_tokens=256
    )
    found = simulate(
        named("wan2.1-1.3b", "h200", 65_536, config=config, routing=Routing(kind="fixed"))
    )
    counts = found.counts
    assert found.scenario.has_low_branch is False
    assert list(found.stages) == ["prologue", "summaries", "selection", "attention", "merge"]
    assert (counts.flops, counts.backward_flops) == (1035553783674.7968, 2561408425650.9917)
    assert (counts.bytes, counts.kv_bytes, counts.summary_bytes) == (
        2094641920,
        10945036288,
        2838528,
    )
    assert found.density == 0.03857744847013934
    assert [getattr(found, level).peak_memory_bytes for level in LEVELS[:3]] == [
        1492786560,
        3315604224,
        4733335040,
    ]
    assert not any("low branch" in name for level in LEVELS for name in getattr(found, level).parts)


def test_levels_hold_what_it_adds(pair):
    without, beside = pair
    added = beside.layer.seconds - without.layer.seconds
    model = without.scenario.model
    calls = model.num_layers * model.guidance_passes
    assert set(beside.stages) - set(without.stages) == {"gates"}
    assert added == pytest.approx(
        sum(time.seconds for time in beside.stages.values())
        - sum(time.seconds for time in without.stages.values())
    )
    assert beside.step.seconds == pytest.approx(without.step.seconds + calls * added)
    new = set(beside.training.parts) - set(without.training.parts)
    assert new == {"gates", "backward, gates", "backward, added gradient"}
    for level in LEVELS:
        one, other = getattr(without, level), getattr(beside, level)
        assert other.dense_seconds == one.dense_seconds
        assert other.speedup < one.speedup
        assert other.peak_memory_bytes > one.peak_memory_bytes


def test_memory_is_low_queries_and_gates(pair):
    """The sum takes the own output's place; in training that is kept, and its gradient made."""
    without, beside = pair
    tokens, heads, head_dim, size = without.scenario.tokens, 12, 128, 2
    low, tensor = heads * beside.plan.num_low_tokens, tokens * heads * head_dim * size
    gates = tokens * 2 * heads * size
    added = low * (head_dim * size + 4) + gates
    assert beside.layer.peak_memory_bytes - without.layer.peak_memory_bytes == added
    assert beside.step.peak_memory_bytes - without.step.peak_memory_bytes == added
    held = beside.training.peak_memory_bytes - without.training.peak_memory_bytes
    # Low queries and their gradient, what rounding their outputs took, and three numbers a query.
    assert held == 2 * tensor + 2 * gates + low * (3 * head_dim * size + 3 * 4)


def test_elements_of_four_bytes_are_counted_as_such():
    """On a processor, which takes float32."""
    case = named("freqformer", "cpu", 4096, preset="paper")
    without, beside = simulate(case), simulate(replace(case, low_branch=True))
    assert beside.counts == layer_counts(
        beside.plan,
        beside.allocation,
        element_size=4,
        low_branch=True,
        router=case.router,
    )
    gates, low = 4096 * 2 * 6 * 4, 6 * beside.plan.num_low_tokens
    added = beside.layer.peak_memory_bytes - without.layer.peak_memory_bytes
    assert added == gates + low * (64 * 4 + 4)
    assert beside.counts.stages["gates"].write_bytes == gates


def test_density_counts_low_queries(pair):
    """Of heads in other bands: a LOW head's own band is the branch."""
    without, beside = pair
    low = beside.plan.band_costs()[0] * 8 / beside.dense_counts.flops
    assert beside.allocation.count(Band.LOW) == 4
    assert beside.density == pytest.approx(without.density + low, rel=1e-12)


@pytest.mark.parametrize(
    "changes",
    [{}, {"learned_summaries": False}, {"routing": Routing(kind="learned", split=(1, 0, 0))}],
)
@pytest.mark.parametrize("model", ["freqformer", "hunyuanvideo"])
def test_more_tokens_and_the_branch_cost_more(model, changes):
    """Also with text in the sequence, with LOW heads alone, and with a router."""
    rows = []
    for tokens in (16_384, 65_536):
        case = replace(named(model, "h200", tokens, preset="paper"), **changes)
        without, beside = simulate(case), simulate(replace(case, low_branch=True))
        for counts in ("flops", "backward_flops", "bytes", "workspace_bytes"):
            assert getattr(beside.counts, counts) > getattr(without.counts, counts), counts
        assert beside.traffic_bytes > without.traffic_bytes
        rows.append(
            (
                beside.counts.flops - without.counts.flops,
                beside.layer.seconds - without.layer.seconds,
                beside.training.seconds - without.training.seconds,
            )
        )
    assert all(more > less > 0 for less, more in zip(*rows, strict=True))


def test_low_heads_are_computed_once():
    """With every head LOW the branch is the own band: only the gates and the sum are added."""
    case = named("wan2.1-1.3b", "h200", 16_384, routing=Routing(kind="fixed", split=(1, 0, 0)))
    without, found = simulate(case), simulate(replace(case, low_branch=True))
    assert found.counts.attention == without.counts.attention
    changed = {name for name in without.stages if found.stages[name] != without.stages[name]}
    assert changed == {"merge"}


def test_scale_out_runs_the_same_layer(pair):
    without, beside = pair
    rows, plain = scale_out(beside, [1, 4, 64]), scale_out(without, [1, 4, 64])
    assert rows[0].seconds == pytest.approx(beside.step.seconds)
    for row, other in zip(rows, plain, strict=True):
        assert row.seconds > other.seconds
        assert row.dense_seconds == pytest.approx(other.dense_seconds, rel=1e-12)
        assert row.memory_bytes > other.memory_bytes
        if row.ulysses > 1 and row.ulysses == other.ulysses:
            # Two gates to four tensors of 128 channels, for every token and head.
            assert row.all_to_all_bytes == pytest.approx(other.all_to_all_bytes * (1 + 2 / 512))
    assert any(
        row.ulysses > 1 and row.ulysses == other.ulysses
        for row, other in zip(rows, plain, strict=True)
    )


def test_scale_out_gathers_low_tokens():
    """One head on four GPUs of a node, that share its queries: every GPU gets the low tokens of the
    other three."""
    case = named(
        "freqformer", "h200", 65_536, head_dim=384, routing=Routing(kind="fixed", split=(0, 0, 1))
    )
    without, beside = (
        simulate(replace(case, low_branch=low_branch)) for low_branch in (False, True)
    )
    rows = [scale_out(result, [4])[0] for result in (without, beside)]
    assert [(row.ulysses, row.query_split, row.all_to_all_bytes) for row in rows] == [(1, 4, 0)] * 2
    machine, model = case.machine, case.model
    assert machine.hardware.interconnect is not None
    rate = machine.hardware.interconnect.node_bandwidth * machine.efficiency.link_bandwidth
    seconds = (
        model.num_layers
        * model.guidance_passes
        * beside.plan.num_low_tokens
        * 3
        / 4
        * 2
        * 384
        * 2
        / rate
    )
    assert rows[1].communication_seconds - rows[0].communication_seconds == pytest.approx(seconds)


def test_charts_and_report_show_it(pair):
    """Its queries' share of the launch, and the gates; every name has a colour of its own."""
    without, beside = pair
    charts = {chart.key: chart for chart in all_charts([beside], [], [])}
    layer = {series.name: series.y[0] for series in charts["branches"].series}
    step = {series.name: series.y[0] for series in charts["step"].series}
    assert sum(layer.values()) == pytest.approx(100)
    executed = beside.counts.attention.executed - without.counts.attention.executed
    share = executed / beside.counts.attention.executed * beside.stages["attention"].seconds
    assert layer["low branch"] == pytest.approx(100 * share / beside.layer.seconds)
    assert step == pytest.approx(beside.step.parts)
    for chart in (layer, step):
        assert len({COLOURS[name] for name in chart}) == len(chart)
    assert not any(series.name == "low branch" for series in _branches(without))
    text = "gated, added to every head&#x27;s band"
    assert [text in report_page([result], [], []) for result in (beside, without)] == [True, False]


def _branches(result):
    charts = {chart.key: chart for chart in all_charts([result], [], [])}
    return charts["branches"].series


def test_the_command_line_writes_what_python_finds(pair, tmp_path):
    """JSON and CSV of `--set low_branch=true`, read back; `false` and nothing are the same."""
    paths = {}
    for name, settings in (
        ("with", ["low_branch=true"]),
        ("without", ["low_branch=false"]),
        ("default", []),
    ):
        paths[name] = (tmp_path / f"{name}.json", tmp_path / f"{name}.csv")
        arguments = ["simulate", "--model", "wan2.1-1.3b", "--tokens", "65536", "--preset", "paper"]
        arguments += [part for setting in settings for part in ("--set", setting)]
        found = CliRunner().invoke(
            app, [*arguments, "--json", str(paths[name][0]), "--csv", str(paths[name][1])]
        )
        assert found.exit_code == 0, found.output
        shown = " ".join(found.output.split())
        assert ("low branch: gated, added to every head's band" in shown) == (name == "with")
    assert paths["without"][0].read_bytes() == paths["default"][0].read_bytes()
    assert paths["without"][1].read_bytes() == paths["default"][1].read_bytes()
    for name, result in (("default", pair[0]), ("with", pair[1])):
        record = json.loads(paths[name][0].read_text())["scenarios"][0]
        assert record == json.loads(json.dumps(scenario_record(result), default=list))
        assert record["low_branch"] is (name == "with")
        assert record["freqformer"]["attention_flops"] == result.counts.attention.useful
        assert list(record["freqformer"]["stages"]) == list(result.counts.stages)
        gradients = record["training"]["gradients"]
        assert sum(stage["flops"] for stage in gradients.values()) == pytest.approx(
            record["freqformer"]["backward_flops"]
        )
        row = next(csv.DictReader(paths[name][1].read_text().splitlines()))
        assert float(row["time_s"]) == result.layer.seconds
        assert float(row["density"]) == result.density
