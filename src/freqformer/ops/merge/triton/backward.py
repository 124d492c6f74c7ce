"""The Triton kernels of the merge's backward: `launch.py` holds the host side.

Shape legend: B batch, H heads, R = B * H rows (row = sample * H + head), N video and X text tokens,
M low tokens, T tiles, K classes of tiles, D head_dim, LOW_SLOTS low tokens of a tile, rounded up,
REACH tokens that they reach, rounded up, W channels of a block, D rounded up. An
argument that is None is absent from the compiled kernel.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from freqformer.ops.jit import branch_gates, cast, dot, real_channels
from freqformer.ops.merge.triton.forward import LOW, expanded, part_places, program_part


class Reach(NamedTuple):
    """The low tokens of every tile, and how they gather gradients: see `CollapseTables`."""

    kind: Tensor
    """int32 (T,), class of every tile."""
    low_place: Tensor
    """int32 (T, LOW_SLOTS), low tokens of every tile, -1 after the last."""
    tokens: Tensor
    """int32 (T, REACH), tokens whose outputs they take part in, -1 for none."""
    weights: Tensor
    """(PARTS, K, LOW_SLOTS, REACH), summands of the matrix from those to the low tokens."""
    weight_step: int
    """Numbers from one summand to the next."""
    width: int
    """REACH."""


class CollapseBlocks(NamedTuple):
    """Sizes known at compile time, each a `tl.constexpr`."""

    LOW_SLOTS: tl.constexpr
    STEP: tl.constexpr
    """Tokens that are multiplied at once."""
    D: tl.constexpr
    W: tl.constexpr
    """D, rounded up."""
    PARTS: tl.constexpr
    BRANCH: tl.constexpr
    """Whether every head has a LOW branch, which gates weigh."""


@triton.jit
def collapse_kernel(grad_out, grad_low_out, gates, bands, reach, sizes, blocks):
    """The low tokens of one tile of one row: a matrix times the gradients of the tokens that they
    reach, which gates weigh.

    The tokens are gathered: each lies in the reach of several tiles, and adding to their low tokens
    from theirs would need atomic sums, whose order changes from run to run.

    Args:
        grad_out: (B, N + X, H, D).
        grad_low_out: (R, M, D); low tokens of LOW rows are written, with BRANCH those of all rows.
        gates: as in `merge_kernel`.
        bands: of every row, int32 (R,).
        reach, sizes, blocks: `Reach`, `Sizes` of `merge_kernel`, `CollapseBlocks`.
    """
    heads = sizes.heads
    # Heads run fastest, as in the forward.
    row = tl.program_id(0) % sizes.rows
    tile = tl.program_id(0) // sizes.rows
    sample = row // heads
    head = row % heads
    band = tl.load(bands + row)
    # Without a branch only LOW rows asked with low tokens: of others nobody reads a gradient.
    if not blocks.BRANCH:
        if band != LOW:
            return
    wide_row = row.to(tl.int64)
    slot = tl.arange(0, blocks.LOW_SLOTS)
    channel = tl.arange(0, blocks.W)
    matrix = reach.weights + tl.load(reach.kind + tile) * blocks.LOW_SLOTS * reach.width
    # Gradients lie as the output does: the heads of a token are neighbours.
    source = grad_out + (wide_row // heads * sizes.tokens * heads + head) * blocks.D
    total = tl.zeros((blocks.LOW_SLOTS, blocks.W), tl.float32)
    for first in range(0, reach.width, blocks.STEP):
        step = first + tl.arange(0, blocks.STEP)
        place = tl.load(reach.tokens + tile * reach.width + step)
        entry = place.to(tl.int64)[:, None] * heads * blocks.D + channel[None, :]
        # Neighbouring tiles read the same gradients, which the L2 cache serves.
        # REACH is a multiple of STEP, so that only missing tokens need a mask, which are -1.
        grad = tl.load(
            source + entry, mask=real_channels(place >= 0, blocks.D, blocks.W), other=0.0
        )
        if blocks.BRANCH:
            own_gate, low_gate = branch_gates(
                gates.by_token,
                gates.by_sample,
                sample,
                head,
                heads,
                sizes.video,
                place,
                place >= 0,
            )
            # A LOW head's own band is its LOW branch once more.
            gate = tl.where(band == LOW, 1.0 + own_gate + low_gate, low_gate)
            # The product is rounded to the dtype that tensor cores take, as the output was.
            grad = cast(grad.to(tl.float32) * gate[:, None], grad.dtype)
        for summand in tl.static_range(blocks.PARTS):  # pyright: ignore[reportGeneralTypeIssues]
            at = matrix + summand * reach.weight_step
            weight = tl.load(at + slot[:, None] * reach.width + step[None, :])
            total = dot(weight, grad, total)
    # Tiles divide the low tokens among them: every one is written once, and by one program.
    place = tl.load(reach.low_place + tile * blocks.LOW_SLOTS + slot)
    target = (wide_row * sizes.low + place)[:, None] * blocks.D + channel[None, :]
    tl.store(
        grad_low_out + target,
        cast(total, grad_low_out.dtype.element_ty),
        mask=real_channels(place >= 0, blocks.D, blocks.W),
    )


@triton.jit
def low_gate_grads_kernel(grad_out, low_out, gate_grads, bands, tiles, sizes, blocks):
    """Gradients of the LOW gates of some tokens of one tile of one row: every token's output
    gradient times its LOW output, which is interpolated once more rather than kept.

    Args:
        grad_out: (B, N + X, H, D).
        low_out: (R, M, D).
        gate_grads: float32 (B, N, 2, H); those of LOW are written, and in LOW rows both. Those of
            the own band are by-products of the attention's backward.
        bands: of every row, int32 (R,).
        tiles, sizes, blocks: as in `merge_kernel`.
    """
    heads = sizes.heads
    part = program_part(sizes, blocks)
    sample = part.sample.to(tl.int64)
    channel = tl.arange(0, blocks.W)
    tokens = part_places(part, tiles, blocks)
    entry = ((sample * sizes.tokens + tokens.place)[:, None] * heads + part.head) * blocks.D
    # Gradients are read once, and leave the L1 cache to the matrix, as in the forward. They are on
    # their way while the low tokens are multiplied.
    grad = tl.load(
        grad_out + entry + channel[None, :],
        mask=real_channels(tokens.live, blocks.D, blocks.W),
        other=0.0,
        cache_modifier=".cg",
    ).to(tl.float32)
    low = expanded(low_out, part, tiles, sizes.low, blocks)
    agree = tl.sum(grad * low, 1)
    # The two gates of a token lie `heads` apart, the own band's first.
    target = gate_grads + (sample * sizes.video + tokens.place) * 2 * heads + part.head
    tl.store(target + heads, agree, mask=tokens.live)
    if tl.load(bands + part.row) == LOW:
        # Here both gates weigh the same output.
        tl.store(target, agree, mask=tokens.live)
