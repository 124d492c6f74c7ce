"""Backward of the merge in one Triton launch: the host side."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from freqformer.ops.merge.backward_tables import STEP, CollapseTables
from freqformer.ops.merge.triton_backward_kernel import collapse_low


def merge_low_backward(
    grad_out: Tensor, bands: Tensor, tables: CollapseTables, num_low: int
) -> Tensor:
    """Gradients of outputs on low tokens, from those of all tokens.

    Args:
        grad_out: (B, N + X, H, D) contiguous, video tokens in the order of the tables.
        bands: `Band` of every row, int32 (R,), R = B * H.
        tables: `collapse_tables` of the plan on this device.
        num_low: low tokens, M.

    Returns: (R, M, D) in the dtype of grad_out; rows that aren't LOW hold anything.
    """
    return torch.ops.freqformer.merge_low_backward(
        grad_out, bands, tables.tile_class, tables.low_place, tables.reach, tables.weights, num_low
    )


@torch.library.custom_op("freqformer::merge_low_backward", mutates_args=())
def _merge_low_backward(
    grad_out: Tensor,
    bands: Tensor,
    tile_class: Tensor,
    low_place: Tensor,
    reach: Tensor,
    weights: Tensor,
    num_low: int,
) -> Tensor:
    _, tokens, heads, head_dim = grad_out.shape
    rows = bands.shape[0]
    grad_low_out = grad_out.new_empty(rows, num_low, head_dim)
    constants: dict[str, Any] = {
        "LOW_SLOTS": weights.shape[2],
        "STEP": STEP,
        "D": head_dim,
        "PARTS": weights.shape[0],
    }
    collapse_low[(rows * tile_class.shape[0],)](
        grad_out,
        grad_low_out,
        bands,
        tile_class,
        low_place,
        reach,
        weights,
        weights.stride(0),
        (heads, rows, tokens, num_low, reach.shape[1]),
        **constants,
    )
    return grad_low_out


@_merge_low_backward.register_fake
def _(grad_out, bands, tile_class, low_place, reach, weights, num_low):
    return grad_out.new_empty(bands.shape[0], num_low, grad_out.shape[3])
