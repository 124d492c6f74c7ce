"""The merge in Triton, one launch forward and two backward: the host side.

Shape legend: B batch, H heads, R = B * H rows (row = sample * H + head), N video and X text tokens,
M low tokens, D head_dim.
"""

from __future__ import annotations

from torch import Tensor

from freqformer.buffers import buffer_width
from freqformer.ops.jit import constant
from freqformer.ops.merge.backward_tables import STEP, CollapseTables
from freqformer.ops.merge.tables import MergeTables
from freqformer.ops.merge.triton.backward import (
    CollapseBlocks,
    Reach,
    collapse_kernel,
    low_gate_grads_kernel,
)
from freqformer.ops.merge.triton.forward import (
    Allocation,
    Blocks,
    Gates,
    Sizes,
    Tiles,
    merge_kernel,
)
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
        allocation: the band of every head, integers (B, H) on the device, any strides. A head with
            a number that is no band gets NaN: the device can't raise an error, and a wrong result
            must not pass for a right one.
        tables: `merge_tables` of the plan on this device.
        token_order: order of the video tokens.
        low_branch: gates (contiguous) of the branches; None for no LOW branch.
    """
    rows, num_low, head_dim = low_out.shape
    sizes = _sizes(out, rows, num_low, tables)
    blocks = _blocks(tables, head_dim, branch=low_branch is not None)
    slots = blocks.SLOTS.value
    # Text has no branch; it is copied where `out` is another tensor.
    text = sizes.tokens - sizes.video
    text_blocks = 0 if low_branch is None or own is out else -(-text // slots)
    sample_stride, head_stride = allocation.stride()
    parts_of_tile = slots // blocks.ROWS.value
    merge_kernel[(rows * (sizes.tiles + text_blocks) * parts_of_tile,)](
        low_out,
        own,
        out,
        _gates(low_branch),
        Allocation(bands=allocation, sample=sample_stride, head=head_stride),
        _tiles(tables, token_order),
        sizes,
        blocks,
        num_warps=WARPS,  # pyright: ignore[reportCallIssue]
    )


def merge_low_backward(
    grad_out: Tensor,
    bands: Tensor,
    tables: CollapseTables,
    num_low: int,
    low_branch: BranchGates | None = None,
) -> Tensor:
    """Gradients of outputs on low tokens, from those of all tokens.

    Args:
        grad_out: (B, N + X, H, D) contiguous, video tokens in the order of the tables.
        bands: `Band` of every row, int32 (R,), R = B * H.
        tables: `collapse_tables` of the plan on this device.
        num_low: low tokens, M.
        low_branch: the gates of `merge_low`.

    Returns: (R, M, D) in the dtype of grad_out; without gates rows that aren't LOW hold anything.
    """
    _, tokens, heads, head_dim = grad_out.shape
    (rows,) = bands.shape
    tiles, width = tables.reach.shape
    parts, _, low_slots, _ = tables.weights.shape
    grad_low_out = grad_out.new_empty(rows, num_low, head_dim)
    collapse_kernel[(rows * tiles,)](
        grad_out,
        grad_low_out,
        _gates(low_branch),
        bands,
        Reach(
            kind=tables.tile_class,
            low_place=tables.low_place,
            tokens=tables.reach,
            weights=tables.weights,
            weight_step=tables.weights.stride(0),
            width=width,
        ),
        Sizes(
            heads=heads,
            rows=rows,
            tokens=tokens,
            video=tables.num_tokens,
            low=num_low,
            tiles=tiles,
        ),
        CollapseBlocks(
            LOW_SLOTS=constant(low_slots),
            STEP=constant(STEP),
            D=constant(head_dim),
            W=constant(buffer_width(head_dim)),
            PARTS=constant(parts),
            BRANCH=constant(low_branch is not None),
        ),
    )
    return grad_low_out


def low_gate_grads(
    grad_out: Tensor,
    low_out: Tensor,
    gate_grads: Tensor,
    bands: Tensor,
    tables: MergeTables,
    token_order: TokenOrder,
) -> None:
    """Write the gradients of the LOW gates, and in LOW rows those of both.

    Args:
        grad_out: (B, N + X, H, D) contiguous.
        low_out: (R, M, D), outputs on low tokens.
        gate_grads: float32 (B, N, 2, H), written in part.
        bands: `Band` of every row, int32 (R,), R = B * H.
        tables: `merge_tables` of the plan on this device.
        token_order: order of the video tokens.
    """
    rows, num_low, head_dim = low_out.shape
    sizes = _sizes(grad_out, rows, num_low, tables)
    blocks = _blocks(tables, head_dim, branch=True)
    parts_of_tile = blocks.SLOTS.value // blocks.ROWS.value
    low_gate_grads_kernel[(rows * sizes.tiles * parts_of_tile,)](
        grad_out,
        low_out,
        gate_grads,
        bands,
        _tiles(tables, token_order),
        sizes,
        blocks,
        num_warps=WARPS,  # pyright: ignore[reportCallIssue]
    )


def _gates(low_branch: BranchGates | None) -> Gates:
    given = low_branch or BranchGates()
    return Gates(by_token=given.by_token, by_sample=given.by_sample)


def _tiles(tables: MergeTables, token_order: TokenOrder) -> Tiles:
    return Tiles(
        offsets=tables.tile_offsets,
        raster=tables.raster if token_order == "raster" else None,
        kind=tables.tile_class,
        near=tables.near,
        weights=tables.weights,
        weight_step=tables.weights.stride(0),
    )


def _sizes(out: Tensor, rows: int, num_low: int, tables: MergeTables) -> Sizes:
    _, tokens, heads, _ = out.shape
    (video,) = tables.raster.shape
    tiles, _ = tables.near.shape
    return Sizes(heads=heads, rows=rows, tokens=tokens, video=video, low=num_low, tiles=tiles)


def _blocks(tables: MergeTables, head_dim: int, *, branch: bool) -> Blocks:
    parts, _, slots, near = tables.weights.shape
    return Blocks(
        SLOTS=constant(slots),
        ROWS=constant(min(slots, BLOCK_ROWS)),
        NEAR=constant(near),
        STEP=constant(min(near, NEAR_STEP)),
        D=constant(head_dim),
        W=constant(buffer_width(head_dim)),
        PARTS=constant(parts),
        BRANCH=constant(branch),
    )
