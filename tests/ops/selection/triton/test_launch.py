"""The selection in Triton's interpreter: the best tiles, ties, own tile, and the bias of low
summaries."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from freqformer import buffers
from freqformer.config import Band, FreqFormerConfig
from freqformer.grid import Grid
from freqformer.plan import AttentionPlan, build_plan

triton = pytest.importorskip("triton")
if not triton.knobs.runtime.interpret:
    pytest.skip("TRITON_INTERPRET=1 is not set: kernels would need a GPU", allow_module_level=True)

from tests.support.interpreter import patch_language_once  # noqa: E402
from tests.support.numerics import nan_filled_allocations  # noqa: E402

from freqformer.ops.prologue.tables import prologue_tables  # noqa: E402
from freqformer.ops.selection import api  # noqa: E402
from freqformer.ops.selection.reference import unseen_bias  # noqa: E402
from freqformer.ops.selection.triton import launch  # noqa: E402
from freqformer.patterns import topk_tiles  # noqa: E402

# The interpreter's own: it turns arrays of one element into loop bounds.
pytestmark = pytest.mark.filterwarnings(
    "ignore:Conversion of an array with ndim:DeprecationWarning"
)
BANDS = torch.tensor([Band.MID, Band.HIGH, Band.MID], dtype=torch.int32)
MID = [0, 2]
RAGGED = Grid(5, 7, 13)


@pytest.fixture(autouse=True, scope="module")
def _fast_interpreter() -> None:
    patch_language_once()


def make_plan(grid: Grid = RAGGED, *, cells: int = 5) -> AttentionPlan:
    config = FreqFormerConfig(tile=(2, 2, 4), mid_tiles=2, summary_tokens=cells)
    return build_plan(grid, config, num_heads=3, head_dim=16)


def select(sums: Tensor, plan: AttentionPlan, count: int) -> tuple[Tensor, Tensor | None]:
    tables = prologue_tables(plan, torch.device("cpu"), torch.float32)
    cells = (tables.cell_tiles, tables.cell_counts) if plan.cells.num_cells else None
    with nan_filled_allocations():
        lists, bias = api.select(sums, BANDS, tables.tile_offsets, cells, count)
    return lists[MID].long(), None if bias is None else bias[MID]


@pytest.mark.parametrize("count", [1, 2, 7, 47, 48])
def test_the_best_tiles_and_their_bias(count: int) -> None:
    plan = make_plan()
    assert plan.layout.num_tiles == 48
    sums = torch.randn(3, 3, 48, 16)
    lists, bias = select(sums, plan, count)
    means = sums / plan.layout.counts[:, None]
    assert torch.equal(lists, topk_tiles(means[0, MID], means[1, MID], count))
    assert torch.equal(bias, unseen_bias(lists, plan))


def test_without_summaries_there_is_no_bias() -> None:
    plan = make_plan(cells=0)
    sums = torch.randn(3, 3, 48, 16)
    lists, bias = select(sums, plan, 3)
    assert bias is None
    assert lists.shape == (2, 48, 3)
    assert (lists[..., 1:] > lists[..., :-1]).all()


def test_ties_go_to_the_lower_tile_and_the_own_tile_is_kept() -> None:
    plan = make_plan(Grid(4, 8, 16))
    tiles = plan.layout.num_tiles
    # Whole numbers, and tiles of equal size: many scores are exactly equal.
    sums = torch.randint(-1, 2, (3, 3, tiles, 16)).float() * plan.layout.slots
    lists, _ = select(sums, plan, 9)
    scores = (sums[0, MID] @ sums[1, MID].transpose(1, 2)).diagonal_scatter(
        torch.full((2, tiles), torch.inf), dim1=1, dim2=2
    )
    assert all(len(row.unique()) < tiles for row in scores.flatten(0, 1))
    assert torch.equal(
        lists, scores.sort(dim=-1, descending=True, stable=True).indices[..., :9].sort(-1).values
    )


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_scores_of_one_sign_and_of_any_size(sign: float) -> None:
    plan = make_plan(Grid(2, 8, 16))
    tiles = plan.layout.num_tiles
    sums = torch.rand(3, 3, tiles, 16).add(0.1).mul(plan.layout.counts[:, None])
    sums[1] *= sign * torch.logspace(-12, 12, tiles)[:, None]
    lists, _ = select(sums, plan, 3)
    means = sums / plan.layout.counts[:, None]
    assert torch.equal(lists, topk_tiles(means[0, MID], means[1, MID], 3))


def test_few_programs_share_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = make_plan()
    sums = torch.randn(3, 3, 48, 16)
    wanted, wanted_bias = select(sums, plan, 5)
    monkeypatch.setattr(buffers, "SELECTION_PROGRAMS", 2)
    monkeypatch.setattr(launch, "GROUP_SCORES", 64)
    lists, bias = select(sums, plan, 5)
    assert torch.equal(lists, wanted)
    assert torch.equal(bias, wanted_bias)
    monkeypatch.setattr(buffers, "SCORE_BYTES", 1)
    assert buffers.score_bytes(3, 48) == 16 * 64 * 4
