"""Heads in blocks: what lies where, and the Triton kernel against plain PyTorch, bit for bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from freqformer.ops.head_blocks import reference
from freqformer.ops.head_blocks.api import prepared_blocks
from freqformer.ops.head_blocks.triton.launch import (
    launch_from_blocks,
    launch_prepared,
    launch_to_blocks,
)
from freqformer.ops.parameters import AttentionParameters, Pairs, RotaryEmbedding
from freqformer.ops.query_key import normalised, rotated

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


TOKENS = 37
WIDTH = 24


def turn(
    samples: int, tokens: int, heads: int, pairs: int, which: Pairs = "interleaved"
) -> RotaryEmbedding:
    draw = torch.Generator().manual_seed(2)
    angle = torch.randn(samples, tokens, heads, pairs, generator=draw)
    # The two differ in their strides, as those of some models do.
    sin = angle.sin().transpose(1, 2).contiguous().transpose(1, 2)
    return RotaryEmbedding(angle.cos(), sin, which)


def weight_of(*shape: int) -> Tensor:
    return 1 + 0.3 * torch.randn(shape, generator=torch.Generator().manual_seed(3))


FORMS: dict[str, dict[str, Any]] = {
    "nothing": {},
    "norm of each head": {"query_norm": weight_of(WIDTH)},
    "norm across heads": {"query_norm": weight_of(5, WIDTH), "norm_across_heads": True},
    "neighbours": {"rotary": turn(1, TOKENS, 1, WIDTH // 2)},
    "halves of each head, some channels, some tokens": {
        "rotary": turn(2, TOKENS - 9, 5, 8, "halved")
    },
    "all": {
        "query_norm": weight_of(5, WIDTH),
        "norm_across_heads": True,
        "rotary": turn(2, TOKENS, 5, WIDTH // 2),
        "norm_eps": 1e-3,
    },
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_kernel_prepares_as_plain_steps_do(form: str, dtype: torch.dtype) -> None:
    given = AttentionParameters(**FORMS[form])
    x = torch.randn(2, TOKENS, 5, WIDTH, generator=torch.Generator().manual_seed(1)).to(dtype)
    steps = rotated(normalised(x, given.query_norm, given, TOKENS), given)
    expected = reference.to_blocks(steps, ORDER, COUNTS)
    for tokens in (x, transposed(x)):
        found = launch_prepared(tokens, given.query_norm, given, ORDER, COUNTS)
        assert found.dtype == dtype
        # At most two units in the last place: of the norm, and of the turn.
        limit = 2 * torch.finfo(dtype).eps
        torch.testing.assert_close(found, expected, rtol=limit, atol=limit)


def test_no_launch_without_a_gpu() -> None:
    x = torch.zeros(1, 3, 5, 8)
    assert prepared_blocks(x, None, AttentionParameters(), ORDER, COUNTS) is None
