"""Prologue in plain PyTorch: band features, rotary embedding, tile order, low tokens, tile means, summary tokens.

Shape legend: R rows (batch and head pairs of one band), N video tokens, M low tokens, C cells, D head_dim.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from freqformer.bands import band_pass, compress
from freqformer.config import Band
from freqformer.ops.parameters import AttentionParameters
from freqformer.ops.tokens import TokenOrder, reorder, rotate
from freqformer.plan import AttentionPlan

ONE_HOT = {Band.LOW: (1.0, 0.0, 0.0), Band.MID: (0.0, 1.0, 0.0), Band.HIGH: (0.0, 0.0, 1.0)}


@dataclass(frozen=True)
class BandInputs:
    """What the attention of one band reads. Video tensors are in tile order; extras are [low | summaries]."""

    query: Tensor
    """(R, N, D), or low tokens (R, M, D) for LOW."""
    key: Tensor | None
    """(R, N, D) exact keys; None for LOW."""
    value: Tensor | None
    extra_key: Tensor
    """(R, E, D): low tokens for LOW, then the summaries of the bands that the row is not in."""
    extra_value: Tensor
    extra_bias: Tensor
    """(R, E), float32 at least. Low summaries come first and also get the log of their unseen tokens later."""
    selection_means: tuple[Tensor, Tensor] | None
    """float32 tile means (R, tiles, D) of the rotated full-band query and key, for MID's choice."""


def prepare(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    band: Band,
    plan: AttentionPlan,
    heads: Tensor,
    parameters: AttentionParameters | None,
    token_order: TokenOrder,
) -> BandInputs:
    """Prepare the rows of one band.

    Args:
        query, key, value: (R, N, D) in `token_order`, normalised; rotated unless `parameters.rotary` is given.
        band: LOW, MID or HIGH.
        plan: the plan of the call.
        heads: the head of every row, int64 (R,).
        parameters: learned inputs, or None.
        token_order: order of the tokens and of the rotary tables.
    """
    layout, config = plan.layout, plan.config
    rotary = parameters.rotary if parameters is not None else None

    def rotated(x: Tensor) -> Tensor:
        return x if rotary is None else rotate(x, rotary)

    def tiled(x: Tensor) -> Tensor:
        return reorder(x, layout, token_order, "tile")

    full_query, full_key = rotated(query), rotated(key)
    parts = _summaries(band, key, value, full_key, plan, heads, parameters, token_order)
    means = None
    if band == Band.LOW:
        query, key, value = (
            compress(reorder(x, layout, token_order, "raster"), layout, config) for x in (full_query, full_key, value)
        )
        weights = plan.low_weights.to(device=query.device, dtype=_wide(query))
        parts.insert(0, (key, value, weights.log().expand(query.shape[0], -1)))
        inputs = (query, None, None)
    else:
        if band == Band.MID and config.mid_pattern == "topk":
            means = (tile_means(tiled(full_query), plan), tile_means(tiled(full_key), plan))
        features = _band_features(query, key, value, band, plan, heads, parameters, token_order)
        if features[0] is query:
            features = (full_query, full_key, features[2])
        else:
            features = (rotated(features[0]), rotated(features[1]), features[2])
        inputs = tuple(tiled(x) for x in features)
    extra_key, extra_value, extra_bias = _joined(parts, query)
    return BandInputs(*inputs, extra_key, extra_value, extra_bias, means)


def _joined(parts: list[tuple[Tensor, Tensor, Tensor]], like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    if not parts:
        rows, _, channels = like.shape
        empty = like.new_zeros(rows, 0, channels)
        return empty, empty, like.new_zeros(rows, 0, dtype=_wide(like))
    keys, values, biases = zip(*parts, strict=True)
    return torch.cat(keys, 1), torch.cat(values, 1), torch.cat(biases, 1)


def _wide(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _band_features(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    band: Band,
    plan: AttentionPlan,
    heads: Tensor,
    parameters: AttentionParameters | None,
    token_order: TokenOrder,
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values of a MID or HIGH row, before the rotary embedding; the same tensors where untouched."""

    def passed(x: Tensor, gains: Tensor) -> Tensor:
        raster = reorder(x, plan.layout, token_order, "raster")
        return reorder(band_pass(raster, gains, plan.layout, plan.config), plan.layout, "raster", token_order)

    features = plan.config.band_features
    if features == "values":
        return query, key, passed(value, query.new_tensor((0.0, 1.0, 1.0)))
    if features == "strict":
        own = query.new_tensor(ONE_HOT[band])
        return passed(query, own), passed(key, own), passed(value, own)
    if features == "gains" and parameters is not None and parameters.gains is not None:
        gains = parameters.gains[heads]
        return passed(query, gains), passed(key, gains), passed(value, gains)
    return query, key, value


def tile_means(x: Tensor, plan: AttentionPlan) -> Tensor:
    """Mean over the tokens of every tile: (R, N, D) in tile order -> float32 (R, tiles, D); float64 stays."""
    counts = plan.layout.counts.to(x.device)
    if int(counts.min()) == int(counts.max()):
        return x.to(_wide(x)).unflatten(1, (plan.layout.num_tiles, -1)).mean(2)
    owner = torch.repeat_interleave(torch.arange(len(counts), device=x.device), counts)
    return _cell_sums(x, owner, len(counts)) / counts[:, None]


def _cell_sums(x: Tensor, owner: Tensor, count: int) -> Tensor:
    sums = torch.zeros(x.shape[0], count, x.shape[2], dtype=_wide(x), device=x.device)
    return sums.index_add(1, owner, x.to(sums.dtype))


def _summaries(
    band: Band,
    key: Tensor,
    value: Tensor,
    full_key: Tensor,
    plan: AttentionPlan,
    heads: Tensor,
    parameters: AttentionParameters | None,
    token_order: TokenOrder,
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Key, value and bias of the summaries of the bands that `band` is not, low first."""
    if plan.cells.num_cells == 0:
        return []
    owner = plan.cells.cell_of_tile.repeat_interleave(plan.layout.counts).to(key.device)
    if token_order == "raster":
        owner = owner[plan.layout.tile_to_raster.to(key.device)]
    parts = []
    if band != Band.LOW:
        counts = plan.cells.counts.to(key.device)[:, None]
        means = [_cell_sums(x, owner, len(counts)) / counts for x in (full_key, value)]
        bias = _offset_bias(parameters, heads, Band.LOW, means[0], plan)
        parts.append((means[0].to(key.dtype), means[1].to(value.dtype), bias))
    if parameters is None or parameters.summary_queries is None:
        return parts
    for index, other in enumerate((Band.MID, Band.HIGH)):
        if other != band:
            pooled = _pool(
                key, value, other, owner, plan, parameters.summary_queries[heads, index], parameters, token_order
            )
            parts.append((*pooled, _offset_bias(parameters, heads, other, key, plan)))
    return parts


def _offset_bias(
    parameters: AttentionParameters | None, heads: Tensor, band: Band, like: Tensor, plan: AttentionPlan
) -> Tensor:
    """The learned offset of the summaries of `band` as a bias of every cell, (R, C)."""
    bias = like.new_zeros(len(heads), plan.cells.num_cells, dtype=_wide(like))
    if parameters is None or parameters.summary_offsets is None:
        return bias
    return bias + parameters.summary_offsets[heads, int(band)].to(bias)[:, None]


def _pool(
    key: Tensor,
    value: Tensor,
    band: Band,
    owner: Tensor,
    plan: AttentionPlan,
    pooling_query: Tensor,
    parameters: AttentionParameters,
    token_order: TokenOrder,
) -> tuple[Tensor, Tensor]:
    """Softmax pooling of the band-passed keys and values over every cell: two (R, C, D)."""
    gains, cells = key.new_tensor(ONE_HOT[band]), plan.cells.num_cells
    raster = reorder(torch.cat([key, value], -1), plan.layout, token_order, "raster")
    passed = reorder(band_pass(raster, gains, plan.layout, plan.config), plan.layout, "raster", token_order)
    band_key, band_value = passed.split(key.shape[-1], -1)
    wide = _wide(key)
    scores = (band_key.to(wide) @ pooling_query.to(wide)[..., None]).squeeze(-1) * key.shape[-1] ** -0.5
    # The largest score of a cell keeps the exponentials finite; it cancels, so no gradient passes it.
    index = owner.expand_as(scores)
    peak = torch.full((scores.shape[0], cells), -torch.inf, dtype=wide, device=key.device)
    peak = peak.scatter_reduce(1, index, scores.detach(), "amax")
    weight = (scores - peak.gather(1, index)).exp()[..., None]
    total = _cell_sums(weight, owner, cells)
    if parameters.rotary is not None:
        band_key = rotate(band_key, parameters.rotary)
    pooled_key = _cell_sums(weight * band_key.to(wide), owner, cells) / total
    pooled_value = _cell_sums(weight * band_value.to(wide), owner, cells) / total
    return pooled_key.to(key.dtype), pooled_value.to(value.dtype)
