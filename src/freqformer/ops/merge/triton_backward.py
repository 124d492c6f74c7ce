"""Backward of the merge in Triton: the host side."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from freqformer.ops.merge.backward_tables import STEP, CollapseTables
from freqformer.ops.merge.tables import MergeTables
from freqformer.ops.merge.triton import BLOCK_ROWS, NEAR_STEP, WARPS
from freqformer.ops.merge.triton_backward_kernel import collapse_kernel, low_gate_grads_kernel
from freqformer.ops.parameters import BranchGates
from freqformer.ops.tokens import TokenOrder


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
    rows, (tiles, width) = bands.shape[0], tables.reach.shape
    grad_low_out = grad_out.new_empty(rows, num_low, head_dim)
    constants: dict[str, Any] = {
        "LOW_SLOTS": tables.weights.shape[2],
        "STEP": STEP,
        "D": head_dim,
        "BRANCH": low_branch is not None,
        "PARTS": tables.weights.shape[0],
    }
    collapse_kernel[(rows * tiles,)](
        grad_out,
        grad_low_out,
        (None, None) if low_branch is None else low_branch.both,
        bands,
        tables.tile_class,
        tables.low_place,
        tables.reach,
        tables.weights,
        tables.weights.stride(0),
        (heads, rows, tokens, tables.num_tokens, num_low, width),
        **constants,
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
    _, tokens, heads, _ = grad_out.shape
    tiles, side = tables.near.shape
    slots = tables.weights.shape[2]
    block = min(slots, BLOCK_ROWS)
    constants: dict[str, Any] = {
        "SLOTS": slots,
        "ROWS": block,
        "NEAR": side,
        "STEP": min(side, NEAR_STEP),
        "D": head_dim,
        "RASTER": token_order == "raster",
        "PARTS": tables.weights.shape[0],
        "num_warps": WARPS,
    }
    low_gate_grads_kernel[(rows * tiles * (slots // block),)](
        grad_out,
        low_out,
        gate_grads,
        bands,
        (tables.tile_offsets, tables.raster, tables.tile_class),
        tables.near,
        tables.weights,
        tables.weights.stride(0),
        (heads, rows, tokens, tables.raster.shape[0], num_low, tiles),
        **constants,
    )
