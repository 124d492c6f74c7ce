"""The plan: its costs against counting by hand, its work items, and what it refuses."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from freqformer.config import Band, FreqFormerConfig
from freqformer.grid import Grid
from freqformer.patterns import SummaryCells, topk_tiles
from freqformer.plan import AttentionPlan, Selection, build_plan

HEAD_DIM = 16
ALL_BANDS = [0, 1, 2, 3]
structures = st.fixed_dictionaries(
    {
        "grid": st.builds(Grid, *[st.integers(1, 9)] * 3),
        "pattern": st.sampled_from(("topk", "axial", "radial")),
        "tile": st.sampled_from(((1, 2, 4), (2, 2, 2), (4, 4, 8))),
        "kept": st.sampled_from((None, 1, 3)),
        "summaries": st.sampled_from((0, 3, 256)),
        "text": st.sampled_from((0, 1, 130)),
        "learned": st.booleans(),
    }
)


def _build(structure: dict[str, Any]) -> AttentionPlan:
    config = FreqFormerConfig(
        tile=structure["tile"],
        mid_pattern=structure["pattern"],
        mid_tiles=structure["kept"],
        summary_tokens=structure["summaries"],
        compression=4,
    )
    return build_plan(
        structure["grid"],
        config,
        num_heads=4,
        head_dim=HEAD_DIM,
        num_text_tokens=structure["text"],
        learned_summaries=structure["learned"],
    )


def _lists(plan: AttentionPlan, band: Band) -> list[list[int]]:
    """Key tiles of every query tile; for top-k some list of the right length."""
    tiles = plan.layout.num_tiles
    if band == Band.DENSE:
        return [list(range(tiles)) for _ in range(tiles)]
    lists = plan.high_lists if band == Band.HIGH else plan.mid_lists
    if lists is None:
        return [list(range(plan.mid_capacity)) for _ in range(tiles)]
    return [[tile for tile in row if tile >= 0] for row in lists.tolist()]


def _extra_segments(plan: AttentionPlan, band: Band) -> list[int]:
    """Extra keys by segment, as the design lists them per band."""
    cells = plan.cells.num_cells
    learned = cells * plan.learned_summaries
    low = plan.num_low_tokens
    segments = {
        Band.LOW: [low, learned, learned],
        Band.MID: [cells, learned],
        Band.HIGH: [cells, learned],
        Band.DENSE: [],
    }[band]
    return [*segments, plan.num_text_tokens]


def _side(plan: AttentionPlan) -> int:
    """Slots of a block."""
    return 64 if math.prod(plan.layout.tile) <= 64 else 128


@settings(max_examples=100)
@given(structures, st.sampled_from(list(Band)))
def test_costs_are_what_one_counts(structure: dict[str, Any], band: Band) -> None:
    plan = _build(structure)
    counts, n, text = plan.layout.counts.tolist(), plan.layout.grid.num_tokens, plan.num_text_tokens
    segments, lists = _extra_segments(plan, band), _lists(plan, band)
    pairs, blocks, side = 0, 0, _side(plan)

    def cut(tokens: int) -> int:
        return math.ceil(tokens / side)

    if band == Band.LOW:
        pairs += plan.num_low_tokens * sum(segments)
        blocks += cut(plan.num_low_tokens) * sum(map(cut, segments))
    else:
        for tile, listed in enumerate(lists):
            pairs += counts[tile] * (sum(counts[key] for key in listed) + sum(segments))
            blocks += len(listed) + sum(map(cut, segments))
    pairs += text * (n + text)
    blocks += cut(text) * (len(counts) + cut(text))
    flops = plan.band_flops(band)
    assert flops.executed == 4 * HEAD_DIM * side**2 * blocks
    assert plan.kv_bytes([band] * 4, element_size=4) == 4 * 2 * 4 * HEAD_DIM * side * blocks
    if band != Band.MID or plan.mid_lists is not None:
        assert flops.useful == 4 * HEAD_DIM * pairs
        assert flops.useful <= flops.executed


@pytest.mark.parametrize(
    ("tile", "padding"),
    [((4, 4, 4), 1.0), ((4, 4, 8), 1.0), ((3, 4, 4), (64 / 48) ** 2), ((4, 4, 5), (128 / 80) ** 2)],
)
def test_kernels_compute_blocks_of_a_tile(tile: tuple[int, int, int], padding: float) -> None:
    """Of 64 slots where no tile holds more, as the launch's blocks have; of 128 else."""
    config = FreqFormerConfig(tile=tile, mid_tiles=2, summary_tokens=0)
    grid = Grid(*(4 * side for side in tile))
    plan = build_plan(grid, config, num_heads=1, head_dim=HEAD_DIM)
    flops = plan.band_flops(Band.MID)
    assert flops.executed / flops.useful == pytest.approx(padding)
    assert (1 + plan.layout.padding) ** 2 == pytest.approx(padding)


def test_useful_flops_of_topk_are_the_mean_over_choices() -> None:
    config = FreqFormerConfig(tile=(2, 2, 2), mid_tiles=3, summary_tokens=0)
    plan = build_plan(Grid(3, 3, 5), config, num_heads=1, head_dim=HEAD_DIM)
    counts, tiles = plan.layout.counts.double(), plan.layout.num_tiles
    choices = []
    for _ in range(4000):
        lists = topk_tiles(torch.randn(1, tiles, 8), torch.randn(1, tiles, 8), 3)[0]
        choices.append(float((counts * counts[lists].sum(-1)).sum()))
    mean = sum(choices) / len(choices)
    spread = torch.tensor(choices).std() / math.sqrt(len(choices))
    assert plan.band_flops(Band.MID).useful / (4 * HEAD_DIM) == pytest.approx(
        mean, abs=4 * float(spread)
    )


@settings(max_examples=50)
@given(structures)
def test_totals_and_density(structure: dict[str, Any]) -> None:
    plan = _build(structure)
    n, text = plan.layout.grid.num_tokens, plan.num_text_tokens
    assert plan.band_costs() == tuple(plan.band_flops(band).useful for band in Band)
    assert plan.flops(ALL_BANDS).useful == pytest.approx(sum(plan.band_costs()))
    assert plan.flops(ALL_BANDS).executed == sum(plan.band_flops(band).executed for band in Band)
    assert plan.band_costs()[Band.DENSE] == 4 * HEAD_DIM * (n + text) ** 2
    assert plan.density([3, 3, 3, 3]) == 1
    assert plan.density(ALL_BANDS) == pytest.approx(
        sum(plan.band_costs()) / (4 * plan.band_costs()[Band.DENSE])
    )


@settings(max_examples=50)
@given(structures, st.permutations(ALL_BANDS), st.sampled_from((None, 1, 2, 5)))
def test_tasks_cover_every_block_once_longest_first(
    structure: dict[str, Any], bands: list[int], longest: int | None
) -> None:
    plan = _build(structure)
    tasks = plan.task_order(bands, longest)
    lengths = tasks[:, 3] - tasks[:, 2]
    assert (lengths[:-1] >= lengths[1:]).all()
    assert longest is None or lengths.max() <= longest
    for head, band in enumerate(bands):
        expected = plan.key_blocks(Band(band)).tolist()
        own = tasks[tasks[:, 0] == head]
        assert own[:, 1].unique().tolist() == list(range(len(expected)))
        for block, total in enumerate(expected):
            pieces = own[own[:, 1] == block]
            covered = [
                i for start, end in sorted(pieces[:, 2:].tolist()) for i in range(start, end)
            ]
            assert covered == list(range(total))
            sizes = (pieces[:, 3] - pieces[:, 2]).tolist()
            assert max(sizes) - min(sizes) <= 1


@given(structures)
def test_segments_and_validity(structure: dict[str, Any]) -> None:
    plan = _build(structure)
    plan.validate()
    n, cells = plan.layout.grid.num_tokens, plan.cells.num_cells
    low = n + plan.num_low_tokens
    assert plan.segments == (0, n, low, low + 3 * cells, low + 3 * cells + plan.num_text_tokens)


def _plan(**changes: Any) -> AttentionPlan:
    config = FreqFormerConfig(
        summary_tokens=256, tile=(2, 2, 2), mid_tiles=2, mid_pattern=changes.pop("pattern", "topk")
    )
    return build_plan(Grid(4, 4, 4), config, num_heads=2, head_dim=HEAD_DIM, **changes)


def test_plans_are_built_once() -> None:
    assert _plan() is _plan()
    assert _plan() is not _plan(num_text_tokens=1)


def test_no_tile_limit_keeps_every_tile_in_every_pattern() -> None:
    for pattern in ("topk", "axial", "radial"):
        config = FreqFormerConfig(tile=(2, 2, 2), mid_tiles=None, mid_pattern=pattern)
        plan = build_plan(Grid(4, 4, 4), config, num_heads=2, head_dim=HEAD_DIM)
        assert plan.lengths(Band.MID).tolist() == [8] * 8


def _selection(change: str) -> torch.Tensor:
    tiles = torch.stack([torch.arange(8), (torch.arange(8) + 1) % 8], -1).expand(1, 2, 8, 2).clone()
    edits = {
        "twice": lambda: tiles[0, 0, 3].copy_(torch.tensor([3, 3])),
        "outside": lambda: tiles[0, 1, 0].copy_(torch.tensor([0, 8])),
        "below": lambda: tiles[0, 1, 0].copy_(torch.tensor([0, -2])),
        "own": lambda: tiles[0, 0, 5].copy_(torch.tensor([1, 2])),
        "gap": lambda: tiles[0, 0, 5].copy_(torch.tensor([-1, 5])),
        "short": lambda: tiles[0, 0, 5].copy_(torch.tensor([5, -1])),
    }
    if change in edits:
        edits[change]()
    shapes = {
        "float": lambda: tiles.float(),
        "bool": lambda: tiles.bool(),
        "rank": lambda: tiles[0],
        "heads": lambda: tiles[:, :1],
        "tiles": lambda: tiles[:, :, :7],
        "none kept": lambda: tiles[..., :0],
        "int32": lambda: tiles.int(),
    }
    return shapes[change]() if change in shapes else tiles


@pytest.mark.parametrize("change", ["right", "short", "int32"])
def test_right_selections_pass(change: str) -> None:
    plan, selection = _plan(), Selection(_selection(change))
    plan.validate(selection)
    lists = plan.check_selection(selection, 1, (torch.tensor([0]), torch.tensor([1])))
    assert torch.equal(lists[0], selection.tiles[0, 1].long())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("twice", "names a tile twice"),
        ("outside", "outside 0 to 7"),
        ("below", "outside 0 to 7"),
        ("own", "leaves a tile out of its own list"),
        ("gap", "-1 before the end"),
        *(
            (shape, "whole numbers")
            for shape in ("float", "bool", "rank", "heads", "tiles", "none kept")
        ),
    ],
)
def test_wrong_selections_are_refused(change: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _plan().validate(Selection(_selection(change)))


def test_selection_of_another_batch_is_refused() -> None:
    with pytest.raises(ValueError, match=r"whole numbers \(2, 2, 8"):
        _plan().check_selection(
            Selection(_selection("right")), 2, (torch.tensor([0, 1]), torch.tensor([0, 0]))
        )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda plan: {"high_lists": plan.high_lists[:, :1].expand(-1, 2)},
            "high_lists names a tile twice",
        ),
        (lambda plan: {"high_lists": plan.high_lists + 1}, "high_lists names tiles outside"),
        (
            lambda plan: {"mid_lists": torch.zeros(8, 1, dtype=torch.int64)},
            "mid_lists leaves a tile out",
        ),
        (
            lambda plan: {"cells": SummaryCells(plan.cells.cell_of_tile, plan.cells.counts + 1)},
            "other than 64 tokens",
        ),
    ],
)
def test_wrong_plans_are_refused(change: Any, message: str) -> None:
    plan = _plan(pattern="radial")
    with pytest.raises(ValueError, match=message):
        replace(plan, **change(plan)).validate()


@pytest.mark.parametrize("allocation", [[0, 1, 2], [0, 4], [-1, 0], []])
def test_wrong_allocations_are_refused(allocation: list[int]) -> None:
    for cost in (_plan().flops, _plan().kv_bytes, _plan().density, _plan().task_order):
        with pytest.raises(ValueError, match="one per head"):
            cost(allocation)


@pytest.mark.parametrize(
    ("name", "value"), [("num_heads", 0), ("head_dim", -1), ("num_text_tokens", -1)]
)
def test_wrong_sizes_are_refused(name: str, value: int) -> None:
    sizes = {"num_heads": 1, "head_dim": 1, "num_text_tokens": 0, name: value}
    with pytest.raises(ValueError, match=name):
        build_plan(Grid(2, 2, 2), FreqFormerConfig(), **sizes)
