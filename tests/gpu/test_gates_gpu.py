"""The gated sum on a GPU: the reference in float64, forward and backward."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")

from tests.support.numerics import nan_filled_allocations

from freqformer.ops.gates import reference
from freqformer.ops.gates.api import gated_sum

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]


@pytest.mark.parametrize("given", [("gates", "weights"), ("gates",), ("weights",)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", [(2, 3825, 5, 64), (1, 16384, 8, 128), (3, 7, 1, 16)], ids=str)
def test_output_and_gradients(
    shape: tuple[int, int, int, int], dtype: torch.dtype, given: tuple[str, ...]
) -> None:
    torch.manual_seed(0)
    batch, tokens, heads, _ = shape
    tensors = {
        name: torch.randn(shape, device="cuda").to(dtype).requires_grad_()
        for name in ("own", "low")
    }
    if "gates" in given:
        tensors["gates"] = (
            torch.randn(batch, tokens, 2, heads, device="cuda").to(dtype).requires_grad_()
        )
    if "weights" in given:
        tensors["weights"] = torch.randn(batch, 2, heads, device="cuda").requires_grad_()
    exact = {name: x.detach().double().requires_grad_() for name, x in tensors.items()}
    slope = torch.randn(shape, device="cuda").to(dtype)
    with nan_filled_allocations():
        out = gated_sum(
            tensors["own"], tensors["low"], tensors.get("gates"), tensors.get("weights"), fused=True
        )
        found = torch.autograd.grad(out, list(tensors.values()), slope)
    wanted = reference.gated_sum(
        exact["own"], exact["low"], exact.get("gates"), exact.get("weights")
    )
    for name, x, y in zip(
        ("out", *tensors),
        (out, *found),
        (wanted, *torch.autograd.grad(wanted, list(exact.values()), slope.double())),
        strict=True,
    ):
        # Weights' gradients are float32 sums over all tokens.
        eps = max(torch.finfo(x.dtype).eps, torch.finfo(torch.float32).eps * 16)
        scale = 4 * eps if name != "weights" else 4 * eps * (tokens * shape[3]) ** 0.5
        torch.testing.assert_close(
            x.double(), y, rtol=2 * eps, atol=scale, msg=lambda text, n=name: f"{n}: {text}"
        )
