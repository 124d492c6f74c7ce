"""Scenarios: levels add up, more work costs more, routing tables and lengths mean what they say."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from freqformer import Band, FreqFormerConfig
from freqformer.routing import RoutingTable
from freqformer.simulate import ProfileError, Routing, scenario, simulate
from freqformer.simulate.model.allocations import count_heads, head_schedule, timesteps
from freqformer.simulate.model.counts import dense_counts
from freqformer.simulate.model.scale_out import assign_heads, scale_out
from freqformer.simulate.model.sensitivity import KNOBS, sensitivity
from freqformer.simulate.model.transformers import load_model


@pytest.fixture(scope="module")
def result():
    """Of the paper's preset, which has every band."""
    return simulate(scenario("wan2.1-14b", "h200", 65_536, preset="paper"))


def test_levels_add_up(result):
    model = result.scenario.model
    calls = model.num_layers * model.guidance_passes
    assert result.layer.seconds == pytest.approx(
        sum(time.seconds for time in result.stages.values())
    )
    assert result.step.parts["attention"] == pytest.approx(
        calls * result.stages["attention"].seconds
    )
    assert result.step.seconds == pytest.approx(sum(result.step.parts.values()))
    assert result.step.dense_seconds > result.step.seconds > calls * result.layer.seconds
    assert result.generation.dense_seconds == pytest.approx(model.steps * result.step.dense_seconds)
    assert result.layer.tokens_per_s == pytest.approx(64_800 / result.layer.seconds)
    assert result.generation.video_seconds_per_s == pytest.approx(
        69 / 16 / result.generation.seconds
    )


def test_training_is_the_layer_and_its_backward(result):
    training, layer = result.training, result.layer
    backward = {
        name: seconds for name, seconds in training.parts.items() if name.startswith("backward, ")
    }
    assert training.seconds == pytest.approx(layer.seconds + sum(backward.values()))
    assert len(backward) == len(result.gradients)
    assert 2 * layer.seconds < training.seconds < 10 * layer.seconds
    assert 3 * layer.dense_seconds < training.dense_seconds < 5 * layer.dense_seconds
    assert training.peak_memory_bytes > layer.peak_memory_bytes
    assert training.dense_peak_memory_bytes == 2 * layer.dense_peak_memory_bytes


def test_dense_equals_dense():
    """With every head DENSE the attention FLOPs are dense attention's, and the density is 1."""
    bands = torch.full((1, 40, 40), int(Band.DENSE))
    table = RoutingTable(bands, torch.zeros_like(bands), FreqFormerConfig(tile=(4, 4, 8)))
    routing = Routing(kind="fixed", table=table)
    found = simulate(scenario("wan2.1-14b", "h200", 65_536, preset="dense", routing=routing))
    assert found.density == 1
    assert found.counts.stages["attention"].flops == found.dense_counts.flops
    assert 0.5 < found.layer.speedup < 1.5


def test_the_prior_moves_heads_to_low_at_high_noise(result):
    first, last = result.heads_by_step[0], result.heads_by_step[-1]
    assert first[Band.LOW] > last[Band.LOW]
    assert first[Band.HIGH] < last[Band.HIGH]
    assert all(sum(heads) == 40 for heads in result.heads_by_step)
    fixed = simulate(replace(result.scenario, routing=Routing(kind="hard", schedule="fixed")))
    assert set(fixed.heads_by_step) == {tuple(result.allocation.count(band) for band in range(4))}
    assert fixed.generation.seconds == pytest.approx(50 * fixed.step.seconds)


def test_a_table_decides_by_step_and_layer():
    model = load_model("wan2.1-1.3b")
    bands = torch.zeros(2, 30, 12, dtype=torch.int64)
    bands[0, :, :6] = int(Band.HIGH)
    kept = torch.full_like(bands, 8)
    kept[1, 5] = 0
    config = FreqFormerConfig(tile=(4, 4, 8))
    rows = head_schedule(model, Routing(table=RoutingTable(bands, kept, config)), config)
    assert rows[0][0] == ((12, 0, 0, 0), replace(config, mid_tiles=8))
    assert rows[0][5] == ((12, 0, 0, 0), replace(config, mid_tiles=None))
    assert rows[-1][5] == ((6, 0, 6, 0), replace(config, mid_tiles=8))
    with pytest.raises(
        ProfileError, match=r"table has 30 layers of 12 heads; wan2.1-14b has 40 of 40"
    ):
        head_schedule(
            load_model("wan2.1-14b"), Routing(table=RoutingTable(bands, kept, config)), config
        )


def test_timesteps_are_shifted():
    model = load_model("wan2.1-14b")
    steps = timesteps(model)
    assert (len(steps), steps[0]) == (50, 1.0)
    assert steps[25] == pytest.approx(5 * 0.5 / (1 + 4 * 0.5))
    assert steps == sorted(steps, reverse=True)


@pytest.mark.parametrize("split", [(1, 1), (0, 0, 0), (1, -1, 1), (1.0, 1, 1), (10**400, 1, 1)])
def test_bad_splits_are_refused(split):
    with pytest.raises(ProfileError, match="split is"):
        Routing(split=split)


def test_splits_are_taken_in_proportion():
    thirds = FreqFormerConfig(allocation="thirds")
    assert Routing(split=(1, 1, 4)).initial(12, thirds) == [0] * 2 + [1] * 2 + [2] * 8
    assert Routing(split=(1, 0, 0)).initial(3, thirds) == [0, 0, 0]


@pytest.mark.parametrize("kind", ["soft", "timestep", "hard", "fixed"])
def test_without_a_split_heads_start_as_the_record_says(kind):
    """Whatever the routing, as in a layer of that record."""
    for preset, expected in (("default", (0, 0, 12, 0)), ("paper", (4, 4, 4, 0))):
        case = scenario("wan2.1-1.3b", "h200", 4096, preset=preset, routing=Routing(kind=kind))
        assert count_heads(case.initial) == expected
        assert count_heads(simulate(case).allocation) == expected
    own = FreqFormerConfig(allocation=(0,) * 11 + (1,))
    case = scenario("wan2.1-1.3b", "h200", 4096, config=own, routing=Routing(kind=kind))
    assert count_heads(case.initial) == (11, 1, 0, 0)


def test_more_tokens_cost_more_and_gain_more(result):
    larger = simulate(scenario("wan2.1-14b", "h200", 262_144))
    assert larger.layer.seconds > 3.5 * result.layer.seconds
    assert larger.layer.speedup > 3 * result.layer.speedup
    assert larger.step.peak_memory_bytes > result.step.peak_memory_bytes


def test_workspace_is_the_fused_paths():
    """Peak memory rests on the buffers that the fused path says it holds, to the byte."""
    from freqformer.ops.fused import workspace_bytes as held

    for preset in ("default", "paper"):
        for name, tokens in (
            ("wan2.1-14b", 65_536),
            ("hunyuanvideo", 131_072),
            ("cogvideox-5b", 65_536),
        ):
            found = simulate(
                scenario(name, "h200", tokens, preset=preset, routing=Routing(kind="fixed"))
            )
            assert found.counts.workspace_bytes == held(found.plan, 1, torch.bfloat16), name


def test_sensitivity_changes_one_thing(result):
    variants = sensitivity(result.scenario)
    assert {variant.knob for variant in variants} == set(KNOBS) - {"density"}
    by_knob = {knob: [v.result.layer.seconds for v in variants if v.knob == knob] for knob in KNOBS}
    assert by_knob["mid_tiles"] == sorted(by_knob["mid_tiles"])
    assert by_knob["window"] == sorted(by_knob["window"])
    assert by_knob["compression"] == sorted(by_knob["compression"], reverse=True)


@settings(deadline=None)
@given(
    costs=st.lists(st.sampled_from([0.5, 1.0, 3.0, 7.5]), min_size=1, max_size=24), data=st.data()
)
def test_heads_are_dealt_evenly_and_never_worse_than_in_order(costs, data):
    gpus = data.draw(st.integers(1, len(costs)))
    busiest = {}
    for balance in ("naive", "balanced"):
        groups = assign_heads(costs, gpus, balance)
        assert sorted(head for group in groups for head in group) == list(range(len(costs)))
        assert max(map(len, groups)) - min(map(len, groups)) <= 1
        busiest[balance] = max(sum(costs[head] for head in group) for group in groups)
    assert busiest["balanced"] <= busiest["naive"]


def test_balance_evens_out_what_order_does_not():
    costs = [9.0, 8, 7, 3, 2, 1, 1]
    loads = {
        balance: sorted(
            sum(costs[head] for head in group) for group in assign_heads(costs, 3, balance)
        )
        for balance in ("naive", "balanced")
    }
    assert loads["naive"] == [2, 5, 24]
    assert loads["balanced"] == [10, 10, 11]


def test_scale_out(result):
    rows = scale_out(result)
    assert [row.gpus for row in rows] == [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024]
    assert rows[0].seconds == pytest.approx(result.step.seconds)
    assert rows[0].dense_seconds == pytest.approx(result.step.dense_seconds)
    assert rows[0].communication_seconds == 0
    for row in rows:
        assert row.ulysses * row.query_split == row.gpus
        assert row.seconds <= row.naive_seconds * (1 + 1e-9)
        # No more than a perfect speed-up, and the bytes of four tensors.
        assert row.seconds >= rows[0].seconds / row.gpus * (1 - 1e-9)
        share = 4 * 64_800 * 5120 * 2 * (row.ulysses - 1) / row.ulysses / row.gpus
        assert row.all_to_all_bytes == pytest.approx(share)
    assert any(
        row.seconds < 0.98 * row.naive_seconds and row.imbalance < 0.9 * row.naive_imbalance
        for row in rows
    )
    with pytest.raises(ProfileError, match="gpus is 0"):
        scale_out(result, [0])


@pytest.mark.parametrize(
    ("model", "split"), [("freqformer", (1, 1, 4)), ("cogvideox-5b", (4, 1, 1))]
)
def test_balanced_heads_never_take_longer(model, split):
    """Also where heads don't divide by the GPUs, and with a router in every layer."""
    found = simulate(scenario(model, "h200", 65_536, routing=Routing(kind="hard", split=split)))
    rows = scale_out(found)
    assert rows[0].seconds == pytest.approx(found.step.seconds)
    assert all(row.seconds <= row.naive_seconds * (1 + 1e-12) for row in rows)


def test_dense_counts_of_known_floor():
    """field-notes: Wan2.1 14B at 720p needs 167 ms a layer at 700 TFLOP/s, HunyuanVideo 248 ms."""
    assert dense_counts(75_600, 40, 128).flops / 700e12 == pytest.approx(0.167, abs=5e-4)
    assert dense_counts(118_800, 24, 128).flops / 700e12 == pytest.approx(0.248, abs=5e-4)
