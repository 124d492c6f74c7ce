"""Backward of the block-sparse attention launch in Triton: the host side.

Shape legend: B batch, H heads, R = B * H rows (row = sample * H + head), N video tokens, X text
tokens, M low tokens, T tiles, C cells, D head_dim, S rows of the key buffer (`buffers.key_layout`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from freqformer.config import Band
from freqformer.ops.block_sparse.records import (
    AttentionBuffers,
    AttentionGrads,
    AttentionOutputs,
    MidLists,
    RowBands,
)
from freqformer.ops.block_sparse.tables import LaunchTables
from freqformer.ops.block_sparse.transposed import (
    transpose_lists,
)
from freqformer.ops.block_sparse.triton.backward_launches import BackwardLaunches
from freqformer.ops.block_sparse.triton.bwd_dkv import KeyGrads
from freqformer.ops.block_sparse.triton.bwd_gather import (
    Gates,
    OutputGrads,
    Statistics,
)
from freqformer.ops.block_sparse.triton.launch import (
    _cdiv,
    biases,
)
from freqformer.ops.parameters import BranchGates


def attend_backward(
    grads: tuple[Tensor, Tensor],
    outputs: AttentionOutputs,
    buffers: AttentionBuffers,
    rows: RowBands,
    tables: LaunchTables,
    *,
    mid: MidLists | None,
    summary_offsets: Tensor | None,
    text_mask: Tensor | None,
    token_order: str,
    low_branch: BranchGates | None = None,
    gate_grads: Tensor | None = None,
    launches: type[BackwardLaunches] | None = None,
) -> AttentionGrads:
    """Gradients of `attend`, from what it took and gave: no wait for the device, and the same bits
    every time.

    Args:
        grads: gradients of out (B, N + X, H, D) and low_out (R, M, D); those of places that it
            doesn't write aren't read. With gates the first is of what `merge_low` makes of `out`.
        outputs: of `attend` with `backward`.
        buffers, rows, tables, mid, summary_offsets, text_mask, token_order: as it took them.
        low_branch: the gates of `merge_low` (contiguous), None for no LOW branch.
        gate_grads: float32 (B, N, 2, H) with a LOW branch; gradients of the own band's gates are
            written into it, but in LOW rows.
        launches: another class than `BackwardLaunches`, some of whose kernels are another
            backend's.
    """
    lists = MidLists(tables.mid_lists, tables.mid_lengths, tables.mid_bias)
    high, mid_turned = tables.high_transposed, tables.mid_transposed
    if tables.mid_lists is None and mid is not None and mid.lists is not None:
        mid_turned = transpose_lists(mid.lists, mid.lengths, rows.allocation == Band.MID)
        lists = mid
    mask = None if text_mask is None else text_mask.view(torch.uint8)
    call = (launches or BackwardLaunches)(
        buffers=buffers,
        grad=torch.empty_like(buffers.query),
        statistics=_empty_statistics(outputs.lse, buffers.query.dtype),
        rows=rows,
        tables=tables,
        mid=lists,
        biases=biases(tables, lists, summary_offsets, mask),
    )
    grad_query = torch.empty_like(buffers.query)
    key_grads = KeyGrads(key=torch.empty_like(buffers.key), value=torch.empty_like(buffers.value))
    gates = low_branch or BranchGates()
    grad_out, grad_low_out = grads
    with torch.cuda.device_of(buffers.query):
        call.gather(
            outputs,
            OutputGrads(out=grad_out.contiguous(), low_out=grad_low_out.contiguous()),
            Gates(by_token=gates.by_token, by_sample=gates.by_sample, grads=gate_grads),
            tables.raster if token_order == "raster" else None,
        )
        call.query_grads(grad_query)
        call.video_grads(key_grads, high, mid_turned)
        offsets = call.extra_grads(key_grads)
    return AttentionGrads(grad_query, key_grads.key, key_grads.value, offsets)


def _empty_statistics(lse: Tensor, dtype: torch.dtype) -> Statistics:
    rows, queries = lse.shape
    stride = _cdiv(queries, 16) * 16
    return Statistics(
        lse=lse.new_empty(rows, stride),
        delta=lse.new_empty(rows, stride),
        rounding_residual=lse.new_empty(rows, stride) if dtype == torch.float32 else None,
        rows=stride,
    )
