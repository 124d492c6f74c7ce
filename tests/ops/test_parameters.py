"""What a call of the operation is given besides tensors."""

from __future__ import annotations

import pytest
import torch

from freqformer import FreqFormerConfig, Grid, frequency_attention
from freqformer.ops.parameters import KnownBands

GRID = Grid(2, 4, 3)
CONFIG = FreqFormerConfig(tile=(2, 2, 3), compression=8, mid_tiles=1, window=(1, 1, 1))


def test_bands_on_the_host_are_among_those_that_are_named() -> None:
    bands = torch.tensor([[2, 0, 2], [2, 2, 2]])
    assert KnownBands(bands, (0, 2)).bands is bands
    assert KnownBands(bands, (0, 1, 2, 3)).present == (0, 1, 2, 3)
    with pytest.raises(ValueError, match=r"present is \(2,\), and bands hold \[0\]"):
        KnownBands(bands, (2,))


@pytest.mark.parametrize("impl", ["eager", "triton"])
def test_results_are_those_of_the_bands_alone(impl: str) -> None:
    bands = torch.tensor([[2, 0, 2]])
    query, key, value = torch.randn(3, 1, GRID.num_tokens, 3, 16)
    alone, known = (
        frequency_attention(
            query, key, value, grid=GRID, config=CONFIG, allocation=given, impl=impl
        )  # type: ignore[arg-type]
        for given in (bands, KnownBands(bands, (0, 2)))
    )
    assert torch.equal(alone, known)
