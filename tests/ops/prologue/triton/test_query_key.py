"""Norms and rotary embeddings of other models in Triton's interpreter: outputs and gradients of
whole calls against float64."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from freqformer.config import Band, FreqFormerConfig
from freqformer.grid import Grid

triton = pytest.importorskip("triton")
if not triton.knobs.runtime.interpret:
    pytest.skip("TRITON_INTERPRET=1 is not set: kernels would need a GPU", allow_module_level=True)

from tests.support.cases import GATES, Case, make_inputs, run  # noqa: E402
from tests.support.fused import check_call  # noqa: E402
from tests.support.interpreter import patch_language_once  # noqa: E402
from tests.support.numerics import nan_filled_allocations  # noqa: E402

pytestmark = [
    # The interpreter's own: it turns arrays of one element into loop bounds.
    pytest.mark.filterwarnings("ignore:Conversion of an array with ndim:DeprecationWarning"),
    # A LOW row has fewer queries than tokens. What is behind them is never stored.
    pytest.mark.filterwarnings(
        "ignore:(All-NaN slice|invalid value|overflow) encountered:RuntimeWarning"
    ),
]
EVERY_BAND = ((Band.LOW, Band.MID, Band.HIGH, Band.DENSE),)
# Two low tokens of 16: with all 16 the other bands would be empty.
SMALL = FreqFormerConfig(
    tile=(2, 2, 4), compression=64, mid_tiles=2, window=(1, 2, 2), summary_tokens=3
)


@pytest.fixture(autouse=True, scope="module")
def _fast_interpreter() -> None:
    patch_language_once()


def small_case(*learned: str, **changes: Any) -> Case:
    told: dict[str, Any] = {
        "grid": Grid(2, 3, 5),
        "config": SMALL,
        "allocation": EVERY_BAND,
        "head_dim": 16,
    }
    return Case(**told | changes, learned=learned)


MASKED: dict[str, Any] = {"num_text_tokens": 3, "mask": "random"}
PAIR = ((Band.MID, Band.HIGH), (Band.LOW, Band.MID))
CASES = {
    "across heads": small_case("norm across heads", "rotary"),
    "across heads, masked text": small_case("norm across heads", **MASKED),
    "across heads, text normalised": small_case("norm across heads", "normalised text", **MASKED),
    "across heads, two samples": small_case(
        "norm across heads", "packed", allocation=PAIR, dtype=torch.bfloat16, gates=GATES, **MASKED
    ),
    "across heads, pooled": small_case(
        "norm across heads",
        "halved",
        "summaries",
        "offsets",
        allocation=((Band.MID, Band.HIGH),),
    ),
    "text normalised": small_case("norm", "normalised text", "rotary", **MASKED),
    "halved": small_case("norm", "halved", dtype=torch.float16),
    "halved, tile order": small_case("norm", "halved", token_order="tile", **MASKED),
    "halved, pooled": small_case("norm", "halved", "summaries", "offsets", **MASKED),
    "halved, packed": small_case(
        "norm",
        "halved, packed",
        dtype=torch.bfloat16,
        allocation=((Band.LOW, Band.HIGH),),
        **MASKED,
    ),
    "halved, no power of two": small_case("halved, packed", head_dim=24),
    "halved, gains": small_case(
        "norm across heads", "halved", config=replace(SMALL, band_features="band_gains")
    ),
    "packed": small_case("norm", "packed", allocation=PAIR, **MASKED),
    "wide, across heads": small_case(
        "norm across heads",
        "rotary",
        grid=Grid(2, 3, 5),
        allocation=((Band.MID, Band.LOW),),
        head_dim=128,
        dtype=torch.bfloat16,
    ),
    "wide, halved, packed": small_case(
        "norm",
        "halved, packed",
        grid=Grid(2, 3, 5),
        allocation=((Band.HIGH, Band.DENSE),),
        head_dim=64,
        dtype=torch.float16,
        num_text_tokens=2,
    ),
}


SOON = (
    "across heads, two samples",
    "across heads, pooled",
    "halved, packed",
    "wide, halved, packed",
)
"""What every run of the tests covers; the others repeat its parts alone."""


@pytest.mark.parametrize(
    "name", [name if name in SOON else pytest.param(name, marks=pytest.mark.slow) for name in CASES]
)
def test_output_and_gradients(name: str) -> None:
    case = CASES[name]
    with nan_filled_allocations():
        check_call(case, make_inputs(case), gradients=True)


def test_what_masked_text_holds_reaches_nobody() -> None:
    """NaN and infinity in masked queries, keys and values, with a norm across heads, count as
    zeros."""
    case = small_case("norm across heads", allocation=((Band.MID,),), **MASKED)
    inputs = make_inputs(case)
    assert inputs.text_mask is not None
    inputs.text_mask[0] = torch.tensor([True, False, False])
    masked = slice(-2, None)
    found = []
    for filler in (torch.nan, 0.0):
        for x in (inputs.query, inputs.key, inputs.value):
            x[0, masked] = filler
        found.append(run(case, inputs, "triton"))
    for name, x in found[0].items():
        other = found[1][name]
        if name in ("grad_query", "grad_key", "grad_value"):
            # Gradients of what is no number are anything.
            x[0, masked] = 0
            other[0, masked] = 0
        torch.testing.assert_close(x, other, rtol=0, atol=0)
