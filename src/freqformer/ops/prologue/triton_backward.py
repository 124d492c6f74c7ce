"""Backward of the prologue in Triton: the host side.

Shape legend: B batch, H heads, R = B * H rows (row = sample * H + head), N video tokens, X text
tokens, T tiles, C cells, D head_dim, S rows of the key buffer (`ops.key_layout`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from freqformer.ops.parameters import AttentionParameters
from freqformer.ops.prologue.tables import PrologueTables
from freqformer.ops.prologue.triton import FEATURES, TEXT_SLOTS
from freqformer.ops.prologue.triton_backward_kernel import pool_slopes, text_grads, tile_grads
from freqformer.ops.tokens import TokenOrder
from freqformer.plan import AttentionPlan

Tensors = tuple[Tensor, Tensor, Tensor]
CHUNK = 32
"""Tokens that one program holds at once."""


@dataclass(frozen=True, eq=False)
class PrologueGrads:
    """Gradients of what the prologue took; None for what isn't given."""

    tensors: Tensors
    """Of query, key and value, (B, N + X, H, D) contiguous."""
    query_norm: Tensor | None
    key_norm: Tensor | None
    gains: Tensor | None
    summary_queries: Tensor | None


def prepare_rows_backward(
    buffer_grads: Tensors,
    tensors: Tensors,
    bands: Tensor,
    pools: Tensors,
    tables: PrologueTables,
    *,
    parameters: AttentionParameters | None,
    token_order: TokenOrder,
    text_mask: Tensor | None = None,
    low_branch: bool = False,
) -> PrologueGrads:
    """Gradients of `prepare_rows`, from those of its buffers, the same bits every time.

    Args:
        buffer_grads: of the query, key and value buffers, written where a row of its band holds
            something.
        tensors: query, key and value (B, N + X, H, D) as `prepare_rows` took them.
        bands: `Band` of every row, int32 (R,).
        pools: key and value buffers, whose summaries are read, and the log-sum-exp of pooling
            scores float32 (R, C, 2).
        tables, parameters, token_order, text_mask, low_branch: as in `prepare_rows`. The rotary
            tables get no gradient.
    """
    plan, keys = tables.plan, tables.keys
    learned = parameters or AttentionParameters()
    cos, sin = (None, None) if learned.rotary is None else learned.rotary
    optional = (
        learned.query_norm,
        learned.key_norm,
        cos,
        sin,
        learned.gains,
        learned.summary_queries,
    )
    outputs = _prologue_backward(
        list(buffer_grads),
        list(tensors),
        bands,
        list(pools),
        [tables.tile_offsets, tables.raster, tables.tile_class, tables.low_place],
        [tables.reduction, tables.projectors],
        [cell_of_tile(plan, bands.device), tables.cell_counts],
        [None if x is None else x.contiguous() for x in optional],
        learned.norm_eps,
        keys.offsets,
        plan.num_text_tokens,
        token_order == "raster",
        FEATURES.index(plan.config.band_features),
        None if text_mask is None else text_mask.contiguous(),
        low_branch,
    )
    given = (learned.query_norm, learned.key_norm, learned.gains, learned.summary_queries)
    rest = (grad if x is not None else None for x, grad in zip(given, outputs[3:], strict=True))
    return PrologueGrads((outputs[0], outputs[1], outputs[2]), *rest)


@lru_cache(maxsize=64)
def cell_of_tile(plan: AttentionPlan, device: torch.device) -> Tensor:
    """Cell of every tile on a device, int32 (T,), cached."""
    return plan.cells.cell_of_tile.to(torch.int32).to(device)


def _prologue_backward(
    buffer_grads: Sequence[Tensor],
    tensors: Sequence[Tensor],
    bands: Tensor,
    pools: Sequence[Tensor],
    layout: Sequence[Tensor],
    matrices: Sequence[Tensor | None],
    cells: Sequence[Tensor],
    learned: Sequence[Tensor | None],
    eps: float,
    segments: Sequence[int],
    num_text: int,
    raster: bool,
    features: int,
    text_mask: Tensor | None,
    low_branch: bool,
) -> tuple[Tensor, ...]:
    batch, tokens, heads, head_dim = tensors[0].shape
    rows, key_rows, tiles = batch * heads, buffer_grads[1].shape[1], layout[2].shape[0]
    query_rows = buffer_grads[0].shape[1]
    query_norm, key_norm, cos, sin, gains, pooling = learned
    reduction, projectors = matrices
    assert reduction is not None
    pooling = pooling if len(cells[1]) else None
    text_blocks = -(-num_text // TEXT_SLOTS)
    wide = {"dtype": torch.float32, "device": bands.device}
    grads = [torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in tensors]
    shares = (
        None if query_norm is None else torch.empty(rows, tiles + text_blocks, head_dim, **wide),
        None if key_norm is None else torch.empty(rows, tiles + text_blocks, head_dim, **wide),
        None if gains is None else torch.empty(rows, tiles, 3, **wide),
        # Rows give nothing to the pooling queries of bands that they don't see summaries of.
        None if pooling is None else torch.zeros(rows, tiles, 2, head_dim, **wide),
    )
    inputs, strides = tuple(tensors), tuple(x.stride()[:3] for x in tensors)
    parts, _, low_slots, slots = reduction.shape
    sums_at, projector_step = (
        tuple(segments[1:4]),
        0 if projectors is None else projectors.stride(0),
    )
    rotary = None if cos is None else (cos, sin)
    constants: dict[str, Any] = {
        "SLOTS": slots,
        "CHUNK": min(slots, CHUNK),
        "D": head_dim,
        "RASTER": raster,
        "BRANCH": low_branch,
        "PARTS": parts,
    }
    pool_vectors = None
    if pooling is not None:
        pool_vectors = torch.empty(rows, 2, 2, tokens - num_text, **wide)
        pool_slopes[(rows * tiles,)](
            inputs,
            strides,
            bands,
            tuple(pools[:2]),
            tuple(buffer_grads[1:]),
            pools[2],
            pool_vectors,
            shares[3],
            tuple(layout[:3]),
            cells[0],
            key_norm,
            rotary,
            pooling,
            projectors,
            projector_step,
            (heads, rows, tokens - num_text, key_rows, tiles, len(cells[1])),
            sums_at,
            eps,
            **constants,
        )
    constants |= {
        "LOW_SLOTS": low_slots,
        "FEATURES": features,
        "TEXT": num_text > 0,
        "num_warps": 8 if features else 4,
    }
    tile_grads[(rows * tiles,)](
        inputs,
        strides,
        bands,
        tuple(buffer_grads),
        tuple(grads),
        shares[:3],
        tuple(layout),
        tuple(cells) if len(cells[1]) else None,
        (reduction, reduction.stride(0), projectors, projector_step),
        (query_norm, key_norm, rotary, gains, pooling),
        pool_vectors,
        (heads, rows, tokens, query_rows, tokens - num_text, key_rows, tiles, tiles + text_blocks),
        (segments[0], sums_at, segments[5]),
        eps,
        **constants,
    )
    if num_text:
        constants = {"TEXT_SLOTS": TEXT_SLOTS, "D": head_dim}
        text_grads[(rows * text_blocks,)](
            inputs,
            strides,
            tuple(buffer_grads),
            tuple(grads),
            shares,
            (query_norm, key_norm),
            text_mask,
            (
                heads,
                rows,
                tokens,
                query_rows,
                tokens - num_text,
                key_rows,
                tiles,
                tiles + text_blocks,
            ),
            segments[4],
            eps,
            **constants,
        )
    return (*grads, *_sums(shares, bands, learned, heads))


def _sums(
    shares: tuple[Tensor | None, ...], bands: Tensor, learned: Sequence[Tensor | None], heads: int
) -> list[Tensor]:
    """Gradients of query norm, key norm, gains and pooling queries from their shares; empty for
    what isn't learned."""
    sums = []
    for share, x, per_head in zip(
        shares, (*learned[:2], *learned[4:]), (False, False, True, True), strict=True
    ):
        if share is None or x is None:
            sums.append(
                bands.new_empty(0, dtype=torch.float32) if x is None else torch.zeros_like(x)
            )
            continue
        total = share.unflatten(0, (-1, heads)).sum((0, 2)) if per_head else share.sum((0, 1))
        sums.append(total.to(x.dtype))
    return sums
