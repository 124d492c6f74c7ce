"""The merge in one Triton launch: the host side."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from freqformer.ops.merge.tables import MergeTables
from freqformer.ops.merge.triton_kernel import merge_kernel
from freqformer.ops.parameters import BranchGates
from freqformer.ops.tokens import TokenOrder

BLOCK_ROWS = 64
"""Tokens of one program: sums of a whole tile take so many registers that too few programs fit."""
WARPS = 4
NEAR_STEP = 64
"""Low tokens that are multiplied at once."""


def merge_low(
    low_out: Tensor,
    own: Tensor,
    out: Tensor,
    allocation: Tensor,
    tables: MergeTables,
    token_order: TokenOrder,
    low_branch: BranchGates | None = None,
) -> None:
    """Write into `out` what low tokens give: the video tokens of LOW heads, or with gates the sum
    of every head's own band and its LOW branch.

    Args:
        low_out: (R, M, D), R = batch * heads rows.
        own: (B, N + X, H, D) contiguous, outputs of the bands; may be `out` itself.
        out: (B, N + X, H, D) contiguous; without gates other heads and text tokens stay as they
            are.
        allocation: the band of every head, whole numbers (B, H) on the device, any strides. A head
            with a number that is no band gets NaN: the device can't raise an error, and a wrong
            result must not pass for a right one.
        tables: `merge_tables` of the plan on this device.
        token_order: order of the video tokens.
        low_branch: gates (contiguous) of the branches; None for no LOW branch.
    """
    rows, num_low, head_dim = low_out.shape
    _, tokens, heads, _ = out.shape
    slots, (tiles, side) = tables.weights.shape[2], tables.near.shape
    video = tables.raster.shape[0]
    # Text has no branch; it is copied where `out` is another tensor.
    text_blocks = 0 if low_branch is None or own is out else -(-(tokens - video) // slots)
    block = min(slots, BLOCK_ROWS)
    constants: dict[str, Any] = {
        "SLOTS": slots,
        "ROWS": block,
        "NEAR": side,
        "STEP": min(side, NEAR_STEP),
        "D": head_dim,
        "RASTER": token_order == "raster",
        "BRANCH": low_branch is not None,
        "PARTS": tables.weights.shape[0],
        "num_warps": WARPS,
    }
    merge_kernel[(rows * (tiles + text_blocks) * (slots // block),)](
        low_out,
        own,
        out,
        (None, None) if low_branch is None else low_branch.both,
        allocation,
        allocation.stride(),
        (tables.tile_offsets, tables.raster, tables.tile_class),
        tables.near,
        tables.weights,
        tables.weights.stride(0),
        (heads, rows, tokens, video, num_low, tiles),
        **constants,
    )
