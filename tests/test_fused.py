"""impl="triton" from end to end in Triton's interpreter, what it holds, what it launches, and when
it is chosen."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from freqformer import buffers
from freqformer.attention import frequency_attention
from freqformer.config import Band, FreqFormerConfig
from freqformer.grid import Grid
from freqformer.ops import fused
from freqformer.ops.parameters import AttentionParameters
from freqformer.plan import build_plan

triton = pytest.importorskip("triton")
if not triton.knobs.runtime.interpret:
    pytest.skip("TRITON_INTERPRET=1 is not set: kernels would need a GPU", allow_module_level=True)

from tests.support import cases  # noqa: E402
from tests.support.cases import GATES, Case, make_inputs, random_case  # noqa: E402
from tests.support.fused import check_call  # noqa: E402
from tests.support.interpreter import patch_language_once  # noqa: E402
from tests.support.numerics import Pool, nan_filled_allocations  # noqa: E402
from torch._subclasses.fake_tensor import FakeTensorMode  # noqa: E402
from triton.runtime import interpreter  # noqa: E402

from freqformer.ops.block_sparse.tables import launch_tables  # noqa: E402
from freqformer.ops.merge.tables import merge_tables  # noqa: E402
from freqformer.ops.prologue.tables import prologue_tables  # noqa: E402

pytestmark = [
    # The interpreter's own: it turns arrays of one element into loop bounds.
    pytest.mark.filterwarnings("ignore:Conversion of an array with ndim:DeprecationWarning"),
    # A LOW row has fewer queries than tokens. What is behind them is computed like the rest, and
    # never stored.
    pytest.mark.filterwarnings(
        "ignore:(All-NaN slice|invalid value|overflow) encountered:RuntimeWarning"
    ),
]
EVERY_BAND = ((Band.LOW, Band.MID, Band.HIGH, Band.DENSE),)
# Two low tokens of 16: with all 16 the other bands would be empty.
SMALL = FreqFormerConfig(
    tile=(2, 2, 4), compression=64, mid_tiles=2, window=(1, 2, 2), summary_tokens=3
)
RAGGED = Grid(3, 3, 7)
LEARNED = ("summaries", "offsets", "rotary", "norm")


@pytest.fixture(autouse=True, scope="module")
def _fast_interpreter() -> None:
    patch_language_once()


def small_case(**changes: Any) -> Case:
    told: dict[str, Any] = {
        "grid": RAGGED,
        "config": SMALL,
        "allocation": EVERY_BAND,
        "head_dim": 16,
    }
    return Case(**told | changes)


CASES = {
    "plain": small_case(),
    "LOW branch": small_case(gates=GATES, learned=LEARNED, num_text_tokens=3, mask="random"),
    "learned": small_case(learned=LEARNED, num_text_tokens=3, mask="random"),
    "every text token masked": small_case(num_text_tokens=2, mask="all", dtype=torch.float16),
    "values": small_case(
        config=replace(SMALL, band_features="high_pass_values"),
        learned=("rotary",),
        num_text_tokens=3,
    ),
    "gains": small_case(
        config=replace(SMALL, band_features="band_gains"),
        learned=LEARNED,
        num_text_tokens=3,
        dtype=torch.float16,
    ),
    "strict": small_case(config=replace(SMALL, band_features="own_band"), learned=("summaries",)),
    "axial": small_case(config=replace(SMALL, mid_pattern="axial"), learned=("offsets",)),
    "radial": small_case(config=replace(SMALL, mid_pattern="radial", radial_radius=1)),
    "every tile": small_case(
        config=replace(SMALL, mid_tiles=None), learned=("summaries", "offsets")
    ),
    "no summaries": small_case(config=replace(SMALL, summary_tokens=0)),
    "synthesis": small_case(
        config=replace(SMALL, low_output="inverse_dct"), allocation=((0, 0),), learned=("rotary",)
    ),
    "no compression": small_case(config=replace(SMALL, compression=1), allocation=((0, 0),)),
    "tile order": small_case(token_order="tile", learned=LEARNED),
    "allocation by sample": small_case(
        allocation=((0, 1, 2), (2, 0, 3)), learned=("norm", "summaries")
    ),
    "one frame": small_case(grid=Grid(1, 5, 6)),
    "fewer tokens than a tile": small_case(grid=Grid(1, 2, 3), num_text_tokens=1),
    "one token": small_case(grid=Grid(1, 1, 1), learned=LEARNED),
    "bfloat16": small_case(grid=Grid(2, 3, 5), learned=LEARNED, dtype=torch.bfloat16),
    "head_dim 64": small_case(grid=Grid(2, 3, 5), head_dim=64, dtype=torch.float16, outliers=True),
    "head_dim 128": small_case(grid=Grid(2, 3, 5), head_dim=128, learned=("rotary", "norm")),
}


@pytest.mark.parametrize("name", CASES)
def test_every_branch(name: str) -> None:
    with nan_filled_allocations():
        check_call(CASES[name], make_inputs(CASES[name]))


def test_random_cases() -> None:
    pool = Pool()
    for seed in range(16):
        rng = random.Random(seed)
        case = random_case(
            seed,
            max_tokens=60,
            head_dim=rng.choice((16, 32)),
            dtype=rng.choice((torch.float32, torch.float16)),
        )
        with nan_filled_allocations():
            check_call(case, make_inputs(case), pool)
    pool.check(least=5)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 200))
def test_more_random_cases(seed: int) -> None:
    case = random_case(seed, max_tokens=200, head_dim=random.Random(seed).choice((16, 32, 64, 128)))
    with nan_filled_allocations():
        check_call(case, make_inputs(case))


def attend(case: Case, impl: Any, **changes: Any) -> Tensor:
    inputs = make_inputs(case)
    told: dict[str, Any] = {
        "grid": case.grid,
        "allocation": torch.tensor(case.allocation),
        "config": case.config,
        "num_text_tokens": case.num_text_tokens,
        "text_mask": inputs.text_mask,
        "parameters": inputs.parameters,
        "token_order": case.token_order,
        "low_branch": inputs.low_branch,
    }
    return frequency_attention(inputs.query, inputs.key, inputs.value, impl=impl, **told | changes)


def test_it_chooses_the_same_tiles_as_eager() -> None:
    case = small_case(grid=Grid(4, 6, 8), allocation=((1, 1),), learned=("rotary", "norm"))
    assert case.plan.mid_capacity < case.plan.layout.num_tiles
    assert (attend(case, "triton") - attend(case, "eager")).abs().max() <= 2e-6


def test_inputs_of_any_strides() -> None:
    case = small_case(allocation=((0, 1, 2, 3),))
    inputs = make_inputs(case)
    wanted = attend(case, "triton")
    tensors = (inputs.query, inputs.key, inputs.value)
    packed = torch.stack(tensors, 2)  # (B, N, 3, H, D), as one projection of all three leaves them
    backwards = [x.transpose(-1, -2).contiguous().transpose(-1, -2) for x in tensors]
    for query, key, value in (packed.unbind(2), backwards):
        got = frequency_attention(
            query,
            key,
            value,
            grid=case.grid,
            allocation=torch.tensor([0, 1, 2, 3]),
            config=case.config,
            impl="triton",
        )
        assert torch.equal(got, wanted)


def test_a_band_out_of_range_on_the_device_gives_nan_in_its_head_alone() -> None:
    case = small_case(num_text_tokens=2)
    inputs = make_inputs(case)
    tensors, given = (inputs.query, inputs.key, inputs.value), AttentionParameters()

    def run(bands: list[int]) -> Tensor:
        call = fused.FusedCall(
            case.plan, torch.tensor([bands]), frozenset(Band), None, None, None, "raster"
        )
        return fused.run(tensors, given, call).out

    right, wrong = run([0, 1, 2, 3]), run([0, 1, 7, 3])
    video = case.grid.num_tokens
    assert wrong[:, :video, 2].isnan().all()
    assert torch.equal(wrong[:, :, [0, 1, 3]], right[:, :, [0, 1, 3]])


def test_at_most_seven_launches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buffers, "TEXT_PART_TILES", 1)
    names: list[str] = []
    launch = interpreter.GridExecutor.__call__

    def counted(self: Any, *args: Any, **kwargs: Any) -> None:
        names.append(self.fn.__name__)
        launch(self, *args, **kwargs)

    monkeypatch.setattr(interpreter.GridExecutor, "__call__", counted)
    attend(small_case(learned=LEARNED, num_text_tokens=3), "triton")
    assert names == [
        "prepare_tiles",
        "pool_tiles",
        "finish_rows",
        "select_tiles",
        "attention_kernel",
        "join_text_kernel",
        "merge_kernel",
    ]
    names.clear()
    attend(small_case(allocation=((2, 2),)), "triton")
    assert names == ["prepare_tiles", "finish_rows", "attention_kernel"]
    names.clear()
    attend(small_case(allocation=((2, 2),), gates=GATES), "triton")
    assert names == ["prepare_tiles", "finish_rows", "attention_kernel", "merge_kernel"]


def test_nothing_on_the_way_waits_for_data(monkeypatch: pytest.MonkeyPatch) -> None:
    # Fake tensors hold no data: an operation that needed some (item, nonzero, a branch on a value)
    # would raise. Kernels don't run, and a descriptor would look at an address.
    monkeypatch.setattr(interpreter.GridExecutor, "__call__", lambda *_, **__: None)
    monkeypatch.setattr("freqformer.ops.architectures.architecture_name", lambda _: "sm_80")
    case = small_case(learned=LEARNED, num_text_tokens=3, mask="random", gates=GATES)
    inputs, plan, cpu = make_inputs(case), case.plan, torch.device("cpu")
    (
        launch_tables(plan, cpu),
        prologue_tables(plan, cpu, case.dtype),
        merge_tables(plan, cpu, case.dtype),
    )
    real = fused.run(
        (inputs.query, inputs.key, inputs.value),
        inputs.parameters or AttentionParameters(),
        fused.FusedCall(
            plan,
            torch.tensor(case.allocation),
            frozenset(Band),
            inputs.low_branch,
            inputs.text_mask,
            None,
            "raster",
        ),
    )
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fake = inputs.map(mode.from_tensor)
        bands = mode.from_tensor(torch.tensor(case.allocation))
        call = fused.FusedCall(
            plan, bands, frozenset(Band), fake.low_branch, inputs.text_mask, None, "raster"
        )
        made = fused.run(
            (fake.query, fake.key, fake.value), fake.parameters or AttentionParameters(), call
        )
    pairs = [(made.out, real.out), *zip(made.attention[:3], real.attention[:3], strict=True)]
    for got, wanted in pairs:
        assert (got.shape, got.dtype, got.stride()) == (wanted.shape, wanted.dtype, wanted.stride())


def test_tensors_without_data_have_outputs() -> None:
    case = small_case()
    assert case.plan.mid_capacity < case.plan.layout.num_tiles
    inputs = make_inputs(case).map(lambda x: x.detach().to("meta"))
    with torch.no_grad():
        out = cases.attend(case, inputs, impl="triton")
    assert out.is_meta
    assert out.shape == inputs.query.shape


@pytest.mark.parametrize(
    ("grid", "heads"), [(Grid(30, 48, 80), 24), (Grid(21, 45, 80), 40), (Grid(256, 64, 64), 8)]
)
def test_workspace_stays_within_bounds(grid: Grid, heads: int) -> None:
    config = FreqFormerConfig(mid_tiles=32, summary_tokens=256)
    for learned in (False, True):
        plan = build_plan(grid, config, num_heads=heads, head_dim=128, learned_summaries=learned)
        inputs_and_output = 4 * grid.num_tokens * heads * 128 * 2
        assert fused.workspace_bytes(plan, 1, torch.bfloat16) <= 1.2 * inputs_and_output


@pytest.mark.parametrize(
    "name", ["plain", "learned", "gains", "no summaries", "every tile", "LOW branch"]
)
def test_workspace_is_what_the_launches_allocate(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    case, made = CASES[name], []
    for owner, function in ((torch, "empty"), (Tensor, "new_empty")):
        original = getattr(owner, function)

        def counted(*args: Any, _original: Any = original, **kwargs: Any) -> Tensor:
            x = _original(*args, **kwargs)
            made.append(x.numel() * x.element_size())
            return x

        monkeypatch.setattr(owner, function, counted)
    inputs = make_inputs(case)
    made.clear()
    tensors = (inputs.query, inputs.key, inputs.value)
    call = fused.FusedCall(
        case.plan,
        torch.tensor(case.allocation),
        frozenset(Band),
        inputs.low_branch,
        inputs.text_mask,
        None,
        "raster",
    )
    out = fused.run(tensors, inputs.parameters or AttentionParameters(), call).out
    held = sum(made) - out.numel() * out.element_size()
    told = fused.workspace_bytes(case.plan, len(case.allocation), case.dtype)
    # Beside what is counted: bands and order of a few rows, and one number a cell.
    assert 0 <= held - told <= 8 * (out.shape[2] + 2 * case.plan.cells.num_cells * out.shape[2])


def test_a_selection_with_a_tile_twice_is_refused() -> None:
    case = small_case(allocation=((1, 1),))
    tiles = torch.zeros(1, 2, case.plan.layout.num_tiles, 2, dtype=torch.int64)
    with pytest.raises(ValueError, match="names a tile twice"):
        attend(case, "triton", selection=fused.Selection(tiles))


def test_an_allocation_out_of_range_is_refused() -> None:
    with pytest.raises(ValueError, match="bands 0 to 3 are allowed"):
        attend(small_case(), "triton", allocation=[0, 1, 2, 4])
