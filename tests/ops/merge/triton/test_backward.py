"""The merge's backward in Triton's interpreter: gradients of low tokens' outputs against autograd
through the definition."""

from __future__ import annotations

import pytest
import torch
from tests.support.interpreter import patch_language_once
from tests.support.numerics import check_errors, nan_filled_allocations
from torch import Tensor

from freqformer.config import FreqFormerConfig
from freqformer.grid import Grid
from freqformer.ops.merge import expand_low
from freqformer.plan import build_plan

triton = pytest.importorskip("triton")
if not triton.knobs.runtime.interpret:
    pytest.skip("set TRITON_INTERPRET=1 to run kernels on the CPU", allow_module_level=True)

from freqformer.ops.merge.backward_tables import collapse_tables  # noqa: E402
from freqformer.ops.merge.triton.launch import merge_low_backward  # noqa: E402

patch_language_once()
pytestmark = pytest.mark.filterwarnings(
    "ignore:Conversion of an array with ndim:DeprecationWarning"
)

GRIDS = {
    "even tiles": (Grid(4, 6, 8), FreqFormerConfig(tile=(2, 3, 4), compression=16)),
    "primes": (Grid(3, 5, 7), FreqFormerConfig(tile=(2, 3, 4), compression=16)),
    "short tiles of fewer low tokens": (
        Grid(3, 7, 9),
        FreqFormerConfig(tile=(2, 6, 4), compression=4),
    ),
    "one frame": (Grid(1, 5, 7), FreqFormerConfig(compression=32)),
    "one token": (Grid(1, 1, 1), FreqFormerConfig()),
    "many tokens within reach": (Grid(4, 4, 12), FreqFormerConfig(tile=(4, 4, 4), compression=64)),
}


@pytest.mark.parametrize("low_output", ["interpolate", "inverse_dct"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", GRIDS)
def test_gradient_of_the_merge(name: str, dtype: torch.dtype, low_output: str) -> None:
    """Against autograd through the definition in float64; in raster order, and in tile order the
    same reordered."""
    grid, config = GRIDS[name]
    config = FreqFormerConfig(**{**config.to_dict(), "low_output": low_output})
    plan = build_plan(grid, config, num_heads=3, head_dim=16, num_text_tokens=2)
    grad_out = torch.randn(2, grid.num_tokens + 2, 3, 16).to(dtype)
    bands = torch.tensor([0, 1, 0, 2, 0, 3], dtype=torch.int32)
    low_rows = bands == 0

    def by_autograd(like: torch.dtype) -> Tensor:
        low = torch.zeros(3, plan.num_low_tokens, 16, dtype=like, requires_grad=True)
        given = grad_out[:, : grid.num_tokens].transpose(1, 2).flatten(0, 1)[low_rows]
        return torch.autograd.grad(expand_low(low, plan, "raster"), low, given.to(like))[0]

    def by_kernel(grad: Tensor, order: str) -> Tensor:
        with nan_filled_allocations():
            tables = collapse_tables(plan, torch.device("cpu"), dtype, order)  # type: ignore[arg-type]
            return merge_low_backward(grad, bands, tables, plan.num_low_tokens)[low_rows]

    got = by_kernel(grad_out, "raster")
    named = ({"grad_low_out": x} for x in (got, by_autograd(dtype), by_autograd(torch.float64)))
    check_errors(*named, case=name)
    tiled = torch.cat([grad_out[:, plan.layout.raster_to_tile], grad_out[:, grid.num_tokens :]], 1)
    assert torch.equal(by_kernel(tiled, "tile"), got)
