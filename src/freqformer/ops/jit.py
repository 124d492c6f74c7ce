"""What the Triton kernels share."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import triton
import triton.language as tl
from triton import knobs

INTERPRETED = tl.constexpr(knobs.runtime.interpret)
"""Whether kernels run in Triton's interpreter on the CPU."""


@lru_cache(maxsize=1024, typed=True)
def constant(value: bool | float | str) -> tl.constexpr:
    """What a kernel is compiled for, by equal values the same object: Triton compares all constants
    of a launch with those of earlier ones, which takes it no time for the same object.

    1 and True are told apart.
    """
    return tl.constexpr(value)


def _keep_booleans() -> None:
    """Let the interpreter of Triton 3.9 broadcast a comparison of scalars as the booleans that it
    is.

    It takes the type of what was compared, so that `tile < tiles` within a mask makes integers of
    it, which it then refuses as a mask and of which `~` is never zero. Kernels that are compiled
    know nothing of this.
    """
    from triton.runtime.interpreter import InterpreterBuilder

    splat = InterpreterBuilder.create_splat

    def create_splat(self: Any, ret_ty: Any, arg: Any) -> Any:
        made = splat(self, ret_ty, arg)
        made.data = made.data.astype(bool) if arg.data.dtype == bool else made.data
        return made

    InterpreterBuilder.create_splat = create_splat


if knobs.runtime.interpret:
    _keep_booleans()


@triton.jit
def dot(a, b, acc):
    """acc + a @ b: (M, K), (K, N), float32 (M, N). Exact products, float32 sums; float32 operands
    are not rounded to tf32."""
    if INTERPRETED:
        # The interpreter holds bfloat16 as integers and would multiply those.
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    # The default for float32, tf32, keeps 10 of a factor's 23 fraction bits.
    return tl.dot(a, b, acc, input_precision="ieee")


@triton.jit
def cast(x, dtype: tl.constexpr):
    """float32 x in another float dtype, rounded to the nearest."""
    if INTERPRETED and dtype == tl.bfloat16:
        # The interpreter cuts the lower bits off; on a GPU the conversion itself rounds.
        # bfloat16 is the upper half of float32. Half of its last bit is added, one less where that
        # bit is even, and the lower half cut off: ties go to even.
        bits = x.to(tl.float32).to(tl.int32, bitcast=True)
        x = ((bits + 0x7FFF + ((bits >> 16) & 1)) & -65536).to(tl.float32, bitcast=True)
    return x.to(dtype)


@triton.jit
def real_channels(live, D: tl.constexpr, W: tl.constexpr):
    """Mask (places, W or 1) of the D channels that tokens have, of those that are live,
    (places,)."""
    mask = live[:, None]
    # Settled when the kernel is compiled: where blocks are as wide as tokens nothing is compared.
    if D != W:
        mask = mask & (tl.arange(0, W) < D)[None, :]
    return mask


@triton.jit
def load_vector(source, D: tl.constexpr, W: tl.constexpr):
    """A vector of D channels in float32, zeros after them: (W,)."""
    channel = tl.arange(0, W)
    if D != W:
        x = tl.load(source + channel, mask=channel < D, other=0.0)
    else:
        x = tl.load(source + channel)
    return x.to(tl.float32)


@triton.jit
def norm_tokens(x, weight, eps, D: tl.constexpr):
    """RMS norm of tokens (places, W) along their D channels, which zeros follow; weight (D,).
    Rounded to their dtype."""
    # Squares of float16 would overflow, and bfloat16 sums lose what is small.
    wide = x.to(tl.float32)
    scale = tl.rsqrt(tl.sum(wide * wide, 1) / D + eps)
    gain = load_vector(weight, D, x.shape[1])
    return cast(wide * scale[:, None] * gain[None, :], x.dtype)


@triton.jit
def branch_gates(by_token, by_sample, sample, head, heads, video, place, live):
    """Gates of the own band and of LOW for the video tokens `place` of one row, float32.

    The two gates of a token lie `heads` apart, so that the heads of a token are neighbours: the
    programs of a tile's rows run side by side and share what one of them brings into the cache.
    """
    own, low = tl.zeros(place.shape, tl.float32), tl.zeros(place.shape, tl.float32)
    # None is known when the kernel is compiled: each of the two kinds may be absent, or both there.
    if by_token is not None:
        entry = (sample.to(tl.int64) * video + place) * 2 * heads + head
        own += tl.load(by_token + entry, mask=live, other=0.0).to(tl.float32)
        low += tl.load(by_token + entry + heads, mask=live, other=0.0).to(tl.float32)
    if by_sample is not None:
        # One load for all tokens of a block: a scalar, which is broadcast.
        entry = sample * 2 * heads + head
        own += tl.load(by_sample + entry).to(tl.float32)
        low += tl.load(by_sample + entry + heads).to(tl.float32)
    return own, low
