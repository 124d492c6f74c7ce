"""Scheduling and time: the quick makespan is the slow one, and limits are those of the machine."""

from __future__ import annotations

import heapq
import random
from dataclasses import replace

import pytest

from freqformer import Band, FreqFormerConfig, Grid, build_plan
from freqformer.cost import Call
from freqformer.ops.block_sparse.cost import query_counts
from freqformer.simulate.model.counts import dense_counts, layer_counts
from freqformer.simulate.model.efficiency import load_efficiency
from freqformer.simulate.model.hardware import load_hardware
from freqformer.simulate.model.roofline import Machine, work_items, working_set
from freqformer.simulate.model.schedule import makespan


def one_by_one(items, slots):
    free = [0.0] * slots
    for seconds, count in items:
        for _ in range(count):
            heapq.heapreplace(free, free[0] + seconds)
    return max(free)


def test_makespan_is_that_of_dealing_items_one_by_one():
    rng = random.Random(5)
    for _ in range(500):
        lengths = [
            rng.choice([0.25, 1.0, 2.0, 3.5, 7.0, rng.random()]) for _ in range(rng.randint(0, 5))
        ]
        items = [(length, rng.randint(0, 150)) for length in lengths]
        slots = rng.randint(1, 20)
        assert makespan(items, slots) == pytest.approx(one_by_one(items, slots), rel=1e-9)


def test_makespan_refuses_what_makes_no_sense():
    for items, slots in (([(1.0, 1)], 0), ([(-1.0, 1)], 2), ([(1.0, -1)], 2)):
        with pytest.raises(ValueError, match="slots is"):
            makespan(items, slots)


def test_work_items_are_the_plans_tasks():
    """Lengths and numbers of work items are those of `task_order`, whose long lists are split
    alike."""
    grid, config = (
        Grid(5, 11, 13),
        FreqFormerConfig(
            tile=(2, 4, 4), mid_pattern="radial", window=(2, 2, 2), summary_tokens=256
        ),
    )
    for text in (0, 100):
        plan = build_plan(
            grid, config, num_heads=4, head_dim=64, num_text_tokens=text, learned_summaries=True
        )
        allocation = [0, 1, 2, 1]
        items = work_items(Call(plan, {Band.LOW: 1, Band.MID: 2, Band.HIGH: 1}))
        blocks = -(-text // plan.layout.block)
        longest = max(
            int(plan.key_blocks(Band(band))[: -blocks or None].max()) for band in set(allocation)
        )
        tasks = plan.task_order(allocation, longest=longest)
        lengths = (tasks[:, 3] - tasks[:, 2]).tolist()
        assert (
            sorted((length for length, count in items for _ in range(count)), reverse=True)
            == lengths
        )


@pytest.fixture
def machine() -> Machine:
    hardware = load_hardware("h200")
    return Machine(hardware, load_efficiency(hardware))


@pytest.fixture
def plan():
    return build_plan(
        Grid(18, 45, 80), FreqFormerConfig(summary_tokens=256), num_heads=12, head_dim=128
    )


def test_no_stage_beats_the_machine(machine, plan):
    allocation = [0, 1, 2] * 4
    counts = layer_counts(plan, allocation)
    for name, time in machine.layer(counts).items():
        assert time.seconds * machine.hardware.memory_bandwidth >= counts.stages[name].bytes * (
            1 - 1e-9
        ), name
        assert time.seconds * machine.hardware.matrix_flops >= counts.stages[name].executed, name
    dense = dense_counts(64_800, 12, 128)
    assert machine.dense(dense, 128).seconds * machine.hardware.matrix_flops >= dense.flops


def test_wave_quantisation_shows(machine):
    """One item more than the slots take costs a whole wave; many items cost their mean."""
    config = FreqFormerConfig(tile=(1, 1, 128), summary_tokens=0, window=(1, 1, 3))
    slots = round(machine.hardware.processors * machine.efficiency.attention_slots)

    def seconds(tiles: int) -> float:
        plan = build_plan(Grid(1, 1, 128 * tiles), config, num_heads=1, head_dim=128)
        return machine.layer(layer_counts(plan, [2]))["attention"].compute_s

    assert seconds(slots + 1) == pytest.approx(2 * seconds(slots))
    assert seconds(slots) == pytest.approx(seconds(3))
    assert seconds(20 * slots + 1) == pytest.approx(21 / 20 * seconds(20 * slots))


def test_small_heads_run_at_a_lower_rate(machine):
    at = [machine.attention_rate(head_dim, 0.5) for head_dim in (32, 64, 128)]
    assert at[0] < at[1] < at[2] == machine.hardware.matrix_flops * 0.5


def test_keys_are_read_again_only_where_the_cache_is_too_small(machine, plan):
    allocation = [int(Band.MID)] * 12
    counts = layer_counts(plan, allocation)
    huge = Machine(replace(machine.hardware, l2_bytes=1e11), machine.efficiency)
    small = Machine(replace(machine.hardware, l2_bytes=1e5), machine.efficiency)
    read_once = huge.layer(counts)["attention"].traffic_bytes
    assert read_once == counts.stages["attention"].bytes
    again = small.layer(counts)["attention"].traffic_bytes
    streamed = 12 * query_counts(plan, Band.MID).kv_slots * 2 * 128 * 2
    assert read_once < again <= counts.stages["attention"].bytes + streamed


def test_working_set_counts_the_tiles_of_running_items(plan):
    """For the window: distinct tiles in the lists of as many neighbours as run; LOW reads its
    extras alone."""
    middle = plan.high_lists[(plan.layout.num_tiles - 10) // 2 :][:10]
    extra = sum(plan.extra_segments(Band.HIGH))
    assert working_set(plan, Band.HIGH, 10) == len(set(middle.flatten().tolist())) * 128 + extra
    assert working_set(plan, Band.LOW, 10) == sum(plan.extra_segments(Band.LOW))
    assert working_set(plan, Band.DENSE, 1) == plan.layout.num_tiles * 128


def test_router_runs_its_sampled_tiles_in_waves(machine):
    """Two programs on each of 132 processors: 8 heads of 32 tiles run at once, 9 take a second
    wave."""

    def seconds(heads: int) -> float:
        plan = build_plan(
            Grid(16, 64, 64), FreqFormerConfig(summary_tokens=256), num_heads=heads, head_dim=128
        )
        allocation = [2] * heads
        time = machine.layer(layer_counts(plan, allocation, router="statistics"))["router"]
        return time.compute_s - machine.efficiency.router_s

    assert seconds(1) == pytest.approx(seconds(8))
    assert seconds(9) == pytest.approx(2 * seconds(8))


def test_router_runs_the_tiles_that_statistics_are_taken_over(machine):
    """One-frame-deep tiles sample 64 of them, of which half as many heads fill a wave."""

    def seconds(heads: int, tile: tuple[int, int, int]) -> float:
        config = FreqFormerConfig(tile=tile)
        plan = build_plan(Grid(16, 64, 64), config, num_heads=heads, head_dim=128)
        counts = layer_counts(plan, [2] * heads, router="statistics")
        return machine.layer(counts)["router"].compute_s - machine.efficiency.router_s

    assert seconds(5, (1, 8, 16)) == pytest.approx(2 * seconds(4, (1, 8, 16)))
    assert seconds(5, (2, 8, 8)) == pytest.approx(seconds(4, (2, 8, 8)))
    assert seconds(4, (1, 8, 16)) == pytest.approx(seconds(8, (2, 8, 8)))
