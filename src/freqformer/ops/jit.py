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


@triton.jit
def cast(x, dtype: tl.constexpr):
    """float32 x in another float dtype, rounded to the nearest."""
    if INTERPRETED and dtype == tl.bfloat16:
        # The interpreter cuts the lower bits off; on a GPU the conversion itself rounds.
        bits = x.to(tl.float32).to(tl.int32, bitcast=True)
        x = ((bits + 0x7FFF + ((bits >> 16) & 1)) & -65536).to(tl.float32, bitcast=True)
    return x.to(dtype)
