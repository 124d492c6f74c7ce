"""A gated sum of two branches."""

from __future__ import annotations

import pytest
import torch

from freqformer.ops.merge import gated_sum


def _branches(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    own, low = (
        torch.randn(2, 3, 4, 6, dtype=torch.float64, generator=draw).to(dtype) for _ in range(2)
    )
    return own, low, torch.randn(2, 3, 2, 4, dtype=torch.float64, generator=draw).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_each_head_has_its_own_gates(dtype: torch.dtype) -> None:
    own, low, gates = _branches(dtype)
    out = gated_sum(own, low, gates)
    assert out.dtype == dtype
    for head in range(4):
        first, second = (gates[:, :, branch, head, None].double() for branch in range(2))
        wanted = (1 + first) * own[:, :, head].double() + second * low[:, :, head].double()
        # Two roundings, of what is added up and of the sum.
        torch.testing.assert_close(
            out[:, :, head].double(),
            wanted,
            rtol=2 * torch.finfo(dtype).eps,
            atol=4 * torch.finfo(dtype).eps,
        )


def test_gates_of_zero_leave_the_own_branch_to_the_bit() -> None:
    own, low, gates = _branches(torch.bfloat16)
    assert torch.equal(gated_sum(own, low, torch.zeros_like(gates)), own)


def test_gradients() -> None:
    assert torch.autograd.gradcheck(
        gated_sum, tuple(x.requires_grad_() for x in _branches(torch.float64))
    )
