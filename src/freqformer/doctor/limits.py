"""The rule that every result is held to: how far it may be from float64, beside how far a peer in
the same dtype is. docs/testing.md says it in words."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Limits:
    """Most that an error may be, as a multiple of the peer's."""

    mean: float
    max: float


OUTPUT = Limits(mean=1.05, max=1.25)
GRADIENT = Limits(mean=1.1, max=1.5)
FEW = {False: Limits(mean=50, max=500), True: Limits(mean=500, max=10_000)}
"""Of n vectors (tokens of every head) the limits are widened by 1 + few / n, without and with
outlier channels.

The ratio of two errors is noise where few vectors carry them: of two keys with nearly equal scores,
one rounding of a score in the hundreds decides which a token takes. It vanishes for large n.
"""
ROUNDINGS = {torch.float64: 4.0, torch.float32: 1.0, torch.float16: 0.0, torch.bfloat16: 0.0}
"""Allowed beside the multiple, in units of eps * the exact values' mean (or maximum).

Two orders of the same float32 sum differ by about one rounding. In 16 bit the result's own rounding
is in both means; in the maximum it is allowed once more, see `_half_place`.
"""


@dataclass(frozen=True)
class Error:
    """Absolute error of one tensor against float64."""

    mean: float
    max: float

    @classmethod
    def of(cls, result: Tensor, exact: Tensor) -> Error:
        difference = (result.double() - exact).abs()
        return cls(float(difference.mean()), float(difference.max()))

    def within(self, allowed: Error) -> bool:
        """Whether neither is larger; NaN is."""
        return self.mean <= allowed.mean and self.max <= allowed.max


def limits_for(name: str) -> Limits:
    """Limits of the tensor `name`: those of gradients where it begins with "grad", else those of
    outputs."""
    return GRADIENT if name.startswith("grad") else OUTPUT


def allowed_error(
    name: str, peer: Error, exact: Tensor, dtype: torch.dtype, *, outliers: bool = False
) -> Error:
    """The largest error that a result may have.

    Args:
        name: of the tensor, see `limits_for`.
        peer: the error of trusted code in the same dtype.
        exact: the float64 result, (..., D).
        dtype: of the result.
        outliers: whether the inputs have outlier channels.
    """
    limits, few = limits_for(name), FEW[outliers]
    vectors = max(1, exact.numel() // exact.shape[-1])
    rounding, largest = ROUNDINGS[dtype] * torch.finfo(dtype).eps, float(exact.abs().max())
    half = _half_place(largest, dtype)
    own = 0.0 if rounding else half
    return Error(
        limits.mean * (1 + few.mean / vectors) * peer.mean + rounding * float(exact.abs().mean()),
        limits.max * (1 + few.max / vectors) * max(peer.max, half) + own + rounding * largest,
    )


def _half_place(largest: float, dtype: torch.dtype) -> float:
    """Half a unit in the last place of `largest`: what no result in this dtype can promise to stay
    under.

    The largest error is often one of a few values near the largest, and its last rounding adds to
    what was wrong before or takes from it, by luck: on a GPU, of 80 random calls of a form up to
    two had a worst gradient on the other side of such a rounding, 1.56 to 2 times the peer's
    luckier one.
    """
    return (
        0.0 if largest == 0 else torch.finfo(dtype).eps * 2.0 ** math.floor(math.log2(largest)) / 2
    )
