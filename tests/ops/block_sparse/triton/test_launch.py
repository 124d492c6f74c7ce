"""The fused attention launch in Triton's interpreter, against float64."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from freqformer import buffers
from freqformer.config import Band, FreqFormerConfig
from freqformer.grid import Grid

triton = pytest.importorskip("triton")
if not triton.knobs.runtime.interpret:
    pytest.skip("TRITON_INTERPRET=1 is not set: kernels would need a GPU", allow_module_level=True)

from tests.support import attend_cases  # noqa: E402
from tests.support.attend_cases import AttendCase, check_case, make_case, random_case  # noqa: E402
from tests.support.interpreter import patch_language_once  # noqa: E402
from tests.support.numerics import Pool, nan_filled_allocations  # noqa: E402

from freqformer.ops import architectures  # noqa: E402
from freqformer.ops.block_sparse.records import AttentionOutputs  # noqa: E402
from freqformer.ops.block_sparse.triton import launch  # noqa: E402

# The interpreter's own: it turns arrays of one element into loop bounds.
pytestmark = pytest.mark.filterwarnings(
    "ignore:Conversion of an array with ndim:DeprecationWarning"
)
EVERY_BAND = torch.tensor([[Band.LOW, Band.MID, Band.HIGH, Band.DENSE]])
SMALL = FreqFormerConfig(mid_tiles=2, window=(1, 1, 2), tile=(4, 4, 8), summary_tokens=3)


@pytest.fixture(autouse=True, scope="module")
def _fast_interpreter():
    patch_language_once()


def run(case: AttendCase) -> AttentionOutputs:
    with nan_filled_allocations():
        return launch.attend(**case.arguments)


@pytest.mark.parametrize("part", range(10))
def test_random_cases(part: int, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = Pool()
    for seed in range(part * 12, part * 12 + 12):
        # Every third case reads by pointers, as GPUs without tensor descriptors do.
        name = "sm_80" if seed % 3 == 0 else "cpu"
        monkeypatch.setattr(architectures, "architecture_name", lambda _, name=name: name)
        case, told = random_case(seed)
        check_case(case, run(case), told, pool)
    pool.check(least=3)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1000, 1200))
def test_more_random_cases(seed: int) -> None:
    case, told = random_case(seed, head_dims=(16, 64, 128))
    check_case(case, run(case), told)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("head_dim", [64, 128])
def test_common_head_dims(head_dim: int, dtype: torch.dtype) -> None:
    told = {"head_dim": head_dim, "dtype": dtype, "learned": True, "text": 3, "masked": True}
    case = make_case(Grid(4, 9, 8), SMALL, bands=EVERY_BAND, **told)
    check_case(case, run(case), told)


@pytest.mark.parametrize(
    ("head_dim", "dtype"),
    [(40, torch.float32), (72, torch.bfloat16), (96, torch.float16), (192, torch.bfloat16)],
)
def test_padded_head_dims(head_dim: int, dtype: torch.dtype) -> None:
    told = {"head_dim": head_dim, "dtype": dtype, "text": 3, "learned": True, "branch": True}
    case = make_case(Grid(4, 9, 8), SMALL, bands=EVERY_BAND, **told)
    got = run(case)
    check_case(case, got, told)
    assert got.out.shape[-1] == got.low_out.shape[-1] == head_dim


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_low_queries_of_every_head(dtype: torch.dtype) -> None:
    told = {"dtype": dtype, "learned": True, "text": 3, "masked": True, "branch": True}
    case = make_case(Grid(4, 9, 8), SMALL, bands=EVERY_BAND, head_dim=16, **told)
    check_case(case, run(case), told)


@pytest.mark.parametrize("head_dim", [16, 24])
def test_split_text_queries_are_joined(head_dim: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buffers, "TEXT_PART_TILES", 1)
    case = make_case(
        Grid(4, 8, 24), SMALL, bands=EVERY_BAND, head_dim=head_dim, text=5, masked=True
    )
    assert launch.text_parts(case.plan.layout.num_tiles) > 1
    check_case(case, run(case), {})


def test_text_queries_read_the_exact_copy() -> None:
    config = replace(SMALL, band_features="high_pass_values")
    case = make_case(Grid(4, 8, 16), config, bands=EVERY_BAND, head_dim=16, text=2)
    assert case.tables.keys.exact > 0
    check_case(case, run(case), {})


def test_a_query_that_sees_nothing_gives_zero() -> None:
    config = replace(SMALL, summary_tokens=0)
    case = make_case(
        Grid(4, 8, 16), config, bands=torch.tensor([[Band.MID] * 2]), head_dim=16, text=3
    )
    assert case.mid is not None
    lengths = torch.full(case.mid.lists.shape[:2], 2, dtype=torch.int32)
    lengths[0, 0] = 0
    case = replace(
        case, mid=replace(case.mid, lengths=lengths), text_mask=torch.zeros(1, 3, dtype=torch.bool)
    )
    out, _, lse, _ = got = run(case)
    check_case(case, got, {})
    unseen = case.plan.layout.raster_to_tile[:128]
    assert torch.equal(out[0, unseen, 0], torch.zeros(128, 16))
    assert bool((lse[0, :128] == -torch.inf).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_low_tokens_of_full_tiles_run_without_their_bias(dtype: torch.dtype) -> None:
    config = replace(SMALL, compression=2)
    told = {"head_dim": 16, "dtype": dtype, "learned": True, "text": 3, "masked": True}
    case = make_case(Grid(4, 8, 24), config, bands=torch.tensor([[Band.LOW, Band.LOW]]), **told)
    assert case.tables.uniform
    assert case.plan.num_low_tokens > 128
    check_case(case, run(case), told)


def test_lists_with_fewer_tiles_than_their_capacity() -> None:
    case = make_case(Grid(4, 8, 24), SMALL, bands=torch.tensor([[Band.MID, Band.LOW]]), head_dim=16)
    assert case.mid is not None
    lengths = torch.ones(case.mid.lists.shape[:2], dtype=torch.int32)
    lengths[0, 1] = 2
    lists = case.mid.lists.masked_fill(torch.arange(2) >= lengths[..., None], -1)
    bias = torch.stack([attend_cases.unseen_bias(row.long(), case.plan) for row in lists]).float()
    case = replace(case, mid=replace(case.mid, lists=lists, lengths=lengths, bias=bias))
    check_case(case, run(case), {})


def test_the_same_bits_at_every_run() -> None:
    case = make_case(
        Grid(4, 9, 8),
        SMALL,
        bands=EVERY_BAND,
        head_dim=16,
        dtype=torch.bfloat16,
        text=3,
        learned=True,
    )
    for first, second in zip(run(case)[:3], run(case)[:3], strict=True):
        assert torch.equal(first.nan_to_num(7.0), second.nan_to_num(7.0))
