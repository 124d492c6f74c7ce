"""What the kernels share, in the interpreter of whichever Triton is installed."""

from __future__ import annotations

import pytest
import torch

triton = pytest.importorskip("triton")
if not triton.knobs.runtime.interpret:
    pytest.skip("TRITON_INTERPRET=1 is not set: kernels would need a GPU", allow_module_level=True)

from triton import language as tl  # noqa: E402

from freqformer.ops import jit  # noqa: E402, F401 - mends the interpreter

LIVE = 5


@triton.jit
def masked_store(out, count, limit):
    place = tl.arange(0, 8)
    number = tl.load(count)
    live = (place < limit) & (number < limit)
    tl.store(out + place, place + 1, mask=live)
    tl.store(out + 8 + place, place + 1, mask=~live)


def test_a_scalar_condition_within_a_mask() -> None:
    """Triton 3.9's interpreter refused the first mask, and `~` of it held everywhere."""
    out = torch.zeros(16, dtype=torch.int32)
    masked_store[(1,)](out, torch.tensor([1]), LIVE)
    assert out.tolist() == [1, 2, 3, 4, 5, 0, 0, 0, 0, 0, 0, 0, 0, 6, 7, 8]
