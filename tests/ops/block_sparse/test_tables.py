"""Static tables of the attention launch against the plan they are made from."""

from __future__ import annotations

import math

import pytest
import torch

from freqformer.buffers import selects_tiles
from freqformer.config import Band, FreqFormerConfig, MidPattern
from freqformer.grid import Grid
from freqformer.ops.block_sparse.tables import launch_tables, unseen_bias
from freqformer.plan import AttentionPlan, build_plan

CPU = torch.device("cpu")


def plan_of(text: int = 0, grid: tuple[int, int, int] = (5, 11, 13), **config) -> AttentionPlan:
    made = FreqFormerConfig(tile=(2, 4, 5), summary_tokens=6, **config)
    return build_plan(Grid(*grid), made, num_heads=2, head_dim=16, num_text_tokens=text)


def test_tiles_and_raster_places() -> None:
    plan = plan_of()
    tables = launch_tables(plan, CPU)
    assert torch.equal(tables.tile_offsets.diff(), tables.tile_counts.int())
    assert tables.tile_offsets[-1] == plan.layout.grid.num_tokens
    assert torch.equal(
        tables.raster.sort().values, torch.arange(plan.layout.grid.num_tokens, dtype=torch.int32)
    )
    assert not tables.uniform
    assert launch_tables(plan_of(grid=(4, 8, 10)), CPU).uniform
    assert launch_tables(plan, CPU) is tables


def test_unseen_tokens_by_counting() -> None:
    plan = plan_of()
    bias = unseen_bias(plan.high_lists, plan)
    for tile in range(plan.layout.num_tiles):
        listed = set(plan.high_lists[tile].tolist())
        for cell in range(plan.cells.num_cells):
            members = (plan.cells.cell_of_tile == cell).nonzero().flatten().tolist()
            left = sum(
                int(plan.layout.counts[member]) for member in members if member not in listed
            )
            assert float(bias[tile, cell]) == (math.log(left) if left else -math.inf)


@pytest.mark.parametrize("pattern", ["axial", "radial"])
def test_static_patterns_carry_lengths_and_bias(pattern: MidPattern) -> None:
    plan = plan_of(mid_pattern=pattern, radial_radius=1)
    tables = launch_tables(plan, CPU)
    assert plan.mid_lists is not None
    assert tables.mid_lists is not None
    assert tables.mid_lengths is not None
    assert tables.mid_bias is not None
    assert torch.equal(tables.mid_lists[0].long(), plan.mid_lists)
    assert torch.equal(tables.mid_lengths[0].long(), plan.lengths(Band.MID))
    assert torch.equal(tables.mid_bias[0], unseen_bias(plan.mid_lists, plan).float())
    assert not selects_tiles(tables.plan)


@pytest.mark.parametrize(
    "config", [{"mid_tiles": None}, {"mid_tiles": None, "mid_pattern": "axial"}, {"mid_tiles": 999}]
)
def test_every_tile_needs_no_list(config: dict) -> None:
    tables = launch_tables(plan_of(**config), CPU)
    assert tables.mid_lists is None
    assert tables.mid_bias is None
    assert not selects_tiles(tables.plan)


@pytest.mark.parametrize("text", [0, 1, 300])
def test_rows_are_ordered_by_their_longest_list(text: int) -> None:
    plan = plan_of(text, mid_tiles=3, window=(1, 2, 2))
    tables = launch_tables(plan, CPU)
    assert selects_tiles(tables.plan)
    side = plan.layout.block
    texts, tiles = -(-text // side), plan.layout.num_tiles
    low = -(-plan.num_low_tokens // side)
    summaries = -(-plan.cells.num_cells // side)
    assert tables.band_blocks.tolist() == [
        low + texts,
        3 + summaries + texts,
        4 + summaries + texts,
        tiles + texts,
    ]
