"""The merge in one Triton launch: the host side."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from freqformer.ops.merge.tables import MergeTables
from freqformer.ops.merge.triton_kernel import expand_low
from freqformer.ops.tokens import TokenOrder

NEAR_STEP = 64
"""Low tokens that are multiplied at once."""


def merge_low(
    low_out: Tensor, out: Tensor, allocation: Tensor, tables: MergeTables, token_order: TokenOrder
) -> None:
    """Write the video tokens of LOW heads into `out`, from outputs on low tokens.

    Args:
        low_out: (R, M, D), R = batch * heads rows.
        out: (B, N + X, H, D) contiguous; other heads and text tokens stay as they are.
        allocation: the band of every head, whole numbers (B, H) on the device, any strides. A head
            with a number that is no band gets NaN: the device can't raise an error, and a wrong
            result must not pass for a right one.
        tables: `merge_tables` of the plan on this device.
        token_order: order of the video tokens of `out`.
    """
    torch.ops.freqformer.merge_low(
        low_out,
        out,
        allocation,
        [tables.tile_offsets, tables.raster, tables.tile_class],
        tables.near,
        tables.weights,
        token_order == "raster",
    )


@torch.library.custom_op(
    "freqformer::merge_low",
    mutates_args=("out",),
    schema="(Tensor low_out, Tensor(a!) out, Tensor allocation, Tensor[] layout, Tensor near, "
    "Tensor weights, bool raster) "
    "-> ()",
)
def _merge_low(
    low_out: Tensor,
    out: Tensor,
    allocation: Tensor,
    layout: Sequence[Tensor],
    near: Tensor,
    weights: Tensor,
    raster: bool,
) -> None:
    rows, num_low, head_dim = low_out.shape
    _, tokens, heads, _ = out.shape
    tiles, side = near.shape
    expand_low[(rows * tiles,)](
        low_out,
        out,
        allocation,
        allocation.stride(),
        tuple(layout),
        near,
        weights,
        weights.stride(0),
        (heads, rows, tokens, num_low),
        SLOTS=weights.shape[2],
        NEAR=side,
        STEP=min(side, NEAR_STEP),
        D=head_dim,
        RASTER=raster,
        PARTS=weights.shape[0],
        num_warps=4,  # pyright: ignore[reportCallIssue]
    )


@_merge_low.register_fake
def _(low_out, out, allocation, layout, near, weights, raster):
    return None
