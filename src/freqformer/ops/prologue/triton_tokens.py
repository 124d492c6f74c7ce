"""What the Triton kernels of the prologue do with the tokens of one tile of one row.

Shape legend: N video and X text tokens, H heads, D head_dim, SLOTS tokens of a tile or of a part of
it.
"""

from __future__ import annotations

import triton
import triton.language as tl

from freqformer.ops.jit import INTERPRETED, cast, dot

LOW, MID, HIGH, DENSE = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2), tl.constexpr(3)


@triton.jit
def row_band(allocation, strides, sample, head):
    """The band of a row; DENSE for a number that is none, which the merge launch then answers with
    NaN."""
    band = tl.load(allocation + sample * strides[0] + head * strides[1]).to(tl.int32)
    return tl.where((band >= LOW) & (band <= DENSE), band, DENSE)


@triton.jit
def seen_text(text_mask, sample, num_text, place, live):
    """Which text tokens `place` of a sample may be seen: all that are live where there is no mask
    (B, X)."""
    seen = live
    if text_mask is not None:
        known = tl.load(text_mask + sample.to(tl.int64) * num_text + place, mask=live, other=0)
        seen = live & (known.to(tl.int32) != 0)
    return seen


@triton.jit
def finite_where_masked(x, seen):
    """Queries x (places, D) of text tokens, 0 for what isn't finite in masked ones: it would reach
    gradients."""
    wide = x.to(tl.float32)
    finite = tl.abs(wide) <= 3.4028234663852886e38
    return tl.where(seen[:, None] | finite, x, tl.zeros(x.shape, x.dtype))


@triton.jit
def rotary_tables(rotary, place, live, D: tl.constexpr):
    """cos and sin of the tokens `place`, float32 (SLOTS, D / 2)."""
    entry = place[:, None] * (D // 2) + tl.arange(0, D // 2)[None, :]
    cos = tl.load(rotary[0] + entry, mask=live[:, None], other=0.0).to(tl.float32)
    sin = tl.load(rotary[1] + entry, mask=live[:, None], other=0.0).to(tl.float32)
    return cos, sin


@triton.jit
def rotate_tokens(x, turn):
    """Rotary embedding of neighbouring channels of x (SLOTS, D), float32."""
    SLOTS: tl.constexpr = x.shape[0]
    D: tl.constexpr = x.shape[1]
    cos, sin = turn
    even, odd = tl.split(tl.reshape(x.to(tl.float32), (SLOTS, D // 2, 2)))
    return tl.reshape(tl.join(even * cos - odd * sin, even * sin + odd * cos), (SLOTS, D))


@triton.jit
def add_product(
    total, matrix, step, x, WIDTH: tl.constexpr, PARTS: tl.constexpr, EXACT: tl.constexpr
):
    """total + the sum of PARTS matrices, `step` elements apart and WIDTH wide, times x; float32.

    EXACT takes float32 products of float32 numbers; otherwise each is three of tf32 parts, good to
    2^-22. Products of 16-bit numbers are exact either way.
    """
    ROWS: tl.constexpr = total.shape[0]
    COLUMNS: tl.constexpr = x.shape[0]
    entry = matrix + tl.arange(0, ROWS)[:, None] * WIDTH + tl.arange(0, COLUMNS)[None, :]
    for part in tl.static_range(PARTS):  # pyright: ignore[reportGeneralTypeIssues]
        table = tl.load(entry + part * step)
        if EXACT or INTERPRETED:
            total = dot(table, x, total)
        else:
            total = tl.dot(table, x, total, input_precision="bf16x6")
    return total


@triton.jit
def project(matrix, step, x, PARTS: tl.constexpr):
    """A square matrix, in PARTS summands, times the tokens x of one tile (SLOTS, D): float32.

    In float32 a product this large is too much code without tensor cores.
    """
    return add_product(tl.zeros(x.shape, tl.float32), matrix, step, x, x.shape[0], PARTS, False)


@triton.jit
def write_tokens(target, place, live, x):
    """Tokens x (SLOTS, D) to the rows `place` of a buffer (rows, D)."""
    D: tl.constexpr = x.shape[1]
    entry = target + place.to(tl.int64)[:, None] * D + tl.arange(0, D)[None, :]
    tl.store(entry, cast(x, target.dtype.element_ty), mask=live[:, None])
