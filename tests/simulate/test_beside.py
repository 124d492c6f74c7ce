"""A LOW branch beside every head's own: its counts against those of LOW heads, of PyTorch's linear
layer and of tensors."""

from __future__ import annotations

import csv
import json
import random
from dataclasses import replace

import pytest
import torch
from tests.simulate.test_counts import HEAD_DIM, scenario
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from typer.testing import CliRunner

from freqformer import FreqFormerConfig, Grid, build_plan
from freqformer.cli import app
from freqformer.ops.merge import gated_sum
from freqformer.simulate import Routing, simulate
from freqformer.simulate import scenario as named
from freqformer.simulate.beside import beside_training_bytes, split_stages, with_low_beside
from freqformer.simulate.calibration import load_calibration
from freqformer.simulate.charts import COLOURS, all_charts
from freqformer.simulate.counts import StageCounts, layer_counts
from freqformer.simulate.export import scenario_record
from freqformer.simulate.gradients import gradient_counts, gradient_times
from freqformer.simulate.hardware import load_hardware
from freqformer.simulate.report import report_page
from freqformer.simulate.roofline import Machine
from freqformer.simulate.scale_out import scale_out

LEVELS = ("layer", "training", "step", "generation")
CALLS = ("prologue", "summaries", "attention", "merge")


def cases() -> list[tuple]:
    """Random plans, some with text, some with learned summaries, and an allocation each."""
    return [
        scenario(seed, random.Random(seed).choice(["topk", "axial", "radial"]))
        for seed in range(40)
    ]


def summed(stages: dict[str, StageCounts], field: str) -> float:
    return sum(getattr(stage, field) for stage in stages.values())


def linear_and_sum(tokens: int, heads: int, head_dim: int) -> dict[str, float]:
    """FLOPs and bytes of the gates' linear layer and the gated sum, forward, and the layer's FLOPs
    with its backward: of PyTorch's own operations on bfloat16 tensors, of which every input and
    output counts once."""
    width = heads * head_dim
    hidden = torch.randn(1, tokens, width, dtype=torch.bfloat16, requires_grad=True)
    linear = nn.Linear(width, 2 * heads, dtype=torch.bfloat16)
    with FlopCounterMode(display=False) as forward:
        made = linear(hidden)
    with FlopCounterMode(display=False) as backward:
        made.sum().backward()
    gates = made.detach().unflatten(2, (2, heads))
    own, low = torch.randn(2, 1, tokens, heads, head_dim, dtype=torch.bfloat16)
    out = gated_sum(own, low, gates)
    return {
        "flops": forward.get_total_flops() + 4 * out.numel(),
        "read_bytes": sum(x.nbytes for x in (hidden, linear.weight, linear.bias, own, low, gates)),
        "write_bytes": made.nbytes + out.nbytes,
        "linear_backward_flops": backward.get_total_flops(),
    }


def test_it_costs_a_layer_of_low_heads_a_linear_layer_and_a_sum():
    for plan, allocation in cases():
        heads, tokens = len(allocation), plan.layout.grid.num_tokens + plan.num_text_tokens
        without, low = layer_counts(plan, allocation), layer_counts(plan, [0] * heads)
        found, rest = with_low_beside(without, plan, heads), linear_and_sum(tokens, heads, HEAD_DIM)
        for field in ("flops", "read_bytes", "write_bytes"):
            expected = summed(without.stages, field) + summed(low.stages, field) + rest[field]
            assert summed(found.stages, field) == pytest.approx(expected, rel=1e-12), field
        assert (
            summed(found.stages, "launches")
            == summed(without.stages, "launches") + summed(low.stages, "launches") + 2
        )
        assert found.flops == pytest.approx(without.flops + low.flops + rest["flops"], rel=1e-12)
        assert (
            found.attention.useful == plan.flops(allocation).useful + plan.flops([0] * heads).useful
        )
        assert (
            found.attention.executed
            == plan.flops(allocation).executed + plan.flops([0] * heads).executed
        )
        assert found.kv_bytes == plan.kv_bytes(allocation) + plan.kv_bytes([0] * heads)
        assert found.summary_bytes == without.summary_bytes + low.summary_bytes
        assert found.band_flops == without.band_flops


def test_stages_are_those_of_low_heads():
    for plan, allocation in cases():
        own, beside = split_stages(
            with_low_beside(layer_counts(plan, allocation), plan, len(allocation)).stages
        )
        low = layer_counts(plan, [0] * len(allocation)).stages
        assert own == layer_counts(plan, allocation).stages
        assert {name: beside[name] for name in CALLS} == {name: low[name] for name in CALLS}
        # Nothing is selected for LOW heads, so that leaving the stage out leaves nothing out.
        assert low["selection"] == StageCounts(0, 0, 0, 0, 0)
        assert set(beside) == {*CALLS, "gates", "sum"}


def test_backward_is_that_of_both_calls_the_linear_layer_and_the_sum():
    for plan, allocation in cases():
        heads, tokens = len(allocation), plan.layout.grid.num_tokens + plan.num_text_tokens
        counts = {
            name: layer_counts(plan, bands)
            for name, bands in (("own", allocation), ("low", [0] * heads))
        }
        found = with_low_beside(counts["own"], plan, heads)
        own, beside = split_stages(gradient_counts(plan, allocation, found))
        low = gradient_counts(plan, [0] * heads, counts["low"])
        assert own == gradient_counts(plan, allocation, counts["own"])
        assert {name: beside[name] for name in low} == low
        assert set(beside) - set(low) == {"gates", "sum", "added gradients"}
        assert (
            beside["gates"].flops
            == linear_and_sum(tokens, heads, HEAD_DIM)["linear_backward_flops"]
        )
        assert found.backward_flops == pytest.approx(
            summed(own, "flops") + summed(beside, "flops"), rel=1e-12
        )
        both = counts["own"].backward_flops + counts["low"].backward_flops
        assert found.backward_flops == pytest.approx(
            both + sum(beside[name].flops for name in ("gates", "sum", "added gradients")),
            rel=1e-12,
        )


def test_gradients_are_bytes_of_real_tensors():
    """What PyTorch's backward needs and gives for sum and linear layer; and gradients that are
    added up."""
    tokens, heads, head_dim = 270, 3, 16
    plan = build_plan(
        Grid(3, 9, 10), FreqFormerConfig(summary_tokens=256), num_heads=heads, head_dim=head_dim
    )
    found = with_low_beside(layer_counts(plan, [0, 1, 2]), plan, heads)
    _, gradients = split_stages(gradient_counts(plan, [0, 1, 2], found))
    shape = (1, tokens, heads, head_dim)
    own, low, slope = (
        torch.randn(shape, dtype=torch.bfloat16, requires_grad=True) for _ in range(3)
    )
    gates = torch.randn(1, tokens, 2, heads, dtype=torch.bfloat16, requires_grad=True)
    made = torch.autograd.grad(gated_sum(own, low, gates), (own, low, gates), slope)
    assert gradients["sum"].read_bytes == sum(x.nbytes for x in (slope, own, low, gates))
    assert gradients["sum"].write_bytes == sum(x.nbytes for x in made)
    # slope + slope * gate; slope * gate; and for both gates a product and a sum over channels.
    assert gradients["sum"].flops == (2 + 1 + 2 * 2) * own.numel()
    hidden = torch.randn(1, tokens, heads * head_dim, dtype=torch.bfloat16, requires_grad=True)
    linear = nn.Linear(heads * head_dim, 2 * heads, dtype=torch.bfloat16)
    asked = (hidden, linear.weight, linear.bias)
    out = linear(hidden)
    made = torch.autograd.grad(out, asked, torch.ones_like(out))
    assert (
        gradients["gates"].read_bytes
        == out.nbytes + hidden.nbytes + linear.weight.nbytes + linear.bias.nbytes
    )
    assert gradients["gates"].write_bytes == sum(x.nbytes for x in made)
    # Queries, keys, values and the layer's input: two gradients of each are read, one is written.
    added = gradients["added gradients"]
    assert (added.read_bytes, added.write_bytes) == (4 * 2 * own.nbytes, 4 * own.nbytes)
    assert added.flops == 4 * own.numel()


@pytest.fixture(scope="module")
def machine() -> Machine:
    hardware = load_hardware("h200")
    return Machine(hardware, load_calibration(hardware))


@pytest.mark.parametrize("learned", [False, True])
def test_times_are_those_of_low_heads_and_of_two_simple_operations(machine, learned):
    plan = build_plan(
        Grid(16, 64, 64),
        FreqFormerConfig(summary_tokens=256),
        num_heads=6,
        head_dim=128,
        learned_summaries=learned,
    )
    allocation, lows = [0, 1, 2] * 2, [0] * 6
    without, low = layer_counts(plan, allocation), layer_counts(plan, lows)
    counts = with_low_beside(without, plan, 6)
    times = machine.layer(plan, allocation, counts)
    assert list(times) == list(counts.stages)
    own, beside = split_stages(times)
    alone = machine.layer(plan, lows, low)
    assert own == machine.layer(plan, allocation, without)
    assert {name: beside[name] for name in CALLS} == {name: alone[name] for name in CALLS}
    gates, summing = (split_stages(counts.stages)[1][name] for name in ("gates", "sum"))
    assert beside["gates"] == machine.linear(gates.flops, gates.bytes, 1)
    assert beside["sum"].seconds == machine.elementwise(summing.bytes, 1).seconds

    gradients = gradient_counts(plan, allocation, counts)
    times = gradient_times(machine, plan, allocation, gradients)
    assert list(times) == list(gradients)
    own, beside = split_stages(times)
    assert own == gradient_times(
        machine, plan, allocation, gradient_counts(plan, allocation, without)
    )
    alone = gradient_times(machine, plan, lows, gradient_counts(plan, lows, low))
    assert {name: beside[name] for name in alone} == alone
    counted = split_stages(gradients)[1]
    assert beside["gates"] == machine.linear(counted["gates"].flops, counted["gates"].bytes, 3)
    for name in ("sum", "added gradients"):
        launches = counted[name].launches
        assert beside[name].seconds == machine.elementwise(counted[name].bytes, launches).seconds, (
            name
        )


def test_parts_of_the_queries_share_the_branch(machine):
    plan = build_plan(
        Grid(16, 64, 64), FreqFormerConfig(summary_tokens=256), num_heads=2, head_dim=128
    )
    counts = with_low_beside(layer_counts(plan, [1, 2]), plan, 2)
    whole, shared = (
        split_stages(machine.layer(plan, [1, 2], counts, parts=parts))[1] for parts in (1, 4)
    )
    for name in ("prologue", "merge", "gates", "sum"):
        assert shared[name].memory_s == pytest.approx(whole[name].memory_s / 4), name


def test_some_heads_of_a_layer_add_up_to_it():
    """Gates of the heads of one machine read their share of the input; the biases and weights are
    their own."""
    plan = build_plan(
        Grid(3, 9, 10), FreqFormerConfig(summary_tokens=256), num_heads=4, head_dim=HEAD_DIM
    )
    some, rest, whole = (
        split_stages(with_low_beside(layer_counts(plan, [0] * heads), plan, heads).stages)[1]
        for heads in (1, 3, 4)
    )
    for name in ("gates", "sum"):
        for field in ("flops", "executed", "read_bytes", "write_bytes"):
            assert getattr(some[name], field) + getattr(rest[name], field) == getattr(
                whole[name], field
            ), (name, field)


def test_wrong_use_is_refused():
    plan, allocation = scenario(0)
    counts = layer_counts(plan, allocation)
    for heads in (0, -1, plan.num_heads + 1):
        with pytest.raises(
            ValueError, match=f"heads is {heads}; 1 to {plan.num_heads} are allowed"
        ):
            with_low_beside(counts, plan, heads)
    once = with_low_beside(counts, plan, len(allocation))
    with pytest.raises(ValueError, match="add the branch once"):
        with_low_beside(once, plan, len(allocation))


@pytest.fixture(scope="module")
def pair():
    """The same scenario without the branch and with it."""
    case = named("wan2.1-1.3b", "h200", 65_536, preset="paper")
    return simulate(case), simulate(replace(case, low_beside=True))


def test_it_is_off_unless_asked_for():
    """Counts and memory of a layer as they were before there was the option; no calibration has a
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
    assert not any("beside" in name for level in LEVELS for name in getattr(found, level).parts)


def test_levels_hold_what_it_adds(pair):
    without, beside = pair
    added = {
        name: time.seconds for name, time in beside.stages.items() if name not in without.stages
    }
    model = without.scenario.model
    calls = model.num_layers * model.guidance_passes
    assert len(added) == 6
    assert beside.layer.seconds == pytest.approx(without.layer.seconds + sum(added.values()))
    assert beside.step.seconds == pytest.approx(without.step.seconds + calls * sum(added.values()))
    # The branch is the same whatever the router's choice.
    assert beside.generation.seconds == pytest.approx(
        without.generation.seconds + model.steps * calls * sum(added.values())
    )
    backward = [
        seconds
        for name, seconds in beside.training.parts.items()
        if name.startswith("backward, low beside, ")
    ]
    assert len(backward) == 10
    assert beside.training.seconds == pytest.approx(
        without.training.seconds + sum(added.values()) + sum(backward)
    )
    for level in LEVELS:
        one, other = getattr(without, level), getattr(beside, level)
        assert other.dense_seconds == one.dense_seconds
        assert other.speedup < one.speedup
        assert other.peak_memory_bytes > one.peak_memory_bytes


def test_memory_is_that_of_waiting_tensors(pair):
    """While the second call runs, the first output and the gates wait; in training three more
    tensors and their kind."""
    without, beside = pair
    tokens, heads, head_dim, size = without.scenario.tokens, 12, 128, 2
    tensor, gates = tokens * heads * head_dim * size, tokens * 2 * heads * size
    assert beside.layer.peak_memory_bytes - without.layer.peak_memory_bytes == tensor + gates
    assert beside.step.peak_memory_bytes - without.step.peak_memory_bytes == tensor + gates
    held = beside_training_bytes(beside.plan, size)
    assert beside.training.peak_memory_bytes - without.training.peak_memory_bytes == held
    statistics = heads * (tokens * 4 + beside.plan.num_low_tokens * head_dim * size)
    assert held == 4 * tensor + 2 * gates + statistics


def test_elements_of_four_bytes_are_counted_as_such():
    """On a processor, which takes float32: the second call's stages, and what waits."""
    case = named("freqformer", "cpu", 4096, preset="paper")
    without, beside = simulate(case), simulate(replace(case, low_beside=True))
    low = layer_counts(beside.plan, [0] * 6, element_size=4).stages
    own, found = split_stages(beside.counts.stages)
    assert own == without.counts.stages
    assert {name: found[name] for name in CALLS} == {name: low[name] for name in CALLS}
    tensor, gates = 4096 * 6 * 64 * 4, 4096 * 2 * 6 * 4
    assert found["sum"].bytes == 3 * tensor + gates
    assert beside.layer.peak_memory_bytes - without.layer.peak_memory_bytes == tensor + gates
    _, gradients = split_stages(beside.gradients)
    assert gradients["sum"].bytes == 5 * tensor + 2 * gates


def test_density_counts_both_calls(pair):
    """As `FreqAttention.band_costs` does: what one head takes as LOW comes on top of every head's
    band."""
    without, beside = pair
    low = beside.plan.band_costs()[0] * 12 / beside.dense_counts.flops
    assert beside.density == pytest.approx(without.density + low, rel=1e-12)


@pytest.mark.parametrize(
    "changes",
    [{}, {"learned_summaries": False}, {"routing": Routing(kind="hard", split=(1, 0, 0))}],
)
@pytest.mark.parametrize("model", ["freqformer", "hunyuanvideo"])
def test_more_tokens_and_the_branch_cost_more(model, changes):
    """Also with text in the sequence, with LOW heads alone, and with a router."""
    rows = []
    for tokens in (16_384, 65_536):
        case = replace(named(model, "h200", tokens, preset="paper"), **changes)
        without, beside = simulate(case), simulate(replace(case, low_beside=True))
        for counts in ("flops", "backward_flops", "bytes", "kv_bytes", "workspace_bytes"):
            assert getattr(beside.counts, counts) > getattr(without.counts, counts), counts
        assert beside.traffic_bytes > without.traffic_bytes
        # Prologue, summaries, attention and merge, and text queries' one more; the gates and the
        # sum.
        launches = summed(beside.counts.stages, "launches") - summed(
            without.counts.stages, "launches"
        )
        assert launches == 4 + bool(case.model.joint_text_tokens) + 2
        flops = beside.counts.flops - without.counts.flops
        rows.append(
            (
                flops,
                beside.layer.seconds - without.layer.seconds,
                beside.training.seconds - without.training.seconds,
            )
        )
    assert all(more > less for less, more in zip(*rows, strict=True))


def test_low_heads_alone_run_twice():
    """With every head LOW the second call is the first one again."""
    case = replace(
        named("wan2.1-1.3b", "h200", 16_384, routing=Routing(kind="fixed", split=(1, 0, 0))),
        low_beside=True,
    )
    found = simulate(case)
    own, beside = split_stages(found.stages)
    assert {name: beside[name] for name in CALLS} == {name: own[name] for name in CALLS}
    assert found.counts.attention.useful == 2 * found.counts.stages["attention"].flops


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


def test_scale_out_gathers_low_tokens_of_the_second_call():
    """One head on four GPUs of a node, that share its queries: every GPU gets the low tokens of the
    other three."""
    case = named(
        "freqformer", "h200", 65_536, head_dim=384, routing=Routing(kind="fixed", split=(0, 0, 1))
    )
    without, beside = (
        simulate(replace(case, low_beside=low_beside)) for low_beside in (False, True)
    )
    rows = [scale_out(result, [4])[0] for result in (without, beside)]
    assert [(row.ulysses, row.query_split, row.all_to_all_bytes) for row in rows] == [(1, 4, 0)] * 2
    machine, model = case.machine, case.model
    assert machine.hardware.interconnect is not None
    rate = machine.hardware.interconnect.node_bandwidth * machine.calibration.link_bandwidth
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


def test_charts_and_report_show_it_as_one_part(pair):
    without, beside = pair
    charts = {chart.key: chart for chart in all_charts([beside], [], [])}
    layer = {series.name: series.y[0] for series in charts["branches"].series}
    step = {series.name: series.y[0] for series in charts["step"].series}
    assert sum(layer.values()) == pytest.approx(100)
    extra = beside.layer.seconds - without.layer.seconds
    assert layer["low beside"] == pytest.approx(100 * extra / beside.layer.seconds)
    assert step["low beside"] == pytest.approx(beside.step.seconds - without.step.seconds)
    assert [name for name in step if "beside" in name] == ["low beside"]
    assert len({COLOURS[name] for name in step}) == len(step)
    text = "gated, beside every head&#x27;s own band"
    assert [text in report_page([result], [], []) for result in (beside, without)] == [True, False]


def test_the_command_line_writes_what_python_finds(pair, tmp_path):
    """JSON and CSV of `--set low_beside=true`, read back; `false` and nothing are the same."""
    paths = {}
    for name, settings in (
        ("with", ["low_beside=true"]),
        ("without", ["low_beside=false"]),
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
        assert ("low branch: gated, beside every head's own band" in shown) == (name == "with")
    assert paths["without"][0].read_bytes() == paths["default"][0].read_bytes()
    assert paths["without"][1].read_bytes() == paths["default"][1].read_bytes()
    for name, result in (("default", pair[0]), ("with", pair[1])):
        record = json.loads(paths[name][0].read_text())["scenarios"][0]
        assert record == json.loads(json.dumps(scenario_record(result), default=list))
        assert record["low_beside"] is (name == "with")
        assert record["freqformer"]["attention_flops"] == result.counts.attention.useful
        assert list(record["freqformer"]["stages"]) == list(result.counts.stages)
        gradients = record["training"]["gradients"]
        assert sum(stage["flops"] for stage in gradients.values()) == pytest.approx(
            record["freqformer"]["backward_flops"]
        )
        row = next(csv.DictReader(paths[name][1].read_text().splitlines()))
        assert float(row["time_s"]) == result.layer.seconds
        assert float(row["density"]) == result.density
