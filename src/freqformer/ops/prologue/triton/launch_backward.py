"""Backward of the prologue in two or three Triton launches: the host side.

Shape legend: B batch, H heads, R = B * H rows (row = sample * H + head), N video tokens, X text
tokens, T tiles, C cells, D head_dim, W channels of a row of the buffers (`buffers.buffer_width`), S
rows of the key buffer (`buffers.key_layout`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from freqformer.buffers import buffer_width
from freqformer.ops.architectures import architecture
from freqformer.ops.jit import constant
from freqformer.ops.parameters import AttentionParameters
from freqformer.ops.prologue.tables import PrologueTables
from freqformer.ops.prologue.triton.arguments import Blocks, Common, PreparedRows
from freqformer.ops.prologue.triton.backward_pooling_kernel import pool_slopes
from freqformer.ops.prologue.triton.backward_text_kernel import text_grads
from freqformer.ops.prologue.triton.backward_tile_kernel import tile_grads
from freqformer.ops.prologue.triton.backward_tokens import Outputs, RowGrads
from freqformer.ops.prologue.triton.channels import half_of, unpaired
from freqformer.ops.prologue.triton.launch import (
    TEXT_SLOTS,
    common_arguments,
    tile_blocks,
)
from freqformer.ops.prologue.triton.norm_kernels import finish_norm_grads
from freqformer.ops.prologue.triton.norm_launch import (
    SCALED_TOKENS,
    scaled_programs,
    with_scales,
)
from freqformer.ops.tokens import TokenOrder

Tensors = tuple[Tensor, Tensor, Tensor]
CHUNK = 32
"""Tokens that one program holds at once."""


@dataclass(frozen=True, eq=False)
class PrologueGrads:
    """Gradients of what the prologue took; None for what isn't given."""

    qkv: Tensors
    """Of query, key and value, (B, N + X, H, D) contiguous."""
    query_norm: Tensor | None
    key_norm: Tensor | None
    gains: Tensor | None
    summary_queries: Tensor | None


def prepare_rows_backward(
    row_grads: Tensors,
    qkv: Tensors,
    rows: PreparedRows,
    tables: PrologueTables,
    *,
    parameters: AttentionParameters | None,
    token_order: TokenOrder,
    text_mask: Tensor | None = None,
    low_branch: bool = False,
) -> PrologueGrads:
    """Gradients of `prepare_rows`, from those of its buffers, the same bits every time.

    Args:
        row_grads: of the query, key and value buffers, written where a row of its band holds
            something.
        qkv: query, key and value (B, N + X, H, D) as `prepare_rows` took them.
        rows: what it gave; bands, summaries and the log-sum-exp of pooling scores are read.
        tables, parameters, token_order, text_mask, low_branch: as in `prepare_rows`. The rotary
            tables get no gradient.
    """
    given = parameters or AttentionParameters()
    common = _with_cells(common_arguments(qkv, given, tables, token_order), tables)
    common = with_scales(common, rows.scales)
    query_grads, key_grads, value_grads = row_grads
    grads = RowGrads(query=query_grads, key=key_grads, value=value_grads)
    outputs = _empty_outputs(qkv, common)
    query, _, _ = qkv
    _, _, _, head_dim = query.shape
    _tile_grads(common, rows, grads, outputs, tile_blocks(tables, head_dim, CHUNK, low_branch))
    mask = None if text_mask is None else text_mask.contiguous()
    if common.num_text:
        _text_grads(common, grads, mask, outputs, head_dim)
    if rows.scales is not None:
        _finish_norm_grads(common, outputs, mask, given.norm_text)
    heads = common.sizes.heads
    normed = heads if given.norm_across_heads else 0
    half = half_of(given)
    return PrologueGrads(
        qkv=(outputs.query, outputs.key, outputs.value),
        query_norm=_summed(outputs.query_norm, given.query_norm, normed, half),
        key_norm=_summed(outputs.key_norm, given.key_norm, normed, half),
        gains=_summed(outputs.gains, given.gains, heads),
        summary_queries=_summed(outputs.pooling, given.summary_queries, heads, half),
    )


def _with_cells(common: Common, tables: PrologueTables) -> Common:
    """What the backward takes in addition where there are summaries; nothing is pooled where there
    are none."""
    if not common.sizes.cells:
        return common._replace(learned=common.learned._replace(pooling=None))
    tiles = common.tiles._replace(cell=tables.cell_of_tile, cell_counts=tables.cell_counts)
    return common._replace(tiles=tiles)


def _empty_outputs(qkv: Tensors, common: Common) -> Outputs:
    query, key, value = qkv
    _, _, _, head_dim = query.shape
    width = buffer_width(head_dim)
    sizes = common.sizes
    learned = common.learned
    shares = sizes.tiles + _text_blocks(common)

    def wide(*shape: int) -> Tensor:
        return query.new_empty(sizes.rows, *shape, dtype=torch.float32)

    pooling = None
    pools = None
    if learned.pooling is not None:
        # Rows give nothing to the pooling queries of bands that they don't see summaries of.
        pooling = wide(sizes.tiles, 2, width).zero_()
        pools = wide(2, 2, sizes.video)
    return Outputs(
        # Contiguous, whatever the strides of what came.
        query=query.new_empty(query.shape),
        key=key.new_empty(key.shape),
        value=value.new_empty(value.shape),
        query_norm=None if common.qkv.query.norm is None else wide(shares, width),
        key_norm=None if common.qkv.key.norm is None else wide(shares, width),
        gains=None if learned.gains is None else wide(sizes.tiles, 3),
        pooling=pooling,
        pools=pools,
        shares=shares,
        along=None
        if common.qkv.query.scales is None and common.qkv.key.scales is None
        else query.new_empty(2, sizes.rows, sizes.tokens, dtype=torch.float32),
    )


def _text_blocks(common: Common) -> int:
    return -(-common.num_text // TEXT_SLOTS)


def _tile_grads(
    common: Common, rows: PreparedRows, grads: RowGrads, outputs: Outputs, blocks: Blocks
) -> None:
    programs = common.sizes.rows * common.sizes.tiles
    if common.learned.pooling is not None:
        pool_slopes[(programs,)](
            common.qkv,
            rows,
            grads,
            common.tiles,
            common.learned,
            outputs,
            common.sizes,
            blocks,
            num_stages=1,  # pyright: ignore[reportCallIssue]
        )
    # Products with a band's projector read blocks out of order. Loads under way ahead of them would
    # take the registers that they sum up in.
    wide = common.learned.pooling is not None or common.qkv.value.FEATURES.value != "full"
    warps = architecture(rows.key.device).warps(256) if wide else 4
    tile_grads[(programs,)](
        common.qkv,
        rows,
        grads,
        common.tiles,
        common.learned,
        outputs,
        common.sizes,
        blocks,
        num_warps=warps,  # pyright: ignore[reportCallIssue]
        num_stages=1 if wide else 3,  # pyright: ignore[reportCallIssue]
    )


def _text_grads(
    common: Common, grads: RowGrads, text_mask: Tensor | None, outputs: Outputs, head_dim: int
) -> None:
    text_grads[(common.sizes.rows * _text_blocks(common),)](
        common.qkv,
        grads,
        text_mask,
        common.learned,
        outputs,
        common.sizes,
        TEXT_SLOTS=constant(TEXT_SLOTS),
        D=constant(head_dim),
        W=constant(buffer_width(head_dim)),
    )


def _finish_norm_grads(
    common: Common, outputs: Outputs, text_mask: Tensor | None, norms_text: bool
) -> None:
    batch, tokens, _, head_dim = outputs.query.shape
    finish_norm_grads[scaled_programs(batch, tokens)](
        common.qkv,
        outputs,
        text_mask,
        common.sizes,
        NORMS_TEXT=constant(norms_text),
        BLOCK=constant(SCALED_TOKENS),
        D=constant(head_dim),
        W=constant(buffer_width(head_dim)),
    )


def _summed(
    shares: Tensor | None, given: Tensor | None, heads: int = 0, half: int = 0
) -> Tensor | None:
    """The gradient of what is learned from its shares, (R, shares, ...), which are as wide or have
    zeros after its channels; of `heads` where each has its own. None for what isn't given.

    half: see `channels.half_of`; shares have their channels as kernels do.
    """
    if given is None:
        return None
    if shares is None:
        return torch.zeros_like(given)
    shares = shares[..., : given.shape[-1]]
    total = shares.unflatten(0, (-1, heads)).sum((0, 2)) if heads else shares.sum((0, 1))
    return unpaired(total, half).to(given.dtype)
