"""The Triton kernel of the merge: `triton.py` holds the host side."""

from __future__ import annotations

import triton
import triton.language as tl

from freqformer.ops.jit import cast, dot

LOW, DENSE = tl.constexpr(0), tl.constexpr(3)


@triton.jit
def expand_low(
    low_out,
    out,
    allocation,
    allocation_strides,
    layout,
    near,
    weights,
    weight_step,
    sizes,
    SLOTS: tl.constexpr,
    NEAR: tl.constexpr,
    STEP: tl.constexpr,
    D: tl.constexpr,
    RASTER: tl.constexpr,
    PARTS: tl.constexpr,
):
    """One tile of one LOW row: its tokens as a matrix times the low tokens near it; NaN for a row
    whose band is none.

    Args:
        low_out: (R, M, D).
        out: (B, N + X, H, D); tokens of LOW rows are written.
        allocation, allocation_strides: the band of every (sample, head), whole numbers.
        layout: tile offsets, raster places and classes of tiles.
        near: low tokens near every tile, int32 (T, NEAR), -1 for none.
        weights, weight_step: summands (PARTS, classes, SLOTS, NEAR), and how far apart they are.
        sizes: H, R, N + X, M.
    """
    heads, rows, tokens, num_low = sizes
    row, index = tl.program_id(0) % rows, tl.program_id(0) // rows
    sample, head = row // heads, row % heads
    band = tl.load(allocation + sample * allocation_strides[0] + head * allocation_strides[1])
    if (band > LOW) & (band <= DENSE):
        return
    start = tl.load(layout[0] + index)
    slot = tl.arange(0, SLOTS)
    live = slot < tl.load(layout[0] + index + 1) - start
    place = start + slot
    if RASTER:
        place = tl.load(layout[1] + place, mask=live, other=0)
    channel = tl.arange(0, D)
    total = tl.zeros((SLOTS, D), tl.float32)
    matrix = weights + tl.load(layout[2] + index) * SLOTS * NEAR
    if band == LOW:
        for first in range(0, NEAR, STEP):
            step = first + tl.arange(0, STEP)
            source = tl.load(near + index * NEAR + step)
            entry = (row.to(tl.int64) * num_low + source)[:, None] * D + channel[None, :]
            low = tl.load(low_out + entry, mask=(source >= 0)[:, None], other=0.0)
            for part in tl.static_range(PARTS):  # pyright: ignore[reportGeneralTypeIssues]
                weight = tl.load(matrix + part * weight_step + slot[:, None] * NEAR + step[None, :])
                total = dot(weight, low, total)
    else:
        total += float("nan")
    target = ((sample.to(tl.int64) * tokens + place)[:, None] * heads + head) * D + channel[None, :]
    tl.store(out + target, cast(total, out.dtype.element_ty), mask=live[:, None])
