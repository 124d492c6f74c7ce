"""What the Triton kernels share."""

from __future__ import annotations

import triton
import triton.language as tl
from triton import knobs

INTERPRETED = tl.constexpr(knobs.runtime.interpret)
"""Whether kernels run in Triton's interpreter on the CPU."""


@triton.jit
def dot(a, b, acc):
    """acc + a @ b: exact products, float32 sums; float32 operands are not rounded to tf32."""
    if INTERPRETED:
        # The interpreter holds bfloat16 as integers and would multiply those.
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, acc, input_precision="ieee")
