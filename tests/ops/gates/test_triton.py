"""The gated sum's launches in Triton's interpreter: the reference in float64, forward and
backward."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

triton = pytest.importorskip("triton")
if not triton.knobs.runtime.interpret:
    pytest.skip("TRITON_INTERPRET=1 is not set: kernels would need a GPU", allow_module_level=True)

from tests.support.interpreter import patch_language_once  # noqa: E402
from tests.support.numerics import nan_filled_allocations  # noqa: E402

from freqformer.ops.gates import reference  # noqa: E402
from freqformer.ops.gates import triton as launch  # noqa: E402

NAMES = ("own", "low", "gates", "weights")


@pytest.fixture(autouse=True, scope="module")
def _fast_interpreter() -> None:
    patch_language_once()


def draw(
    shape: tuple[int, int, int, int], dtype: torch.dtype, gates: torch.dtype | None = None
) -> list[Tensor]:
    """Own, low, gates and weights, the last in float32 as a router gives them."""
    batch, tokens, heads, _ = shape
    own, low = (torch.randn(shape).to(dtype) for _ in range(2))
    return [
        own,
        low,
        torch.randn(batch, tokens, 2, heads).to(gates or dtype),
        torch.randn(batch, 2, heads),
    ]


def check(tensors: list[Tensor], given: tuple[str, ...] = NAMES) -> None:
    """Output and gradients within rounding of float64; those of sums over many within rounding of
    their terms."""
    asked = {
        name: x.clone().requires_grad_()
        for name, x in zip(NAMES, tensors, strict=True)
        if name in given
    }
    exact = {name: x.detach().double().requires_grad_() for name, x in asked.items()}
    slope = torch.randn_like(tensors[0])
    results = []
    for sum_of, values in ((launch.gated_sum, asked), (reference.gated_sum, exact)):
        with nan_filled_allocations():
            out = sum_of(*(values.get(name) for name in NAMES))
            grads = torch.autograd.grad(out, list(values.values()), slope.to(out.dtype))
        results.append((out, *grads))
    for name, found, wanted in zip(("out", *given), *results, strict=True):
        assert found.dtype == (tensors[0] if name == "out" else asked[name]).dtype
        eps = max(torch.finfo(found.dtype).eps, torch.finfo(torch.float32).eps * 16)
        torch.testing.assert_close(
            found.double(),
            wanted,
            rtol=2 * eps,
            atol=4 * eps,
            msg=lambda text, n=name: f"{n}: {text}",
        )


@pytest.mark.parametrize("gates", [None, torch.float32])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_any_dtype(dtype: torch.dtype, gates: torch.dtype | None) -> None:
    check(draw((2, 37, 3, 16), dtype, gates))


@pytest.mark.parametrize("shape", [(1, 1, 1, 128), (3, 129, 5, 64), (2, 257, 2, 32)], ids=str)
def test_any_shape(shape: tuple[int, int, int, int]) -> None:
    check(draw(shape, torch.bfloat16))


@pytest.mark.parametrize("given", [("own", "low", "gates"), ("own", "low", "weights")], ids=str)
def test_gates_or_weights_alone(given: tuple[str, ...]) -> None:
    check(draw((2, 70, 3, 16), torch.float32), given)


def test_any_strides() -> None:
    own, low, gates, weights = draw((2, 33, 3, 16), torch.float32)
    wanted = launch.gated_sum(own, low, gates, weights)
    turned = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (own, low, gates)]
    assert torch.equal(launch.gated_sum(*turned, weights.mT.contiguous().mT), wanted)


def test_gates_of_zero_leave_the_own_branch_to_the_bit() -> None:
    own, low, gates, _ = draw((2, 33, 3, 16), torch.bfloat16)
    assert torch.equal(launch.gated_sum(own, low, torch.zeros_like(gates), None), own)


def test_operator_checks() -> None:
    own, low, gates, weights = draw((2, 5, 3, 16), torch.float32)
    given = (own.requires_grad_(), low, gates, weights)
    for name, arguments in (
        ("gated_sum", given),
        ("gated_sum_backward", (torch.randn_like(own), *(x.detach() for x in given))),
    ):
        checks = torch.library.opcheck(
            getattr(torch.ops.freqformer, name).default,
            arguments,
            test_utils=("test_schema", "test_faketensor"),
        )
        assert set(checks.values()) == {"SUCCESS"}
