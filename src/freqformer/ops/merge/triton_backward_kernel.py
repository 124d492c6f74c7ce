"""The Triton kernels of the merge's backward: `triton_backward.py` holds the host side.

Shape legend: B batch, H heads, R = B * H rows, N video and X text tokens, M low tokens, T tiles, D
head_dim, SLOTS and LOW_SLOTS tokens and low tokens of a tile.
"""

from __future__ import annotations

import triton
import triton.language as tl

from freqformer.ops.jit import branch_gates, cast, dot
from freqformer.ops.merge.triton_kernel import expanded

LOW = tl.constexpr(0)


@triton.jit
def collapse_kernel(
    grad_out,
    grad_low_out,
    gates,
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
    BRANCH: tl.constexpr,
    PARTS: tl.constexpr,
):
    """The low tokens of one tile of one row: a matrix times the gradients of the tokens that they
    reach, which gates weigh.

    The tokens are gathered: each lies in the reach of several tiles, and adding to their low tokens
    from theirs would need atomic sums, whose order changes from run to run.

    Args:
        grad_out: (B, N + X, H, D).
        grad_low_out: (R, M, D); low tokens of LOW rows are written, with BRANCH those of all rows.
        gates: as in `merge_kernel`.
        allocation: the band of every row, int32 (R,).
        tile_class, low_place, reach, weights, weight_step: as in `CollapseTables`; how far apart
            the summands are.
        sizes: H, R, N + X, N, M, REACH.
    """
    heads, rows, tokens, video, num_low, width = sizes
    row, index = tl.program_id(0) % rows, tl.program_id(0) // rows
    sample, head = row // heads, row % heads
    band = tl.load(allocation + row)
    if not BRANCH:
        if band != LOW:
            return
    wide_row, slot, channel = row.to(tl.int64), tl.arange(0, LOW_SLOTS), tl.arange(0, D)
    matrix = weights + tl.load(tile_class + index) * LOW_SLOTS * width
    source = grad_out + (wide_row // heads * tokens * heads + head) * D
    total = tl.zeros((LOW_SLOTS, D), tl.float32)
    for first in range(0, width, STEP):
        step = first + tl.arange(0, STEP)
        place = tl.load(reach + index * width + step)
        entry = place.to(tl.int64)[:, None] * heads * D + channel[None, :]
        grad = tl.load(source + entry, mask=(place >= 0)[:, None], other=0.0)
        if BRANCH:
            own_gate, low_gate = branch_gates(
                gates[0], gates[1], sample, head, heads, video, place, place >= 0
            )
            # A LOW head's own band is its LOW branch once more.
            gate = tl.where(band == LOW, 1.0 + own_gate + low_gate, low_gate)
            grad = cast(grad.to(tl.float32) * gate[:, None], grad.dtype)
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


@triton.jit
def low_gate_grads_kernel(
    grad_out,
    low_out,
    gate_grads,
    allocation,
    layout,
    near,
    weights,
    weight_step,
    sizes,
    SLOTS: tl.constexpr,
    ROWS: tl.constexpr,
    NEAR: tl.constexpr,
    STEP: tl.constexpr,
    D: tl.constexpr,
    RASTER: tl.constexpr,
    PARTS: tl.constexpr,
):
    """Gradients of the LOW gates of ROWS tokens of one tile of one row: every token's output
    gradient times its LOW output, which is interpolated once more rather than kept.

    Args:
        grad_out: (B, N + X, H, D).
        gate_grads: float32 (B, N, 2, H); those of LOW are written, and in LOW rows both. Those of
            the own band are by-products of the attention's backward.
        allocation: the band of every row, int32 (R,).
        The rest as in `merge_kernel`.
    """
    heads, rows, tokens, video, num_low, _ = sizes
    PARTS_OF_TILE: tl.constexpr = SLOTS // ROWS
    row, index = tl.program_id(0) % rows, tl.program_id(0) // rows
    first_slot = index % PARTS_OF_TILE * ROWS
    index = index // PARTS_OF_TILE
    sample, head = (row // heads).to(tl.int64), row % heads
    slot, channel = first_slot + tl.arange(0, ROWS), tl.arange(0, D)
    start = tl.load(layout[0] + index)
    live = slot < tl.load(layout[0] + index + 1) - start
    place = start + slot
    if RASTER:
        place = tl.load(layout[1] + place, mask=live, other=0)
    entry = ((sample * tokens + place)[:, None] * heads + head) * D + channel[None, :]
    read = live[:, None]
    grad = tl.load(grad_out + entry, mask=read, other=0.0, cache_modifier=".cg").to(tl.float32)
    matrix = weights + (tl.load(layout[2] + index) * SLOTS + first_slot) * NEAR
    near += index * NEAR
    low = expanded(low_out, row, near, matrix, weight_step, num_low, ROWS, NEAR, STEP, D, PARTS)
    agree = tl.sum(grad * low, 1)
    target = (sample * video + place) * 2 * heads + head
    tl.store(gate_grads + target + heads, agree, mask=live)
    if tl.load(allocation + row) == LOW:
        tl.store(gate_grads + target, agree, mask=live)
