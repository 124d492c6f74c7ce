"""Scenarios with a LOW branch: what levels, memory, many GPUs and documents say of it."""

from __future__ import annotations

import csv
import json
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from freqformer import Band, FreqFormerConfig
from freqformer.cli import app
from freqformer.simulate import Routing, simulate
from freqformer.simulate import scenario as named
from freqformer.simulate.model.counts import layer_counts
from freqformer.simulate.model.scale_out import _divided, scale_out
from freqformer.simulate.present.charts import COLOURS, all_charts
from freqformer.simulate.present.export import scenario_record
from freqformer.simulate.present.report import report_page

LEVELS = ("layer", "training", "step", "generation")


@pytest.fixture(scope="module")
def pair():
    """The same scenario without the branch and with it."""
    case = named("wan2.1-1.3b", "h200", 65_536, preset="paper")
    return simulate(case), simulate(replace(case, low_branch=True))


def test_it_is_off_unless_asked_for():
    """Counts of a layer as they were before there was the option, no efficiency has a part in them;
    and its memory, with room for low queries in every row."""
    config = FreqFormerConfig(
        tile=(4, 4, 8),
        compression=32,
        mid_tiles=32,
        window=(3, 3, 3),
        summary_tokens=256,
        allocation="thirds",
    )
    found = simulate(
        named("wan2.1-1.3b", "h200", 65_536, config=config, routing=Routing(kind="fixed"))
    )
    counts = found.counts
    assert found.scenario.has_low_branch is False
    assert list(found.stages) == ["prologue", "summaries", "selection", "attention", "merge"]
    assert (counts.flops, counts.backward_flops) == (1035553783674.7968, 2561408425650.9917)
    assert (counts.bytes, counts.kv_bytes, counts.summary_bytes) == (
        2114984704,
        10945036288,
        2838528,
    )
    assert found.density == 0.03857744847013934
    assert [getattr(found, level).peak_memory_bytes for level in LEVELS[:3]] == [
        1515731328,
        3137389824,
        4756279808,
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
    assert new == {"gates", "backward, gates"}
    for level in LEVELS:
        one, other = getattr(without, level), getattr(beside, level)
        assert other.dense_seconds == one.dense_seconds
        assert other.speedup < one.speedup
        assert other.peak_memory_bytes > one.peak_memory_bytes


def test_memory_is_that_of_gates(pair):
    """The sum takes the own output's place, and buffers have room for low queries always. In
    training the own output is kept, and gates have gradients."""
    without, beside = pair
    tokens, heads, head_dim, size = without.scenario.tokens, 12, 128, 2
    tensor, gates = tokens * heads * head_dim * size, tokens * 2 * heads * size
    assert beside.layer.peak_memory_bytes - without.layer.peak_memory_bytes == gates
    assert beside.step.peak_memory_bytes - without.step.peak_memory_bytes == gates
    held = beside.training.peak_memory_bytes - without.training.peak_memory_bytes
    assert held == tensor + 2 * gates + tokens * 2 * heads * 4


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
    gates = 4096 * 2 * 6 * 4
    assert beside.layer.peak_memory_bytes - without.layer.peak_memory_bytes == gates
    assert beside.counts.stages["gates"].write_bytes == gates


def test_density_counts_low_queries(pair):
    """Of heads in other bands: a LOW head's own band is the branch."""
    without, beside = pair
    low = beside.plan.band_costs()[0] * 8 / beside.dense_counts.flops
    assert beside.allocation.count(Band.LOW) == 4
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


def test_what_computation_hides_of_an_all_to_all_takes_no_time():
    """Rate and overlap are values of the machine's efficiency; sorting heads is another."""
    case = named("freqformer", "h200", 262_144)

    def talk(**values: float) -> float:
        achieved = replace(case.machine.efficiency, all_to_all_s=0.0, **values)
        machine = replace(case.machine, efficiency=achieved)
        return _divided(simulate(replace(case, machine=machine)), 2, 2).communication_seconds

    sorting = talk(all_to_all_overlap=1.0)
    faster = talk(all_to_all_overlap=1.0, packing_bandwidth=1.0)
    assert sorting == pytest.approx(faster / case.machine.efficiency.packing_bandwidth)
    alone = talk(all_to_all_bandwidth=0.4, all_to_all_overlap=0.0) - sorting
    twice = talk(all_to_all_bandwidth=0.8, all_to_all_overlap=0.0) - sorting
    assert twice == pytest.approx(alone / 2, rel=0.05)  # and latency
    half = talk(all_to_all_bandwidth=0.4, all_to_all_overlap=0.5) - sorting
    assert half == pytest.approx(alone / 2, rel=1e-6)


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
