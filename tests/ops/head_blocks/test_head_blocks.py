"""Heads in blocks: what lies where, and the Triton kernel against plain PyTorch, bit for bit."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from freqformer.ops.head_blocks import reference
from freqformer.ops.head_blocks.triton.launch import launch_from_blocks, launch_to_blocks

ORDER = torch.tensor([3, 0, 4, 1, 2])
COUNTS = (2, 2, 1)


def test_a_block_has_its_ranks_heads_of_all_tokens() -> None:
    x = torch.arange(2 * 3 * 5).view(2, 3, 5, 1)
    first, second, third = reference.to_blocks(x, ORDER, COUNTS).split([12, 12, 6])
    assert torch.equal(first.view(3, 2, 2, 1), x[:, :, [3, 0]].transpose(0, 1))
    assert torch.equal(second.view(3, 2, 2, 1), x[:, :, [4, 1]].transpose(0, 1))
    assert torch.equal(third.view(3, 2, 1, 1), x[:, :, [2]].transpose(0, 1))


def transposed(x: Tensor) -> Tensor:
    """The same numbers, tokens' heads not side by side, as gates come."""
    return x.transpose(2, 3).contiguous().transpose(2, 3)


def padded(x: Tensor) -> Tensor:
    """The same numbers as a part of a larger tensor."""
    whole = torch.full((x.shape[0], x.shape[1] + 2, x.shape[2], x.shape[3] + 1), torch.nan)
    whole[:, 1:-1, :, :-1] = x
    return whole.to(x.dtype)[:, 1:-1, :, :-1]


@pytest.mark.parametrize("shape", [(1, 70, 5, 64), (2, 33, 5, 24), (3, 7, 5, 2), (2, 0, 5, 8)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_the_kernel_moves_what_the_reference_moves(
    shape: tuple[int, int, int, int], dtype: torch.dtype
) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    expected = reference.to_blocks(x, ORDER, COUNTS)
    for given in (x, transposed(x), padded(x)):
        found = launch_to_blocks(given, ORDER, COUNTS)
        assert torch.equal(found, expected)
    back = launch_from_blocks(expected, ORDER, COUNTS, shape)
    assert back.is_contiguous()
    assert torch.equal(back, x)
    assert torch.equal(reference.from_blocks(expected, ORDER, COUNTS, shape), x)
