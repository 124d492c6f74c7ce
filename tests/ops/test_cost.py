"""What operations state of their cost: scratch memory by shapes, and no kernel in the statement."""

from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import replace

import pytest

from freqformer import FreqFormerConfig, Grid, build_plan
from freqformer.buffers import key_layout, power_of_two
from freqformer.config import Band
from freqformer.cost import Call, Cost
from freqformer.ops.block_sparse import cost as attention
from freqformer.ops.cost import backward_costs, forward_costs, training_bytes, workspace_bytes
from freqformer.ops.prologue import cost as prologue
from freqformer.ops.routing.cost import sampled_tiles, statistics_cost
from freqformer.ops.selection import cost as selection
from freqformer.routing.statistics import STATISTIC_TILES

HEADS, WIDTH = 3, 16


@pytest.mark.parametrize("features", ["full", "high_pass_values"])
@pytest.mark.parametrize("text", [0, 300])
@pytest.mark.parametrize(
    ("tokens", "mid_tiles"), [(130, 16), (16_384, 4), (16_384, None), (130_000, 16)]
)
def test_workspace_is_its_parts_each_by_its_shapes(tokens, mid_tiles, text, features):
    """Each buffer as the launches make it."""
    config = FreqFormerConfig(mid_tiles=mid_tiles, summary_tokens=8, band_features=features)
    plan = build_plan(
        Grid(1, 1, tokens), config, num_heads=HEADS, head_dim=WIDTH, num_text_tokens=text
    )
    tiles, low = plan.layout.num_tiles, plan.num_low_tokens
    queries = tokens + text + low
    own = {
        "prologue": (
            [(HEADS, queries, WIDTH), *[(HEADS, key_layout(plan).rows, WIDTH)] * 2],
            [(3, HEADS, tiles, WIDTH)],
        ),
        "attention": ([(HEADS, low, WIDTH)], [(HEADS, queries)]),
        "selection": ([], []),
    }
    if mid_tiles is not None and mid_tiles < tiles:
        own["selection"][1].extend(
            [
                (HEADS, tiles, mid_tiles),
                (HEADS, tiles, plan.cells.num_cells),
                (min(HEADS * -(-tiles // 16), 528), 16, power_of_two(tiles)),
            ]
        )
    parts = min(16, tiles // 64)
    if parts > 1:
        own["attention"][1].append((HEADS, parts, text, WIDTH + 1))
    expected = {
        name: 2 * sum(map(math.prod, wide)) + 4 * sum(map(math.prod, narrow))
        for name, (wide, narrow) in own.items()
    }
    assert prologue.workspace_bytes(plan, HEADS, 2) == expected["prologue"]
    assert attention.workspace_bytes(plan, HEADS, 2) == expected["attention"]
    assert selection.workspace_bytes(plan, HEADS) == expected["selection"]
    whole = workspace_bytes(plan, HEADS, 2)
    assert whole == sum(expected.values())
    assert training_bytes(plan, 2, low_branch=True) > training_bytes(plan, 2) > whole


def test_tiles_one_frame_deep_sample_boxes_too():
    """Differences in time are read off boxes across tiles, which are work items of their own."""
    for tile, sampled in (((2, 8, 8), STATISTIC_TILES), ((1, 8, 16), 2 * STATISTIC_TILES)):
        plan = build_plan(
            Grid(16, 64, 64), FreqFormerConfig(tile=tile), num_heads=1, head_dim=WIDTH
        )
        assert sampled_tiles(plan) == sampled


def test_costs_can_be_done_again_and_transposed():
    cost = Cost(1.0, 2.0, 3.0, 4.0, 5)
    assert cost.bytes == 7
    assert cost.again == Cost(0.0, 2.0, 3.0, 4.0, 5)
    assert cost.transposed == Cost(1.0, 2.0, 4.0, 3.0, 5)


def test_text_queries_are_in_one_group():
    """So that nothing counts them twice where a head has a LOW branch."""
    plan = build_plan(
        Grid(4, 16, 16), FreqFormerConfig(), num_heads=4, head_dim=WIDTH, num_text_tokens=7
    )
    call = Call(plan, {0: 1, 1: 1, 2: 2}, low_branch=True)  # type: ignore[dict-item]
    assert [(group.band, group.heads, group.text) for group in call.groups] == [
        (0, 1, True),
        (1, 1, True),
        (2, 2, True),
        (0, 3, False),
    ]
    assert attention.num_queries(call) == 4 * (1024 + 7) + 3 * plan.num_low_tokens - (
        1024 - plan.num_low_tokens
    )


def test_stating_costs_loads_no_kernel():
    """The simulator runs where there is no Triton, and waits for none."""
    code = (
        "import sys, freqformer.simulate, freqformer.ops.cost\n"
        "kernels = [name for name in sys.modules if name.split('.')[0] == 'triton'"
        " or '.triton' in name and name.startswith('freqformer')]\n"
        "assert not kernels, kernels"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr


def test_padding_costs_work_and_bytes_and_no_useful_flops():
    """Head_dim 96 is useful work of 96 channels, in buffers and products of 128."""
    padded, full = (
        Call(
            build_plan(
                Grid(8, 16, 32),
                FreqFormerConfig(mid_tiles=4, summary_tokens=8),
                num_heads=4,
                head_dim=head_dim,
                num_text_tokens=7,
                learned_summaries=True,
            ),
            {0: 1, 1: 1, 2: 2},  # type: ignore[dict-item]
            low_branch=True,
        )
        for head_dim in (96, 128)
    )
    for costs in (forward_costs, backward_costs):
        for name, cost in costs(padded).items():
            whole = costs(full)[name]
            assert cost.flops == pytest.approx(0.75 * whole.flops), name
            assert cost.executed == pytest.approx(whole.executed), name
            assert 0.75 * whole.bytes <= cost.bytes <= whole.bytes, name
    assert attention.kv_bytes(padded) == attention.kv_bytes(full)
    assert statistics_cost(padded).executed == statistics_cost(full).executed
    held, wider = (prologue.workspace_bytes(call.plan, 4, 2) for call in (padded, full))
    assert held == wider
    assert training_bytes(padded.plan, 2) < training_bytes(full.plan, 2)


def test_a_norm_across_heads_reads_queries_and_keys_once_more():
    config = FreqFormerConfig(mid_tiles=2)
    plan = build_plan(Grid(4, 16, 16), config, num_heads=HEADS, head_dim=WIDTH, num_text_tokens=10)
    own = Call(plan, {Band.MID: HEADS})
    across = replace(own, norm_across_heads=True)
    rows = 2 * HEADS * (1024 + 10)
    scales = 2 * (1024 + 10) * 4
    added = forward_costs(across).pop("norm")
    assert (added.read_bytes, added.write_bytes, added.launches) == (rows * WIDTH * 2, scales, 1)
    assert added.flops == 2 * rows * WIDTH
    back = backward_costs(across)
    assert back["norm again"] == added.again
    assert back["norm"].write_bytes == rows * WIDTH * 2
    assert back["norm"].read_bytes == 2 * rows * WIDTH * 2 + rows * 4 + scales
    assert {name: x for name, x in back.items() if "norm" not in name} == backward_costs(own)
    assert "norm" not in forward_costs(own)
