"""`frequency_attention` against an oracle, torch's dense attention, finite differences and itself;
and what it refuses."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch
from tests.support.cases import LEARNED, Case, Inputs, make_inputs, random_case, run, select
from tests.support.numerics import Pool, check_errors, nan_filled_allocations
from tests.support.oracle import attend_oracle
from torch import Tensor
from torch.nn import functional as F

from freqformer import (
    AttentionParameters,
    Band,
    FreqFormerConfig,
    Grid,
    build_plan,
    frequency_attention,
)
from freqformer.config import BandFeatures, LowOutput, MidPattern
from freqformer.grid import tile_layout
from freqformer.ops.backends import PlainImpl
from freqformer.ops.parameters import BranchGates
from freqformer.ops.tokens import TokenOrder
from freqformer.plan import Selection

RAGGED = Grid(3, 5, 7)
SMALL = FreqFormerConfig(
    tile=(2, 2, 4), compression=32, mid_tiles=2, window=(2, 3, 1), summary_tokens=4
)
"""With so much compression none of the bands is empty."""
ALL_BANDS = ((0, 1, 2, 3),)
IMPLS: tuple[PlainImpl, ...] = ("eager", "reference")


def _exact(case: Case, inputs: Inputs, selection: Selection | None) -> dict[str, Tensor]:
    return run(case, inputs.double(), "reference", selection=selection)


def with_branch(own: Tensor, low: Tensor, gates: BranchGates, video: int) -> Tensor:
    """(1 + g[0]) * own + g[1] * low for video tokens, token by token; text as it is."""
    out = own.clone()
    for sample, token, head in product(range(len(own)), range(video), range(own.shape[2])):
        g = own.new_zeros(2)
        if gates.by_token is not None:
            g = g + gates.by_token[sample, token, :, head]
        if gates.by_sample is not None:
            g = g + gates.by_sample[sample, :, head]
        out[sample, token, head] *= 1 + g[0]
        out[sample, token, head] += g[1] * low[sample, token, head]
    return out


# What it computes


@pytest.mark.parametrize("seed", range(30))
def test_reference_is_what_the_design_says(seed: int) -> None:
    case = random_case(
        seed, max_tokens=60, dtype=torch.float64, token_order="raster", head_dim=4, outliers=False
    )
    config = replace(case.config, band_features="full", low_output="interpolate")
    learned = tuple(name for name in case.learned if name in ("summaries", "offsets"))
    case = replace(case, config=config, learned=learned)
    inputs = make_inputs(case).double()
    selection = select(case, inputs)
    out = run(case, inputs, "reference", selection=selection, gradients=False)["out"]
    tiles = None if selection is None else selection.tiles
    wanted = attend_oracle(case, inputs, tiles)
    if inputs.low_branch is not None:
        every_low = replace(case, allocation=((Band.LOW.value,) * case.num_heads,) * len(out))
        low = attend_oracle(every_low, inputs, tiles)
        wanted = with_branch(wanted, low, inputs.low_branch, case.grid.num_tokens)
    assert (out - wanted).abs().max() <= 1e-12


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize(
    "grid", [RAGGED, Grid(7, 11, 13), Grid(1, 9, 17), Grid(1, 1, 3), Grid(4, 8, 16)]
)
@pytest.mark.parametrize("band", [Band.DENSE, Band.MID])
@pytest.mark.parametrize("text", [0, 9])
def test_identity_is_dense_attention(impl: PlainImpl, grid: Grid, band: Band, text: int) -> None:
    config = FreqFormerConfig(mid_tiles=None, summary_tokens=0)
    query, key, value = torch.randn(3, 2, grid.num_tokens + text, 2, 32).unbind(0)
    value = value.tanh()
    mask = torch.rand(2, text) < 0.5
    out = frequency_attention(
        query,
        key,
        value,
        grid=grid,
        allocation=[band] * 2,
        config=config,
        num_text_tokens=text,
        text_mask=mask,
        impl=impl,
    )
    visible = torch.cat([torch.ones(2, grid.num_tokens, dtype=torch.bool), mask], 1)[:, None, None]
    dense = F.scaled_dot_product_attention(
        *(x.transpose(1, 2) for x in (query, key, value)), attn_mask=visible
    )
    assert (out - dense.transpose(1, 2)).abs().max() <= 1e-6


# Numerics


def _sweep(seeds: range) -> None:
    pool = Pool()
    for seed in seeds:
        case = random_case(seed)
        inputs = make_inputs(case)
        selection = select(case, inputs)
        exact = _exact(case, inputs, selection)
        eager, peer = (
            run(case, inputs, impl, selection=selection) for impl in ("eager", "reference")
        )
        check_errors(eager, peer, exact, outliers=case.outliers, case=case)
        pool.add(eager, peer, exact)
    pool.check()


def test_eager_is_as_near_float64_as_the_reference() -> None:
    _sweep(range(100))


@pytest.mark.slow
def test_eager_is_as_near_float64_as_the_reference_in_a_long_sweep() -> None:
    _sweep(range(100, 1000))


def test_eager_is_as_near_float64_at_length() -> None:
    for seed, dtype in enumerate((torch.float32, torch.float16, torch.bfloat16)):
        case = random_case(
            seed, grid=Grid(7, 11, 13), allocation=ALL_BANDS,
            config=FreqFormerConfig(summary_tokens=256),
            head_dim=64, dtype=dtype,
            num_text_tokens=20, mask="random", learned=LEARNED, outliers=False,
        )  # fmt: skip
        inputs = make_inputs(case)
        selection = select(case, inputs)
        eager, peer = (
            run(case, inputs, impl, selection=selection) for impl in ("eager", "reference")
        )
        check_errors(eager, peer, _exact(case, inputs, selection), case=case)


@pytest.mark.parametrize("seed", range(20))
def test_eager_in_float64(seed: int) -> None:
    case = random_case(seed, dtype=torch.float64, max_tokens=200)
    inputs = make_inputs(case).double()
    selection = select(case, inputs)
    eager, exact = run(case, inputs, "eager", selection=selection), _exact(case, inputs, selection)
    for name, wanted in exact.items():
        assert (eager[name] - wanted).abs().max() <= 1e-10 * max(1.0, float(wanted.abs().max())), (
            name,
            case,
        )


PLACES: tuple[tuple[Grid, MidPattern, LowOutput, int, TokenOrder], ...] = (
    (Grid(3, 2, 5), "topk", "interpolate", 4, "raster"),
    (Grid(1, 5, 5), "axial", "inverse_dct", 1, "tile"),
    (Grid(5, 2, 2), "radial", "interpolate", 0, "tile"),
    (Grid(1, 1, 3), "topk", "inverse_dct", 256, "tile"),
    (Grid(2, 3, 3), "topk", "interpolate", 1, "raster"),
)
FEATURES: tuple[tuple[BandFeatures, tuple[str, ...], int], ...] = (
    ("full", (), 0),
    ("full", LEARNED, 2),
    ("high_pass_values", (), 2),
    ("high_pass_values", LEARNED, 0),
    ("band_gains", LEARNED, 2),
    ("own_band", LEARNED, 0),
)
GRADCHECK = [
    Case(
        grid=grid,
        config=replace(
            SMALL,
            band_features=features,
            mid_pattern=pattern,
            low_output=low_output,
            summary_tokens=summaries,
        ),
        allocation=ALL_BANDS,
        head_dim=4,
        dtype=torch.float64,
        num_text_tokens=text,
        mask="random" if text else "none",
        learned=learned,
        token_order=order,
        seed=7,
    )
    for features, learned, text in FEATURES
    for grid, pattern, low_output, summaries, order in PLACES
]


def _gradcheck(case: Case, impl: PlainImpl, *, fast: bool) -> None:
    inputs = make_inputs(case)
    selection = select(case, inputs)
    given = inputs.parameters
    names = [
        name
        for name in ("summary_queries", "summary_offsets", "gains", "query_norm", "key_norm")
        if given
    ]
    names = [name for name in names if getattr(given, name) is not None]
    leaves = [
        inputs.query,
        inputs.key,
        inputs.value,
        *(getattr(given, name).double() for name in names),
    ]

    def call(query: Tensor, key: Tensor, value: Tensor, *learned: Tensor) -> Tensor:
        parameters = (
            None if given is None else replace(given, **dict(zip(names, learned, strict=True)))
        )
        return frequency_attention(
            query, key, value, grid=case.grid, allocation=case.allocation[0], config=case.config,
            impl=impl,
            num_text_tokens=case.num_text_tokens, text_mask=inputs.text_mask, parameters=parameters,
            selection=selection, token_order=case.token_order,
        )  # fmt: skip

    assert torch.autograd.gradcheck(call, [x.requires_grad_() for x in leaves], fast_mode=fast)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("number", range(len(GRADCHECK)))
def test_gradients_are_those_of_finite_differences(number: int, impl: PlainImpl) -> None:
    _gradcheck(GRADCHECK[number], impl, fast=True)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(0, len(GRADCHECK), 4))
def test_every_entry_of_the_jacobian(number: int) -> None:
    _gradcheck(GRADCHECK[number], "eager", fast=False)


# What does not matter


def _case(**changes: Any) -> Case:
    values = {
        "grid": RAGGED,
        "config": SMALL,
        "allocation": ALL_BANDS,
        "head_dim": 8,
        "learned": LEARNED,
    }
    return Case(**{**values, **changes})


@pytest.mark.parametrize("impl", IMPLS)
def test_tile_order_is_raster_order_permuted(impl: PlainImpl) -> None:
    case = _case(dtype=torch.float64, num_text_tokens=3)
    layout = tile_layout(RAGGED, SMALL.tile)
    order = torch.cat([layout.raster_to_tile, torch.arange(3) + RAGGED.num_tokens])
    raster = make_inputs(case)
    assert raster.parameters is not None
    assert raster.parameters.rotary is not None
    rotary = tuple(table[layout.raster_to_tile] for table in raster.parameters.rotary)
    moved = {
        name: getattr(raster, name)[:, order] for name in ("query", "key", "value", "grad_out")
    }
    tile = replace(raster, **moved, parameters=replace(raster.parameters, rotary=rotary))
    selection = select(case, raster)
    wanted = run(case, raster, impl, selection=selection)
    got = run(replace(case, token_order="tile"), tile, impl, selection=selection)
    for name, x in wanted.items():
        tokens = name in ("out", "grad_query", "grad_key", "grad_value")
        assert (got[name] - (x[:, order] if tokens else x)).abs().max() <= 1e-12, name


def test_allocation_per_sample_is_a_call_per_sample() -> None:
    bands = ((0, 1, 2, 3), (2, 2, 0, 1), (1, 3, 1, 0))
    case = _case(allocation=bands, num_text_tokens=2, mask="all", dtype=torch.float64)
    inputs = make_inputs(case)
    together = run(case, inputs, "eager", gradients=False)["out"]
    for sample, own in enumerate(bands):
        one = replace(
            inputs,
            **{
                name: getattr(inputs, name)[sample : sample + 1]
                for name in ("query", "key", "value", "text_mask")
            },
            parameters=replace(
                inputs.parameters, summary_offsets=inputs.parameters.summary_offsets[sample]
            ),
        )
        alone = run(replace(case, allocation=(own,)), one, "eager", gradients=False)["out"]
        assert (together[sample] - alone[0]).abs().max() <= 1e-12


def test_the_choice_of_tiles_is_that_of_tile_means() -> None:
    case = _case(dtype=torch.float64, num_text_tokens=2)
    inputs = make_inputs(case)
    chosen = run(case, inputs, "eager")
    given = run(case, inputs, "eager", selection=select(case, inputs))
    assert all(torch.equal(chosen[name], given[name]) for name in chosen)


def test_plan_and_band_types_do_not_matter() -> None:
    case = _case()
    inputs = make_inputs(case)
    call = {"grid": RAGGED, "config": SMALL, "parameters": inputs.parameters}
    tensors = (inputs.query, inputs.key, inputs.value)
    wanted = frequency_attention(*tensors, allocation=list(Band), **call)
    for allocation in (torch.arange(4), torch.arange(4, dtype=torch.int32)[None], (0, 1, 2, 3)):
        assert torch.equal(
            frequency_attention(*tensors, allocation=allocation, plan=case.plan, **call), wanted
        )


def test_hidden_text_is_as_if_it_were_not_there() -> None:
    case = _case(num_text_tokens=5, mask="all", dtype=torch.float64)
    inputs, n = make_inputs(case), RAGGED.num_tokens
    out = run(case, inputs, "eager", gradients=False)["out"]
    video = replace(
        inputs, **{x: getattr(inputs, x)[:, :n] for x in ("query", "key", "value")}, text_mask=None
    )
    without = run(replace(case, num_text_tokens=0, mask="none"), video, "eager", gradients=False)[
        "out"
    ]
    assert (out[:, :n] - without).abs().max() <= 1e-12


@pytest.mark.parametrize("seed", range(5))
def test_same_bits_at_every_run_whatever_memory_held(seed: int) -> None:
    case = random_case(seed, max_tokens=300)
    inputs = make_inputs(case)
    first, second = (run(case, inputs, "eager") for _ in range(2))
    with nan_filled_allocations():
        third = run(case, inputs, "eager")
    for name, x in first.items():
        assert torch.equal(x, second[name]), name
        assert torch.equal(x, third[name]), name


def test_a_bad_head_harms_no_other() -> None:
    case = _case(num_text_tokens=2)
    inputs = make_inputs(case)
    clean = run(case, inputs, "eager", gradients=False)["out"]
    inputs.value[:, :, 1] = torch.nan
    out = run(case, inputs, "eager", gradients=False)["out"]
    others = [0, 2, 3]
    assert torch.equal(out[:, :, others], clean[:, :, others])
    assert out[:, :, 1].isnan().all()


# What it refuses


def _call(**changes: Any) -> Tensor:
    query, key, value = torch.randn(3, 2, 105, 4, 8).unbind(0)
    values = {
        "query": query, "key": key, "value": value, "grid": RAGGED, "allocation": [0, 1, 2, 3],
        "config": SMALL,
    }  # fmt: skip
    values.update(changes)
    return frequency_attention(
        values.pop("query"), values.pop("key"), values.pop("value"), **values
    )


def _zeros(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.zeros(*shape, dtype=dtype)


GAINS, STRICT = (replace(SMALL, band_features=features) for features in ("band_gains", "own_band"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"query": _zeros(105, 4, 8)}, "query has shape"),
        ({"query": _zeros(0, 105, 4, 8)}, "query has shape"),
        ({"key": _zeros(2, 105, 2, 8)}, "key is"),
        ({"value": _zeros(2, 105, 4, 8, dtype=torch.float64)}, "value is"),
        (
            {name: _zeros(2, 105, 4, 8, dtype=torch.int64) for name in ("query", "key", "value")},
            "query has dtype",
        ),
        ({"grid": Grid(3, 5, 8)}, "query has 105 tokens"),
        ({"num_text_tokens": 3}, "query has 105 tokens"),
        ({"num_text_tokens": -1}, "num_text_tokens is -1"),
        ({"text_mask": _zeros(2, 3, dtype=torch.bool)}, "text_mask is"),
        ({"text_mask": _zeros(2, 0)}, "text_mask is"),
        ({"allocation": [0, 1, 2]}, "allocation is"),
        ({"allocation": [0, 1, 2, 4]}, "bands 0 to 3"),
        ({"allocation": [0, 1, 2, -1]}, "bands 0 to 3"),
        ({"allocation": torch.zeros(4)}, "allocation is torch.float32"),
        ({"allocation": torch.zeros(3, 4, dtype=torch.int64)}, "allocation is"),
        ({"allocation": ["low", "mid", "high", "dense"]}, "one Band per head"),
        ({"config": GAINS}, "parameters is None"),
        ({"config": STRICT}, "parameters is None"),
        ({"config": GAINS, "parameters": AttentionParameters()}, r"parameters\.gains is None"),
        (
            {"parameters": AttentionParameters(summary_queries=_zeros(4, 8))},
            r"parameters\.summary_queries",
        ),
        (
            {"parameters": AttentionParameters(summary_offsets=_zeros(2, 3))},
            r"parameters\.summary_offsets",
        ),
        ({"parameters": AttentionParameters(gains=_zeros(4, 1))}, r"parameters\.gains"),
        (
            {"parameters": AttentionParameters(key_norm=_zeros(8, dtype=torch.int64))},
            r"parameters\.key_norm",
        ),
        (
            {"parameters": AttentionParameters(rotary=(_zeros(105, 4), _zeros(104, 4)))},
            r"parameters\.rotary",
        ),
        ({"selection": Selection(torch.zeros(2, 4, 12, 2))}, "whole numbers"),
        ({"selection": Selection(_zeros(2, 4, 12, 2, dtype=torch.int64))}, "twice"),
        (
            {
                "config": replace(SMALL, mid_pattern="axial"),
                "selection": Selection(_zeros(2, 4, 12, 1, dtype=torch.int64)),
            },
            "selection is given",
        ),
        ({"token_order": "time"}, "token_order is 'time'"),
        ({"impl": "fast"}, "impl is 'fast'"),
        (
            {"plan": build_plan(RAGGED, FreqFormerConfig(), num_heads=4, head_dim=8)},
            "plan was built for",
        ),
    ],
)
def test_bad_input_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _call(**changes)


def test_odd_heads_are_not_rotated() -> None:
    query, key, value = torch.randn(3, 1, 105, 1, 5).unbind(0)
    parameters = AttentionParameters(rotary=(_zeros(105, 2), _zeros(105, 2)))
    with pytest.raises(ValueError, match="make head_dim even"):
        frequency_attention(
            query, key, value, grid=RAGGED, allocation=[0], config=SMALL, parameters=parameters
        )
