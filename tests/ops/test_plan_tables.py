"""Tables of a plan: made once, shared between launches, and freed with the plan."""

from __future__ import annotations

import gc
import threading
import weakref
from dataclasses import replace

import pytest
import torch

from freqformer.config import FreqFormerConfig
from freqformer.grid import Grid
from freqformer.ops.block_sparse.tables import launch_tables
from freqformer.ops.merge.backward_tables import collapse_tables
from freqformer.ops.merge.tables import merge_tables
from freqformer.ops.plan_tables import kept_by_plan, tile_order
from freqformer.ops.prologue.tables import prologue_tables
from freqformer.plan import AttentionPlan, build_plan

CPU = torch.device("cpu")
SMALL = FreqFormerConfig(tile=(2, 2, 4), compression=32, mid_pattern="axial", summary_tokens=2)


def own_plan() -> AttentionPlan:
    """A plan that no cache holds."""
    return replace(build_plan(Grid(3, 5, 7), SMALL, num_heads=2, head_dim=16))


def every_table(plan: AttentionPlan) -> dict[str, object]:
    launch = launch_tables(plan, CPU)
    return {
        "launch": launch,
        "high transposed": launch.high_transposed,
        "mid transposed": launch.mid_transposed,
        "prologue": prologue_tables(plan, CPU, torch.float32),
        "merge": merge_tables(plan, CPU, torch.float32),
        "collapse": collapse_tables(plan, CPU, torch.float32, "raster"),
        "order": tile_order(plan, CPU),
    }


def test_each_is_made_once_of_a_plan_and_its_other_arguments() -> None:
    calls = []

    @kept_by_plan
    def made(plan: AttentionPlan, device: torch.device, dtype: torch.dtype) -> object:
        calls.append((plan, device, dtype))
        return object()

    plan, other = own_plan(), own_plan()
    first = made(plan, CPU, torch.float32)
    assert made(plan, torch.device("cpu"), torch.float32) is first
    different = [made(*told) for told in ((plan, CPU, torch.float16), (other, CPU, torch.float32))]
    different.append(made(plan, torch.device("meta"), torch.float32))
    assert len({id(table) for table in (first, *different)}) == len(calls) == 4


def test_two_functions_keep_apart_what_they_make_of_the_same_arguments() -> None:
    plan = own_plan()
    names = [kept_by_plan(lambda plan, name=name: name)(plan) for name in ("one", "two")]
    assert names == ["one", "two"]


def test_tables_of_a_gpu_are_made_where_no_graph_warms_up() -> None:
    """In one other thread, whose memory isn't of a CUDA graph's pool, tables of other tables too;
    errors come through."""

    @kept_by_plan
    def thread(plan: AttentionPlan, device: torch.device) -> int:
        if plan.num_heads != 2:
            raise ValueError("heads")
        return threading.get_ident()

    @kept_by_plan
    def both(plan: AttentionPlan, device: torch.device) -> tuple[int, int]:
        return threading.get_ident(), thread(plan, device)

    plan = own_plan()
    assert thread(plan, CPU) == threading.get_ident()
    outer, inner = both(plan, torch.device("cuda", 0))
    assert outer == inner == thread(own_plan(), torch.device("cuda", 0)) != threading.get_ident()
    with pytest.raises(ValueError, match="heads"):
        thread(replace(plan, num_heads=1), torch.device("cuda", 0))


def test_launches_share_the_tile_order() -> None:
    plan = own_plan()
    order = tile_order(plan, CPU)
    for tables in (
        launch_tables(plan, CPU),
        prologue_tables(plan, CPU, torch.float32),
        prologue_tables(plan, CPU, torch.bfloat16),
        merge_tables(plan, CPU, torch.float32),
    ):
        assert tables.tile_offsets is order.offsets
        assert tables.raster is order.raster


def test_a_changed_copy_has_tables_of_its_own() -> None:
    plan = own_plan()
    tables = launch_tables(plan, CPU)
    assert launch_tables(replace(plan, num_heads=4), CPU) is not tables
    assert launch_tables(plan, CPU) is tables


def test_a_plan_that_dies_frees_its_tables() -> None:
    plan = own_plan()
    tables = every_table(plan)
    held = {name: weakref.ref(table) for name, table in tables.items()}
    del tables
    gc.collect()
    assert [name for name, table in held.items() if table() is None] == []
    del plan
    gc.collect()
    assert [name for name, table in held.items() if table() is not None] == []


def test_tables_made_in_inference_mode_serve_training() -> None:
    plan = own_plan()
    with torch.inference_mode():
        launch = launch_tables(plan, CPU)
    assert not launch.raster.is_inference()
    assert not launch.high_lists.is_inference()
