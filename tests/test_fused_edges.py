"""Equal scores, 16-bit gains and garbage in masked text: triton (in its interpreter) and eager
agree, and stay finite."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

triton = pytest.importorskip("triton")
if not triton.knobs.runtime.interpret:
    pytest.skip("TRITON_INTERPRET=1 is not set: kernels would need a GPU", allow_module_level=True)

from tests.support.interpreter import patch_language_once  # noqa: E402

from freqformer import AttentionParameters, FreqFormerConfig, Grid, frequency_attention  # noqa: E402

pytestmark = [
    # The interpreter's own: it turns arrays of one element into loop bounds.
    pytest.mark.filterwarnings("ignore:Conversion of an array with ndim:DeprecationWarning"),
    pytest.mark.filterwarnings(
        "ignore:(All-NaN slice|invalid value|overflow) encountered:RuntimeWarning"
    ),
]
GRID, HEAD_DIM = Grid(1, 8, 8), 16
CONFIG = FreqFormerConfig(
    tile=(1, 4, 4), mid_tiles=2, window=(1, 1, 1), compression=8, summary_tokens=2
)


@pytest.fixture(autouse=True, scope="module")
def _fast_interpreter() -> None:
    patch_language_once()


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("same", ["query", "key"])
def test_equal_tiles_are_chosen_alike(same: str, sign: float) -> None:
    """Scores of a query of zeros are 0 and -0, and both are as large."""
    query, key, value = torch.randn(3, 1, GRID.num_tokens, 1, HEAD_DIM)
    query = query * 0 * sign if same == "query" else query * sign
    key = key[:, :1].expand_as(key).contiguous() if same == "key" else key
    eager, fused, full = (
        frequency_attention(query, key, value, grid=GRID, allocation=[1], config=CONFIG, impl=impl)
        for impl in ("eager", "triton", "reference")
    )
    torch.testing.assert_close(fused, eager, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(full, eager, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_gains_of_any_dtype_are_float32_in_the_kernels(dtype: torch.dtype) -> None:
    config = FreqFormerConfig(
        tile=(1, 4, 4), band_features="band_gains", window=(1, 1, 1), summary_tokens=0
    )
    tensors = [torch.randn(1, GRID.num_tokens, 1, HEAD_DIM).requires_grad_() for _ in range(3)]
    results = []
    for impl in ("eager", "triton"):
        gains = torch.tensor([[3.0, 1.0, 0.01]]).to(dtype).requires_grad_()
        out = frequency_attention(
            *tensors,
            grid=GRID,
            allocation=[2],
            config=config,
            parameters=AttentionParameters(gains=gains),
            impl=impl,
        )
        results.append((out, *torch.autograd.grad(out.square().sum(), [*tensors, gains])))
    assert results[1][-1].dtype == dtype
    for eager, fused in zip(*results, strict=True):
        torch.testing.assert_close(
            fused, eager, rtol=2e-2 if eager.dtype != torch.float32 else 1e-3, atol=1e-3
        )


@pytest.mark.parametrize("impl", ["reference", "eager", "triton"])
@pytest.mark.parametrize("normed", [False, True])
def test_what_masked_text_holds_reaches_nothing(impl: Any, normed: bool) -> None:
    video, text, heads = GRID.num_tokens, 5, 4
    clean = torch.randn(3, 2, video + text, heads, HEAD_DIM)
    mask = torch.tensor([[True, True, False, True, False], [False] * 5])
    clean[:, :, video:] = clean[:, :, video:].masked_fill(~mask[None, :, :, None, None], 0.0)
    results = []
    for garbage in (0.0, torch.nan, torch.inf):
        given = clean.clone()
        given[:, :, video:] = given[:, :, video:].masked_fill(
            ~mask[None, :, :, None, None], garbage
        )
        tensors = [x.requires_grad_() for x in given.unbind(0)]
        norms = [torch.ones(HEAD_DIM, requires_grad=True) for _ in range(2)] if normed else []
        parameters = AttentionParameters(query_norm=norms[0], key_norm=norms[1]) if normed else None
        out = attend(tensors, mask, parameters, impl)
        results.append([out, *torch.autograd.grad(out.square().sum(), [*tensors, *norms])])
    for other in results[1:]:
        for expected, found in zip(results[0], other, strict=True):
            assert bool(found.isfinite().all())
            seen = (
                (expected, found) if expected.ndim == 1 else (expected[:, :video], found[:, :video])
            )
            torch.testing.assert_close(*seen, rtol=1e-5, atol=1e-5)


def attend(
    tensors: list[Tensor], mask: Tensor, parameters: AttentionParameters | None, impl: Any
) -> Tensor:
    return frequency_attention(
        *tensors,
        grid=GRID,
        allocation=[0, 1, 2, 3],
        config=CONFIG,
        num_text_tokens=mask.shape[1],
        text_mask=mask,
        parameters=parameters,
        impl=impl,
    )
