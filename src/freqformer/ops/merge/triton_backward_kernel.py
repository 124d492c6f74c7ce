"""The Triton kernel of the merge's backward: `triton_backward.py` holds the host side."""

from __future__ import annotations

import triton
import triton.language as tl

from freqformer.ops.jit import cast, dot

LOW = tl.constexpr(0)


@triton.jit
def collapse_low(
    grad_out,
    grad_low_out,
    allocation,
    tile_class,
    low_place,
    reach,
    weights,
    weight_step,
    sizes,
    LOW_SLOTS: tl.constexpr,
    STEP: tl.constexpr,
    D: tl.constexpr,
    PARTS: tl.constexpr,
):
    """The low tokens of one tile of one LOW row: a matrix times the gradients of the tokens that
    they reach.

    Args:
        grad_out: (B, N + X, H, D).
        grad_low_out: (R, M, D); low tokens of LOW rows are written.
        allocation: the band of every row, int32 (R,).
        tile_class, low_place, reach, weights, weight_step: as in `CollapseTables`; how far apart
            the summands are.
        sizes: H, R, N + X, M, REACH.
    """
    heads, rows, tokens, num_low, width = sizes
    row, index = tl.program_id(0) % rows, tl.program_id(0) // rows
    if tl.load(allocation + row) != LOW:
        return
    wide_row, slot, channel = row.to(tl.int64), tl.arange(0, LOW_SLOTS), tl.arange(0, D)
    matrix = weights + tl.load(tile_class + index) * LOW_SLOTS * width
    source = grad_out + (wide_row // heads * tokens * heads + row % heads) * D
    total = tl.zeros((LOW_SLOTS, D), tl.float32)
    for first in range(0, width, STEP):
        step = first + tl.arange(0, STEP)
        place = tl.load(reach + index * width + step)
        entry = place.to(tl.int64)[:, None] * heads * D + channel[None, :]
        grad = tl.load(source + entry, mask=(place >= 0)[:, None], other=0.0)
        for part in tl.static_range(PARTS):  # pyright: ignore[reportGeneralTypeIssues]
            weight = tl.load(matrix + part * weight_step + slot[:, None] * width + step[None, :])
            total = dot(weight, grad, total)
    place = tl.load(low_place + index * LOW_SLOTS + slot)
    target = (wide_row * num_low + place)[:, None] * D + channel[None, :]
    tl.store(
        grad_low_out + target,
        cast(total, grad_low_out.dtype.element_ty),
        mask=(place >= 0)[:, None],
    )
