"""What the prologue hands to each band's attention."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from freqformer.bands import compress, split_bands
from freqformer.config import Band, FreqFormerConfig
from freqformer.grid import Grid
from freqformer.ops.parameters import AttentionParameters
from freqformer.ops.prologue import BandInputs, prepare
from freqformer.ops.prologue.reference import tile_means, tile_sums
from freqformer.ops.tokens import rotate
from freqformer.plan import AttentionPlan, build_plan

GRID = Grid(3, 5, 7)
HEADS, WIDTH = 2, 6
ANGLE = torch.linspace(0, 40, 315, dtype=torch.float64).reshape(105, 3)
ROTARY = (ANGLE.cos(), ANGLE.sin())


def _plan(grid: Grid = GRID, *, learned: bool = False, **changes: Any) -> AttentionPlan:
    config = FreqFormerConfig(
        **{"tile": (2, 2, 4), "compression": 8, "mid_tiles": 2, "summary_tokens": 4, **changes}
    )
    return build_plan(grid, config, num_heads=HEADS, head_dim=WIDTH, learned_summaries=learned)


def _tensors(dtype: torch.dtype = torch.float64) -> list[Tensor]:
    return list(torch.randn(3, HEADS, 105, WIDTH, dtype=torch.float64).to(dtype).unbind(0))


def _prepare(
    tensors: list[Tensor],
    band: Band,
    plan: AttentionPlan,
    parameters: AttentionParameters | None = None,
) -> BandInputs:
    query, key, value = tensors
    rows = torch.arange(HEADS)
    return prepare(
        query,
        key,
        value,
        band=band,
        plan=plan,
        rows=rows,
        parameters=parameters,
        token_order="raster",
    )


@pytest.mark.parametrize("grid", [GRID, Grid(4, 4, 8), Grid(1, 1, 1)])
def test_tile_sums_and_means(grid: Grid) -> None:
    plan = _plan(grid)
    x = torch.randn(2, grid.num_tokens, 3, dtype=torch.float64)
    for tile, (start, end) in enumerate(
        zip(plan.layout.offsets[:-1], plan.layout.offsets[1:], strict=True)
    ):
        assert (tile_sums(x, plan)[:, tile] - x[:, start:end].sum(1)).abs().max() <= 1e-13
        assert (tile_means(x, plan)[:, tile] - x[:, start:end].mean(1)).abs().max() <= 1e-13
    assert tile_means(x.bfloat16(), plan).dtype == torch.float32


@pytest.mark.parametrize("features", ["full", "high_pass_values", "band_gains", "own_band"])
@pytest.mark.parametrize("band", [Band.MID, Band.HIGH])
def test_band_features_come_before_the_rotation(features: Any, band: Band) -> None:
    plan, tensors = _plan(band_features=features), _tensors()
    gains = torch.randn(HEADS, 3, dtype=torch.float64)
    inputs = _prepare(tensors, band, plan, AttentionParameters(gains=gains, rotary=ROTARY))
    split = [torch.stack(split_bands(x, GRID, plan.config)) for x in tensors]
    wanted = {
        "full": tensors,
        "high_pass_values": [*tensors[:2], split[2][1:].sum(0)],
        "band_gains": [torch.einsum("hb,bhnc->hnc", gains, bands) for bands in split],
        "own_band": [bands[band] for bands in split],
    }[features]
    order = plan.layout.raster_to_tile
    rotated = [rotate(wanted[0], ROTARY), rotate(wanted[1], ROTARY), wanted[2]]
    for got, x in zip((inputs.query, inputs.key, inputs.value), rotated, strict=True):
        assert got is not None
        assert (got - x[:, order]).abs().max() <= 1e-12


def test_choice_and_low_tokens_come_after_the_rotation() -> None:
    plan, tensors = _plan(band_features="own_band"), _tensors()
    parameters = AttentionParameters(rotary=ROTARY)
    turned = [rotate(x, ROTARY) for x in tensors[:2]]
    means = _prepare(tensors, Band.MID, plan, parameters).selection_means
    assert means is not None
    for got, x in zip(means, turned, strict=True):
        assert (got - tile_means(x[:, plan.layout.raster_to_tile], plan)).abs().max() <= 1e-12
    low = _prepare(tensors, Band.LOW, plan, parameters)
    assert low.key is None
    for got, x in zip(
        (low.query, low.extra_key, low.extra_value), (*turned, tensors[2]), strict=True
    ):
        assert (got - compress(x, plan.layout, plan.config)).abs().max() <= 1e-12
    assert torch.equal(low.extra_bias[0], plan.low_weights.log())
    assert _prepare(tensors, Band.HIGH, plan, parameters).selection_means is None


@pytest.mark.parametrize("band", [Band.LOW, Band.MID, Band.HIGH])
def test_heads_see_the_summaries_of_other_bands(band: Band) -> None:
    plan = _plan(learned=True)
    offsets = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]], dtype=torch.float64)
    queries = torch.randn(HEADS, 2, WIDTH, dtype=torch.float64)
    inputs = _prepare(_tensors(), band, plan, AttentionParameters(queries, offsets))
    cells, low = plan.cells.num_cells, plan.num_low_tokens if band == Band.LOW else 0
    others = [int(other) for other in (Band.LOW, Band.MID, Band.HIGH) if other != band]
    assert inputs.extra_key.shape == inputs.extra_value.shape == (HEADS, low + 2 * cells, WIDTH)
    assert torch.equal(inputs.extra_bias[:, low:], offsets[:, others].repeat_interleave(cells, 1))


def test_summaries_of_large_scores_are_finite() -> None:
    queries = torch.full((HEADS, 2, WIDTH), 1e4, dtype=torch.float64)
    inputs = _prepare(_tensors(), Band.LOW, _plan(learned=True), AttentionParameters(queries))
    assert inputs.extra_key.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_dtypes(dtype: torch.dtype) -> None:
    parameters = AttentionParameters(
        torch.randn(HEADS, 2, WIDTH), torch.randn(HEADS, 3), rotary=ROTARY
    )
    for band in (Band.LOW, Band.MID, Band.HIGH):
        inputs = _prepare(_tensors(dtype), band, _plan(learned=True), parameters)
        assert inputs.query.dtype == inputs.extra_key.dtype == inputs.extra_value.dtype == dtype
        assert inputs.extra_bias.dtype == torch.float32
        if inputs.selection_means is not None:
            assert inputs.selection_means[0].dtype == torch.float32
