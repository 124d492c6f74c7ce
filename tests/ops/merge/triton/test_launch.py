"""The merge in Triton's interpreter: LOW rows are written as the reference does, and nothing else
is."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from freqformer.config import Band, FreqFormerConfig
from freqformer.grid import Grid
from freqformer.ops.merge import expand_low, gated_sum
from freqformer.ops.parameters import BranchGates
from freqformer.plan import AttentionPlan, build_plan

triton = pytest.importorskip("triton")
if not triton.knobs.runtime.interpret:
    pytest.skip("TRITON_INTERPRET=1 is not set: kernels would need a GPU", allow_module_level=True)

from tests.support.interpreter import patch_language_once  # noqa: E402
from tests.support.numerics import check_errors  # noqa: E402

from freqformer.ops.merge.tables import merge_tables  # noqa: E402
from freqformer.ops.merge.triton.launch import merge_low  # noqa: E402

# The interpreter's own: it turns arrays of one element into loop bounds.
pytestmark = pytest.mark.filterwarnings(
    "ignore:Conversion of an array with ndim:DeprecationWarning"
)
BANDS = torch.tensor([[Band.LOW, Band.MID, Band.DENSE], [Band.HIGH, Band.LOW, 9]])
TEXT = 2


@pytest.fixture(autouse=True, scope="module")
def _fast_interpreter() -> None:
    patch_language_once()


def make_plan(grid: Grid, **changes: Any) -> AttentionPlan:
    config = FreqFormerConfig(**{"tile": (2, 3, 4), "compression": 8, **changes})
    return build_plan(grid, config, num_heads=3, head_dim=16)


def merged(plan: AttentionPlan, low: torch.Tensor, order: Any) -> torch.Tensor:
    out = torch.full((2, plan.layout.grid.num_tokens + TEXT, 3, 16), 7.0, dtype=low.dtype)
    merge_low(low, out, out, BANDS, merge_tables(plan, torch.device("cpu"), low.dtype), order)
    return out


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("low_output", ["interpolate", "inverse_dct"])
def test_low_rows_are_as_near_float64_as_the_reference(low_output: str, dtype: torch.dtype) -> None:
    plan = make_plan(Grid(3, 5, 7), low_output=low_output)
    low = torch.randn(6, plan.num_low_tokens, 16).to(dtype)
    for order in ("raster", "tile"):
        out = merged(plan, low, order)
        for sample, head in ((0, 0), (1, 1)):
            row = low[sample * 3 + head][None]
            check_errors(
                {"out": out[sample, :105, head]},
                {"out": expand_low(row, plan, order)[0]},
                {"out": expand_low(row.double(), plan, order)[0]},
            )


@pytest.mark.parametrize(
    ("grid", "changes"),
    [
        (Grid(1, 1, 1), {}),
        (Grid(1, 9, 11), {"tile": None}),
        (Grid(7, 4, 9), {"compression": 1}),
        (Grid(7, 2, 2), {"compression": 24}),
        (Grid(5, 7, 11), {"tile": None, "compression": 2}),
    ],
)
def test_any_grid_and_compression(grid: Grid, changes: dict[str, Any]) -> None:
    plan = make_plan(grid, **changes)
    low = torch.randn(6, plan.num_low_tokens, 16)
    wanted = expand_low(low[:1].double(), plan, "raster")[0]
    assert (
        merged(plan, low, "raster")[0, : grid.num_tokens, 0].double() - wanted
    ).abs().max() <= 2e-6


def test_other_rows_and_text_stay_and_a_row_of_no_band_is_nan() -> None:
    plan = make_plan(Grid(3, 5, 7))
    out = merged(plan, torch.randn(6, plan.num_low_tokens, 16), "raster")
    assert (out[:, 105:] == 7).all()
    assert (out[0, :, 1:] == 7).all()
    assert (out[1, :, 0] == 7).all()
    assert out[1, :105, 2].isnan().all()


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("given", [("by_token", "by_sample"), ("by_token",), ("by_sample",)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_gated_sum_of_own_and_low(dtype: torch.dtype, given: tuple[str, ...], apart: bool) -> None:
    """Every head's video tokens; text is the own band's; a LOW head's own branch is LOW."""
    plan = make_plan(Grid(3, 5, 7))
    bands, tokens = BANDS.clamp_max(3), plan.layout.grid.num_tokens
    low = torch.randn(6, plan.num_low_tokens, 16).to(dtype)
    own = torch.randn(2, tokens + TEXT, 3, 16).to(dtype)
    own[:, :tokens].transpose(1, 2)[bands == Band.LOW] = torch.nan  # never written
    gates = {"by_token": torch.randn(2, tokens, 2, 3).to(dtype), "by_sample": torch.randn(2, 2, 3)}
    branch = BranchGates(**{name: gates[name] for name in given})
    for order in ("raster", "tile"):
        kept = own.clone()
        out = torch.full_like(own, torch.nan) if apart else kept
        tables = merge_tables(plan, torch.device("cpu"), dtype)
        merge_low(low, kept, out, bands, tables, order, branch)
        assert torch.equal(out[:, tokens:], own[:, tokens:])
        results = [expected_sum(own, low, bands, plan, order, branch, t) for t in (dtype, None)]
        check_errors(*({"out": x} for x in (out[:, :tokens], *results)), case=(order, given))


def expected_sum(
    own: torch.Tensor,
    low: torch.Tensor,
    bands: torch.Tensor,
    plan: AttentionPlan,
    order: Any,
    branch: BranchGates,
    dtype: torch.dtype | None,
) -> torch.Tensor:
    """By the reference, in a dtype; None is float64."""
    wide = dtype or torch.float64
    spread = expand_low(low.to(wide), plan, order).unflatten(0, (2, 3)).transpose(1, 2)
    is_low = (bands == Band.LOW)[:, None, :, None]
    mine = torch.where(is_low, spread, own[:, : spread.shape[1]].to(wide))
    gates = (None if x is None else x.to(wide) for x in branch.both)
    return gated_sum(mine, spread, *gates)


def test_gates_of_zero_leave_the_own_band_to_the_bit() -> None:
    plan = make_plan(Grid(3, 5, 7))
    own = torch.randn(2, 105 + TEXT, 3, 16).to(torch.bfloat16)
    out, low = torch.empty_like(own), torch.randn(6, plan.num_low_tokens, 16).to(own.dtype)
    tables = merge_tables(plan, torch.device("cpu"), own.dtype)
    high = torch.full((2, 3), Band.HIGH)
    merge_low(low, own, out, high, tables, "raster", BranchGates(torch.zeros(2, 105, 2, 3)))
    assert torch.equal(out, own)
