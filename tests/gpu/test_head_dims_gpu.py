"""Head_dims that buffers are padded for, on a GPU: the pipeline in Triton, and the launches in
Gluon."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from freqformer.attention import FreqAttention
from freqformer.config import Band, FreqFormerConfig
from freqformer.grid import Grid
from freqformer.ops.architectures import architecture_name
from freqformer.ops.backends import HOPPER, launches_of, resolve

pytest.importorskip("triton")

from tests.support.attend_cases import check_case, make_case
from tests.support.attend_grads import check_grads
from tests.support.cases import GATES, LEARNED, Case, make_inputs
from tests.support.fused import check_call
from tests.support.numerics import nan_filled_allocations

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]
GRID = Grid(9, 17, 25)
CONFIG = FreqFormerConfig(mid_tiles=5, summary_tokens=9)
EVERY_BAND = torch.tensor([[int(band) for band in Band]])
TEXT: dict[str, Any] = {"num_text_tokens": 77, "mask": "random"}
on_hopper = pytest.mark.skipif(
    not torch.cuda.is_available() or architecture_name(torch.device("cuda")) != HOPPER,
    reason="needs a Hopper GPU",
)


def pipeline_case(head_dim: int, **changes: Any) -> Case:
    told: dict[str, Any] = {"grid": GRID, "config": CONFIG, "allocation": ((0, 1, 2, 3),)}
    return Case(**told | {"head_dim": head_dim, "dtype": torch.bfloat16} | changes)


CASES = {
    "40, all learned": pipeline_case(40, learned=LEARNED, **TEXT),
    "72, LOW branch": pipeline_case(72, gates=GATES, learned=LEARNED, **TEXT),
    "72, float32": pipeline_case(72, learned=LEARNED, dtype=torch.float32),
    "80, tile order, outliers": pipeline_case(
        80, learned=("norm", "rotary"), token_order="tile", outliers=True, dtype=torch.float16
    ),
    "80, gains": pipeline_case(
        80, config=replace(CONFIG, band_features="band_gains"), learned=("norm", "rotary"), **TEXT
    ),
    "96, LOW branch, full tiles": pipeline_case(
        96, grid=Grid(8, 16, 32), gates=GATES, learned=LEARNED, **TEXT
    ),
    "96, windows": pipeline_case(96, gates=GATES, allocation=((2, 2, 2),)),
    "160, all learned": pipeline_case(160, learned=LEARNED, **TEXT),
    "192, LOW branch": pipeline_case(192, gates=GATES, learned=LEARNED, **TEXT),
    "256, LOW branch": pipeline_case(256, gates=GATES, learned=LEARNED, **TEXT),
    "21, no rotary": pipeline_case(21, gates=GATES, learned=("summaries", "norm"), **TEXT),
}


@pytest.mark.parametrize("name", CASES)
def test_outputs_and_gradients_are_as_near_float64_as_the_peers(name: str) -> None:
    with nan_filled_allocations():
        check_call(CASES[name], make_inputs(CASES[name], "cuda"), gradients=True)


@on_hopper
@pytest.mark.parametrize("grid", [Grid(8, 16, 32), Grid(5, 17, 11)], ids=["full", "ragged"])
@pytest.mark.parametrize(
    ("head_dim", "dtype"),
    [(40, torch.float16), (72, torch.bfloat16), (80, torch.float16), (96, torch.bfloat16)],
)
def test_gluon_launches(head_dim: int, dtype: torch.dtype, grid: Grid) -> None:
    told: dict[str, Any] = {"head_dim": head_dim, "dtype": dtype, "text": 70, "learned": True}
    for branch in (False, True):
        case = make_case(
            grid, CONFIG, bands=EVERY_BAND, branch=branch, masked=True, device="cuda", **told
        )
        assert case.plan.layout.slots > 64  # else the launches would be Triton's
        with nan_filled_allocations():
            check_case(case, launches_of("gluon").attend(**case.arguments), told)
            check_grads(case, told, own_forward=True, impl="gluon")


@on_hopper
@pytest.mark.parametrize("head_dim", [72, 96])
def test_a_layer_in_gluon(head_dim: int) -> None:
    """Outputs and gradients of a layer are those of impl="triton", to rounding."""
    torch.manual_seed(0)
    grid, width = Grid(5, 16, 20), 4 * head_dim
    layer = FreqAttention(width, 4, FreqFormerConfig()).to("cuda", torch.bfloat16)
    hidden = torch.randn(2, grid.num_tokens, width, device="cuda", dtype=torch.bfloat16)
    timestep = torch.tensor([0.2, 0.9], device="cuda")
    heads = hidden.unflatten(2, (4, head_dim))
    assert resolve("auto", (heads, heads, heads)).name == "gluon"
    results = []
    for impl in ("gluon", "triton"):
        layer.zero_grad()
        out = layer(hidden, grid, timestep, impl=impl)
        out.float().square().sum().backward()
        grads = [p.grad.clone() for p in layer.parameters() if p.grad is not None]
        results.append([out.detach(), *grads])
    for mine, theirs in zip(*results, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0.05, atol=0.02 * float(theirs.abs().max()))
