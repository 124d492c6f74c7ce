"""Backward: counts against PyTorch's FLOP counter and real tensors, time against its own limits."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

import pytest
import torch
from tests.simulate.model.test_counts import HEAD_DIM, scenario
from torch.utils.flop_counter import FlopCounterMode

from freqformer import Band, FreqFormerConfig, Grid, build_plan, frequency_attention
from freqformer.cost import Call
from freqformer.ops.block_sparse.cost import num_keys, num_queries
from freqformer.ops.cost import training_bytes
from freqformer.ops.prologue import prepare
from freqformer.simulate.model.counts import dense_counts, layer_counts
from freqformer.simulate.model.efficiency import load_efficiency
from freqformer.simulate.model.gradients import (
    dense_gradient_time,
    gradient_counts,
    gradient_times,
)
from freqformer.simulate.model.hardware import load_hardware
from freqformer.simulate.model.roofline import Machine


@pytest.fixture
def machine() -> Machine:
    hardware = load_hardware("h200")
    return Machine(hardware, load_efficiency(hardware))


@pytest.mark.parametrize("pattern", ["topk", "axial"])
@pytest.mark.parametrize("band", [Band.MID, Band.HIGH, Band.DENSE])
def test_attention_equals_pytorchs_counter(band, pattern):
    """Matrix products that the eager path executes over full tiles, forward and backward, are the
    useful FLOPs."""
    grid = Grid(8, 8, 16)
    config = FreqFormerConfig(
        tile=(4, 4, 8), mid_pattern=pattern, mid_tiles=3, window=(1, 2, 1), summary_tokens=0
    )
    plan = build_plan(grid, config, num_heads=2, head_dim=HEAD_DIM)
    query, key, value = (
        torch.randn(1, grid.num_tokens, 2, HEAD_DIM, requires_grad=True) for _ in range(3)
    )
    allocation = [int(band)] * 2
    counts = layer_counts(plan, allocation)
    with FlopCounterMode(display=False) as counter:
        out = frequency_attention(
            query, key, value, grid=grid, allocation=allocation, config=config, impl="eager"
        )
    # The choice of tiles is a matrix product of tile means.
    assert (
        counter.get_total_flops()
        == counts.stages["attention"].flops + counts.stages["selection"].flops
    )
    with FlopCounterMode(display=False) as counter:
        out.sum().backward()
    assert counter.get_total_flops() == gradient_counts(counts)["attention"].flops


def test_stages_add_up_to_the_backward():
    for seed in range(40):
        plan, allocation = scenario(seed, random.Random(seed).choice(["topk", "axial", "radial"]))
        counts = layer_counts(plan, allocation)
        gradients = gradient_counts(counts)
        assert sum(stage.flops for stage in gradients.values()) == pytest.approx(
            counts.backward_flops
        ), seed
        assert gradients["attention"].executed == 3.5 * counts.stages["attention"].executed
        # What the forward's merge reads and writes, its transpose writes and reads.
        assert gradients["merge"].read_bytes == counts.stages["merge"].write_bytes
        assert gradients["merge"].write_bytes == counts.stages["merge"].read_bytes


def test_attention_writes_a_gradient_for_every_query_key_and_value():
    """Counted on the tensors that the reference prologue makes."""
    for seed in range(40):
        plan, allocation = scenario(seed)
        if plan.num_text_tokens or plan.learned_summaries:
            continue
        queries = keys = 0
        heads = Counter(map(Band, allocation))
        for band, count in heads.items():
            rows = torch.randn(count, plan.layout.grid.num_tokens, HEAD_DIM)
            if band == Band.DENSE:
                queries, keys = queries + rows[..., 0].numel(), keys + rows[..., 0].numel()
                continue
            made = prepare(
                rows,
                rows,
                rows,
                band=band,
                plan=plan,
                rows=torch.arange(count),
                parameters=None,
                token_order="raster",
            )
            queries += made.query[..., 0].numel()
            keys += sum(x[..., 0].numel() for x in (made.key, made.extra_key) if x is not None)
        assert (num_queries(Call(plan, heads)), num_keys(Call(plan, heads))) == (queries, keys), (
            seed
        )
        gradients = gradient_counts(layer_counts(plan, allocation))
        assert gradients["attention"].write_bytes == (queries + 2 * keys) * HEAD_DIM * 2, seed


def test_halving_a_rate_doubles_its_time(machine):
    plan = build_plan(
        Grid(16, 64, 64),
        FreqFormerConfig(summary_tokens=256),
        num_heads=6,
        head_dim=128,
        learned_summaries=True,
    )
    allocation = [0, 1, 2] * 2
    counts = layer_counts(plan, allocation)
    before = gradient_times(machine, counts)
    assert list(before) == list(gradient_counts(counts))
    for field, name, part in (
        ("attention_gradient_rate", "attention", "compute_s"),
        ("pooling_gradient_rate", "summaries", "compute_s"),
        ("prologue_gradient_bandwidth", "prologue", "memory_s"),
        ("merge_gradient_bandwidth", "merge", "memory_s"),
    ):
        slower = replace(machine.efficiency, **{field: getattr(machine.efficiency, field) / 2})
        after = gradient_times(replace(machine, efficiency=slower), counts)
        assert getattr(after[name], part) == pytest.approx(2 * getattr(before[name], part)), field
        assert all(after[other] == before[other] for other in before if other != name), field


def test_dense_backward_is_two_and_a_half_forwards_at_the_same_rate(machine):
    same = replace(machine.efficiency, dense_gradient_rate=machine.efficiency.dense_rate)
    counts = dense_counts(65_536, 8, 128)
    machine = replace(machine, efficiency=same)
    assert dense_gradient_time(machine, counts, 128).compute_s == pytest.approx(
        2.5 * machine.dense(counts, 128).compute_s
    )


def test_training_holds_more_than_the_gradients():
    """At least the output and what it rests on, the buffers and all gradients; learned summaries
    hold more."""
    sizes = []
    for learned in (False, True):
        plan = build_plan(
            Grid(4, 16, 16),
            FreqFormerConfig(summary_tokens=256),
            num_heads=3,
            head_dim=64,
            learned_summaries=learned,
        )
        tensor = 1024 * 3 * 64 * 2
        sizes.append(training_bytes(plan, 2))
        assert sizes[-1] > 11 * tensor
    assert sizes[0] < sizes[1]
