from __future__ import annotations

import math
from dataclasses import replace
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

triton = pytest.importorskip("triton")
if not triton.knobs.runtime.interpret:
    pytest.skip("set TRITON_INTERPRET=1 to run kernels on the CPU", allow_module_level=True)

from tests.support.attend_cases import AttendCase, expected, make_case, random_case  # noqa: E402
from tests.support.attend_grads import (  # noqa: E402
    AttendGrads,
    _by_row,
    check_grads,
    exact_outputs,
    expected_grads,
    kernel_grads,
    named,
    random_output_grads,
)
from tests.support.interpreter import patch_language_once  # noqa: E402
from tests.support.numerics import Pool, nan_filled_allocations  # noqa: E402

from freqformer.config import Band, FreqFormerConfig  # noqa: E402
from freqformer.grid import Grid  # noqa: E402
from freqformer.ops.block_sparse.tables import launch_tables  # noqa: E402
from freqformer.ops.block_sparse.transposed import (  # noqa: E402
    key_task_order,
    transpose_lists,
)
from freqformer.ops.block_sparse.triton.launch import attend  # noqa: E402
from freqformer.ops.block_sparse.triton.launch_backward import attend_backward  # noqa: E402
from freqformer.plan import build_plan  # noqa: E402

patch_language_once()
# The interpreter's own use of numpy, and the NaN that no kernel may let through.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Conversion of an array with ndim:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning"),
]

CONFIG = FreqFormerConfig(
    tile=(2, 3, 2), mid_tiles=2, window=(1, 1, 2), summary_tokens=3, compression=4
)
GRID = Grid(2, 3, 5)
"""Three tiles of 12, 12 and 6 tokens."""


def run(case: AttendCase, grads: tuple[Tensor, Tensor]) -> AttendGrads:
    with nan_filled_allocations():
        return kernel_grads(case, grads)


def check(case: AttendCase, label: object = None, *, outliers: bool = False) -> None:
    with nan_filled_allocations():
        check_grads(case, label, outliers=outliers)


BANDS = ([[0, 1, 2]], [[0, 0]], [[1, 1]], [[2, 2]], [[3, 0]], [[0, 1], [2, 3]])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("bands", BANDS, ids=str)
def test_every_mix_of_bands(bands: list, dtype: torch.dtype) -> None:
    check(
        make_case(
            GRID, CONFIG, bands=torch.tensor(bands), head_dim=16, dtype=dtype, seed=len(bands)
        )
    )


@pytest.mark.parametrize(
    ("head_dim", "dtype"),
    [(24, torch.float32), (40, torch.bfloat16), (96, torch.float16), (160, torch.bfloat16)],
)
def test_padded_head_dims(head_dim: int, dtype: torch.dtype) -> None:
    case = make_case(
        GRID,
        CONFIG,
        bands=torch.tensor([[0, 1, 2, 3]]),
        head_dim=head_dim,
        dtype=dtype,
        text=3,
        learned=True,
        branch=True,
    )
    check(case)


TEXT = {"text": 5}
LEARNED = {"text": 3, "learned": True, "masked": True}
CASES = {
    "text": (GRID, CONFIG, [[0, 1], [2, 3]], TEXT),
    "every text token masked or not": (GRID, CONFIG, [[0, 1, 2, 3]], {"text": 4, "masked": True}),
    "text of more than a block": (GRID, CONFIG, [[2, 0]], {"text": 37}),
    "learned summaries": (GRID, CONFIG, [[0, 1, 2]], {"learned": True}),
    "learned summaries, text, mask": (GRID, CONFIG, [[0, 1, 2, 3]], LEARNED),
    "learned summaries, samples apart": (GRID, CONFIG, [[0, 1], [2, 0]], LEARNED),
    "no summaries": (GRID, replace(CONFIG, summary_tokens=0), [[0, 1, 2]], TEXT),
    "no summaries, no text": (GRID, replace(CONFIG, summary_tokens=0), [[0, 2]], {}),
    "tile order": (GRID, CONFIG, [[0, 1, 2]], {"token_order": "tile", **TEXT}),
    "MID sees every tile": (GRID, replace(CONFIG, mid_tiles=None), [[1, 0, 2]], {"learned": True}),
    "axial": (Grid(3, 3, 4), replace(CONFIG, mid_pattern="axial"), [[1, 2]], {}),
    "radial": (
        Grid(4, 3, 2),
        replace(CONFIG, mid_pattern="radial", radial_radius=0, tile=(1, 3, 2)),
        [[1, 0]],
        TEXT,
    ),
    "exact keys beside band features": (
        GRID,
        replace(CONFIG, band_features="high_pass_values"),
        [[0, 1, 2, 3]],
        TEXT,
    ),
    "exact keys, learned summaries": (
        GRID,
        replace(CONFIG, band_features="own_band"),
        [[1, 2]],
        LEARNED,
    ),
    "one frame": (Grid(1, 5, 7), replace(CONFIG, tile=(1, 3, 4)), [[0, 1, 2]], {}),
    "fewer tokens than a tile": (Grid(1, 2, 3), replace(CONFIG, tile=None), [[0, 1, 2, 3]], TEXT),
    "one token": (Grid(1, 1, 1), replace(CONFIG, tile=None), [[0, 1, 2, 3]], TEXT),
    "primes": (Grid(3, 5, 7), replace(CONFIG, tile=(2, 4, 6)), [[0, 1, 2]], {}),
    "full tiles of two blocks": (Grid(4, 4, 8), replace(CONFIG, tile=(4, 4, 4)), [[1, 2, 0]], {}),
    "full tiles of one block": (Grid(4, 4, 4), replace(CONFIG, tile=(2, 4, 4)), [[2, 3]], TEXT),
    "low tokens fill a block": (
        Grid(4, 4, 8),
        replace(CONFIG, tile=(4, 4, 4), compression=2),
        [[0, 2]],
        TEXT,
    ),
    "LOW branch": (GRID, CONFIG, [[0, 1, 2, 3]], {"branch": True}),
    "LOW branch, learned summaries, text": (
        Grid(3, 5, 7),
        CONFIG,
        [[0, 1], [2, 3]],
        {"branch": True, **LEARNED},
    ),
    "low tokens fill two blocks": (
        Grid(4, 5, 8),
        replace(CONFIG, tile=(4, 5, 6), compression=1),
        [[0, 1]],
        LEARNED,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_every_branch(name: str) -> None:
    grid, config, bands, options = CASES[name]
    check(make_case(grid, config, bands=torch.tensor(bands), head_dim=16, **options), name)


@pytest.mark.parametrize("head_dim", [64, 128])
def test_longer_vectors_than_in_other_calls(head_dim: int) -> None:
    check(
        make_case(
            GRID, CONFIG, bands=torch.tensor([[0, 1, 2, 3]]), head_dim=head_dim, seed=2, **LEARNED
        )
    )


# Not float32: here the sums behind scores in the hundreds differ by the shape of a block, and no
# two kernels agree.
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("head_dim", [64, 128])
def test_scale_of_real_activations(head_dim: int, dtype: torch.dtype) -> None:
    bands = torch.tensor([[0, 1, 2]])
    case = make_case(
        GRID,
        CONFIG,
        bands=bands,
        head_dim=head_dim,
        dtype=dtype,
        outliers=30.0,
        learned=True,
        seed=1,
    )
    check(case, outliers=True)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_one_key_takes_nearly_all_weight(dtype: torch.dtype) -> None:
    """A slope is then the difference of two nearly equal products, and rounded outputs alone would
    not give it."""
    pool = Pool()
    for seed in range(6):
        case = make_case(
            GRID, CONFIG, bands=torch.tensor([[2, 3, 1]]), head_dim=16, dtype=dtype, seed=seed
        )
        peaked = replace(case, buffers=replace(case.buffers, query=case.buffers.query * 8))
        with nan_filled_allocations():
            check_grads(peaked, seed, pool, outliers=True)
    pool.check(least=6)


@pytest.mark.parametrize(
    "name",
    [
        "learned summaries, text, mask",
        "exact keys beside band features",
        "full tiles of two blocks",
        "LOW branch, learned summaries, text",
        "low tokens fill a block",
        "low tokens fill two blocks",
    ],
)
def test_half_precision_of_branches(name: str) -> None:
    grid, config, bands, options = CASES[name]
    check(
        make_case(
            grid, config, bands=torch.tensor(bands), head_dim=32, dtype=torch.bfloat16, **options
        ),
        name,
    )


@pytest.mark.parametrize("parts", [2, 3, 5])
def test_queries_in_parts(parts: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("freqformer.ops.block_sparse.triton.backward_launches.PART_TILES", 1)
    monkeypatch.setattr("freqformer.ops.block_sparse.triton.backward_launches.MOST_PARTS", parts)
    grid, config, bands, options = CASES["learned summaries, text, mask"]
    check(make_case(grid, config, bands=torch.tensor(bands), head_dim=16, **options), parts)


def test_pointers_in_place_of_descriptors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "freqformer.ops.block_sparse.triton.backward_launches.BackwardLaunches.descriptors",
        lambda *_: False,
    )
    grid, config, bands, options = CASES["low tokens fill two blocks"]
    check(
        make_case(
            grid, config, bands=torch.tensor(bands), head_dim=16, dtype=torch.float16, **options
        )
    )


def test_what_rounding_took_is_kept() -> None:
    grid, config, bands, options = CASES["learned summaries, text, mask"]
    case = make_case(
        grid, config, bands=torch.tensor(bands), head_dim=16, dtype=torch.float16, **options
    )
    out, low_out, _, remainder = attend(**case.arguments, backward=True)
    assert remainder is not None
    rounded, exact = _by_row(case, out, low_out).double(), _by_row(case, *expected(case)[:2])
    live = ~exact.isnan()
    assert (rounded + remainder.double() - exact)[live].abs().mean() < 0.8 * (rounded - exact)[
        live
    ].abs().mean()
    assert remainder[live].abs().max() <= exact[live].abs().max() * torch.finfo(torch.float16).eps


def test_float32_keeps_the_largest_logit_and_the_sum() -> None:
    grid, config, bands, options = CASES["learned summaries, text, mask"]
    case = make_case(grid, config, bands=torch.tensor(bands), head_dim=16, **options)
    remainder = attend(**case.arguments, backward=True).rounding_residual
    assert remainder is not None
    exact = expected(case)[2] / math.log(2)
    live = ~exact.isnan()
    largest, share = remainder.double()[live].unbind(-1)
    assert (share > 0).all()
    assert (share <= 1).all()
    assert (largest <= exact[live] + 1e-6).all()
    assert (largest - share.log2() - exact[live]).abs().max() <= 1e-6


def test_same_bits_every_time() -> None:
    case = make_case(
        GRID, CONFIG, bands=torch.tensor([[0, 1, 2]]), head_dim=16, dtype=torch.bfloat16, **LEARNED
    )
    grads = random_output_grads(case)
    exact, first, second = expected_grads(case, grads), run(case, grads), run(case, grads)
    for name, x in named(first, exact).items():
        assert torch.equal(x, named(second, exact)[name]), name


def test_a_query_without_keys_gives_no_gradient() -> None:
    """A log-sum-exp of -inf, which only a masked case could have, leaves every gradient finite and
    its query's zero."""
    case = make_case(GRID, CONFIG, bands=torch.tensor([[2]]), head_dim=16)
    outputs = exact_outputs(case)
    assert outputs.rounding_residual is not None
    outputs.lse[0, 3] = outputs.rounding_residual[0, 3, 0] = -torch.inf
    got = attend_backward(random_output_grads(case), outputs, **case.arguments)
    assert bool((got.query[0, 3] == 0).all())
    exact = expected_grads(case, random_output_grads(case))
    assert all(
        bool(x.isfinite().all())
        for x in named(AttendGrads(got.query, got.key, got.value, None), exact).values()
    )


@settings(max_examples=60)
@given(st.data())
def test_transposed_lists(data: st.DataObject) -> None:
    rows, tiles = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 9))
    longest = data.draw(st.integers(1, tiles))
    lists = torch.stack(
        [torch.stack([torch.randperm(tiles)[:longest] for _ in range(tiles)]) for _ in range(rows)]
    )
    lengths = torch.randint(0, longest + 1, (rows, tiles)) if data.draw(st.booleans()) else None
    used = torch.rand(rows) < 0.7 if data.draw(st.booleans()) else None
    junk = lists.clone()
    if used is not None:
        junk[~used] = torch.randint(-(2**30), 2**30, junk[~used].shape)
    turned = transpose_lists(junk.int(), None if lengths is None else lengths.int(), used)
    for row, key in product(range(rows), range(tiles)):
        kept = [
            query
            for query in range(tiles)
            if (used is None or used[row])
            and key in lists[row, query, : longest if lengths is None else int(lengths[row, query])]
        ]
        begin, end = turned.starts[row * tiles + key : row * tiles + key + 2].tolist()
        assert turned.queries[begin:end].tolist() == kept


def test_key_tasks_run_longest_first() -> None:
    plan = build_plan(
        Grid(6, 6, 8),
        replace(CONFIG, window=(3, 3, 3), mid_pattern="axial"),
        num_heads=4,
        head_dim=16,
    )
    tables = launch_tables(plan, torch.device("cpu"))
    high, mid = tables.high_transposed, tables.mid_transposed
    assert mid is not None
    assert plan.mid_lists is not None
    tiles = plan.layout.num_tiles
    order = key_task_order(
        torch.tensor([0, 1, 2, 3], dtype=torch.int32), high.starts, mid.starts, tiles
    )
    length = {Band.LOW: torch.zeros(tiles), Band.DENSE: torch.full((tiles,), tiles)}
    length |= {Band.MID: (plan.mid_lists[:, :, None] == torch.arange(tiles)).sum((0, 1))}
    length |= {Band.HIGH: (plan.high_lists[:, :, None] == torch.arange(tiles)).sum((0, 1))}
    lengths = torch.stack([length[band] for band in Band]).flatten()[order.long()]
    assert order.sort().values.tolist() == list(range(4 * tiles))
    assert bool((lengths[1:] <= lengths[:-1]).all())


def test_random_cases() -> None:
    pool = Pool()
    for seed in range(16):
        case, told = random_case(seed)
        if case.buffers.query.dtype == torch.float32 and told["outliers"] > 1:
            continue  # as in the test of real activations
        with nan_filled_allocations():
            check_grads(case, told, pool, outliers=told["outliers"] > 1)
    pool.check(least=4)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 180))
def test_more_random_cases(seed: int) -> None:
    case, told = random_case(seed)
    if not (case.buffers.query.dtype == torch.float32 and told["outliers"] > 1):
        with nan_filled_allocations():
            check_grads(case, told, outliers=told["outliers"] > 1)
