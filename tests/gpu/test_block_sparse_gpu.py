"""The fused attention launch on a GPU, against float64."""

from __future__ import annotations

import pytest
import torch

from freqformer import buffers
from freqformer.config import Band, FreqFormerConfig
from freqformer.grid import Grid

pytest.importorskip("triton")

from tests.support.attend_cases import LARGE, check_case, random_case
from tests.support.attend_gpu import check_a_graph_replays, check_nothing_else_is_written
from tests.support.numerics import Pool, nan_filled_allocations

from freqformer.ops import architectures
from freqformer.ops.block_sparse.records import AttentionBuffers, RowBands
from freqformer.ops.block_sparse.tables import launch_tables
from freqformer.ops.block_sparse.triton import launch
from freqformer.plan import build_plan

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]


@pytest.mark.parametrize("form", range(26))
def test_random_cases(form: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buffers, "TEXT_PART_TILES", 8)
    if form % 8 == 7:
        monkeypatch.setattr(architectures, "architecture_name", lambda _: "sm_80")
    pool = Pool()
    for seed in range(form * 40, form * 40 + 40):
        case, told = random_case(seed, form=form, grids=LARGE, head_dims=(64, 128), device="cuda")
        with nan_filled_allocations():
            got = launch.attend(**case.arguments)
        check_case(case, got, told, pool)
    pool.check(least=10)


@pytest.mark.parametrize("backward", [False, True])
def test_nothing_beside_the_outputs_is_written(backward: bool) -> None:
    cases = (
        random_case(seed, form=seed % 3, grids=LARGE, head_dims=(64, 128), device="cuda")
        for seed in range(2000, 2040)
    )
    check_nothing_else_is_written(launch.attend, cases, backward=backward)


@pytest.mark.parametrize("by_pointer", [False, True])
def test_more_elements_than_32_bits_count(
    by_pointer: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if torch.cuda.mem_get_info()[0] < 40 * 2**30:
        pytest.skip("needs 40 GiB of GPU memory")
    if by_pointer:
        monkeypatch.setattr(architectures, "architecture_name", lambda _: "sm_80")
    grid, heads, head_dim = Grid(64, 64, 64), 66, 128
    config = FreqFormerConfig(window=(1, 2, 2), summary_tokens=4)
    plan = build_plan(grid, config, num_heads=heads, head_dim=head_dim)
    tables = launch_tables(plan, torch.device("cuda"))
    video, queries = grid.num_tokens, grid.num_tokens + plan.num_low_tokens
    shapes = ((heads, queries, head_dim), *[(heads, tables.keys.rows, head_dim)] * 2)
    assert heads * grid.num_tokens * head_dim > 2**31
    query, key, value = (
        torch.empty(shape, dtype=torch.bfloat16, device="cuda").normal_() for shape in shapes
    )
    bands = torch.full((heads,), Band.HIGH, dtype=torch.int32, device="cuda")
    out, _, lse, _ = launch.attend(
        AttentionBuffers(query, key, value),
        RowBands(bands, torch.arange(heads, dtype=torch.int32, device="cuda"), any_low=False),
        tables,
        mid=None,
        summary_offsets=None,
        text_mask=None,
        token_order="tile",
    )
    # The last tile of the last head lies behind element 2**31 of every tensor.
    last, start = heads - 1, tables.keys.low_summaries
    tiles = plan.high_lists[-1].tolist()
    keys = [
        row
        for tile in tiles
        for row in range(int(plan.layout.offsets[tile]), int(plan.layout.offsets[tile + 1]))
    ]
    keys = torch.tensor(keys + list(range(start, start + plan.cells.num_cells)), device="cuda")
    assert tables.high_bias is not None
    bias = torch.cat(
        [torch.zeros(len(keys) - plan.cells.num_cells, device="cuda"), tables.high_bias[-1]]
    ).double()
    own = slice(video - 128, video)
    logits = query[last, own].double() @ key[last, keys].double().T * head_dim**-0.5 + bias
    torch.testing.assert_close(lse[last, own].double(), logits.logsumexp(-1), rtol=1e-5, atol=1e-5)
    wanted = logits.softmax(-1) @ value[last, keys].double()
    assert float((out[0, -128:, last].double() - wanted).norm() / wanted.norm()) < 4e-3


def test_the_launch_is_captured_in_a_graph() -> None:
    case, told = random_case(3, form=1, grids=LARGE, head_dims=(64, 128), device="cuda")
    check_a_graph_replays(launch.attend, case, told)
