"""Prologue in plain PyTorch: band features, rotary embedding, tile order, low tokens, tile means,
summary tokens.

Shape legend: R rows (batch and head pairs of one band), N video tokens, M low tokens, T tiles, C
cells, D head_dim.
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
"""Gains that pass one band alone."""

Extra = tuple[Tensor, Tensor, Tensor]
"""Extra keys (R, E, D), their values (R, E, D) and bias (R, E)."""


@dataclass(frozen=True, eq=False)
class BandInputs:
    """What the attention of one band reads. Video tensors are in tile order; extras are [low |
    summaries]."""

    query: Tensor
    """(R, N, D), or low tokens (R, M, D) for LOW."""
    key: Tensor | None
    """(R, N, D) exact keys; None for LOW."""
    value: Tensor | None
    """(R, N, D); None for LOW."""
    extra_key: Tensor
    """(R, E, D): low tokens for LOW, then the summaries of the bands that the row is not in."""
    extra_value: Tensor
    """(R, E, D)."""
    extra_bias: Tensor
    """(R, E), float32 at least. Low summaries come first and also get the log of their unseen
    tokens later."""
    selection_means: tuple[Tensor, Tensor] | None
    """float32 tile means (R, T, D) of the rotated full-band query and key, for MID's choice; no
    gradient."""


@dataclass(frozen=True, eq=False)
class _Rows:
    """The rows of one band, and how their video tokens (R, N, D) are moved and filtered."""

    plan: AttentionPlan
    rows: Tensor
    """Which of the call's rows (sample * heads + head) they are, int64 (R,)."""
    parameters: AttentionParameters | None
    order: TokenOrder
    """Order of the tokens that come in, and of the rotary tables."""

    def raster(self, x: Tensor) -> Tensor:
        return reorder(x, self.plan.layout, self.order, "raster")

    def tiled(self, x: Tensor) -> Tensor:
        return reorder(x, self.plan.layout, self.order, "tile")

    def rotated(self, x: Tensor) -> Tensor:
        rotation = self.parameters.rotation if self.parameters is not None else None
        if rotation is None:
            return x
        # Tables may go on with text, which has no bands.
        cos, sin = rotation.of_rows(self.rows, self.plan.num_heads)
        video = x.shape[1]
        return rotate(x, (cos[:, :video], sin[:, :video]), rotation.pairs)

    def passed(self, x: Tensor, gains: Tensor) -> Tensor:
        """x with its bands weighted by gains (3,) or (R, 3)."""
        filtered = band_pass(self.raster(x), gains, self.plan.layout, self.plan.config)
        return reorder(filtered, self.plan.layout, "raster", self.order)

    def summary_bias(self, band: Band, like: Tensor) -> Tensor:
        """The learned offset of the summaries of `band` as the bias of every cell, (R, C)."""
        bias = like.new_zeros(len(self.rows), self.plan.cells.num_cells, dtype=_wide(like))
        offsets = self.parameters.summary_offsets if self.parameters is not None else None
        if offsets is None:
            return bias
        own = offsets[self.heads] if offsets.ndim == 2 else offsets.flatten(0, 1)[self.rows]
        return bias + own[:, int(band), None].to(bias)

    @property
    def heads(self) -> Tensor:
        """The head of every row, int64 (R,)."""
        return self.rows % self.plan.num_heads


def prepare(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    band: Band,
    plan: AttentionPlan,
    rows: Tensor,
    parameters: AttentionParameters | None,
    token_order: TokenOrder,
) -> BandInputs:
    """Prepare the rows of one band.

    Args:
        query, key, value: (R, N, D) in `token_order`, normalised; rotated unless
            `parameters.rotary` is given.
        band: LOW, MID or HIGH.
        plan: the plan of the call.
        rows: which of the call's rows (sample * heads + head) they are, int64 (R,).
        parameters: learned inputs, or None.
        token_order: order of the tokens and of the rotary tables.
    """
    own = _Rows(plan, rows, parameters, token_order)
    learned = _learned_summaries(key, value, band, own)
    if band == Band.LOW:
        low_query, low_key, low_value = (
            compress(own.raster(x), plan.layout, plan.config)
            for x in (own.rotated(query), own.rotated(key), value)
        )
        weights = plan.low_weights.to(device=query.device, dtype=_wide(query))
        low = (low_key, low_value, weights.log().expand(len(rows), -1))
        return BandInputs(low_query, None, None, *_joined([low, *learned]), None)
    exact_query = own.tiled(own.rotated(query))
    exact_key = own.tiled(own.rotated(key))
    exact_value = own.tiled(value)
    means = None
    if band == Band.MID and plan.mid_lists is None:
        with torch.no_grad():
            means = (tile_means(exact_query, plan), tile_means(exact_key, plan))
    extras = _joined([_low_summaries(exact_key, exact_value, own), *learned])
    features = (exact_query, exact_key, exact_value)
    if plan.config.band_features != "full":
        features = _band_features(query, key, value, band, own)
    return BandInputs(*features, *extras, means)


def _joined(parts: list[Extra]) -> Extra:
    keys, values, biases = zip(*parts, strict=True)
    return torch.cat(keys, 1), torch.cat(values, 1), torch.cat(biases, 1)


def _wide(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _band_features(
    query: Tensor, key: Tensor, value: Tensor, band: Band, rows: _Rows
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values (R, N, D) of MID or HIGH rows in tile order, bands weighted before
    the rotary embedding."""
    features = rows.plan.config.band_features
    if features == "high_pass_values":
        value = rows.passed(value, value.new_tensor((0.0, 1.0, 1.0)))
    else:
        gains = value.new_tensor(ONE_HOT[band])
        if features == "band_gains":
            assert rows.parameters is not None  # check_parameters asks for them
            assert rows.parameters.gains is not None
            gains = rows.parameters.gains[rows.heads]
        query = rows.passed(query, gains)
        key = rows.passed(key, gains)
        value = rows.passed(value, gains)
    return rows.tiled(rows.rotated(query)), rows.tiled(rows.rotated(key)), rows.tiled(value)


def tile_sums(x: Tensor, plan: AttentionPlan) -> Tensor:
    """Sum over the tokens of every tile: (R, N, D) in tile order -> float32 (R, T, D); float64
    stays."""
    counts = plan.layout.counts.to(x.device)
    wide = x.to(_wide(x))
    if plan.layout.ragged:
        return torch.segment_reduce(
            wide, "sum", lengths=counts.expand(len(x), -1).contiguous(), axis=1, unsafe=True
        )
    return wide.unflatten(1, (len(counts), -1)).sum(2)


def tile_means(x: Tensor, plan: AttentionPlan) -> Tensor:
    """Mean over the tokens of every tile: (R, N, D) in tile order -> float32 (R, T, D); float64
    stays."""
    return tile_sums(x, plan) / plan.layout.counts.to(x.device)[:, None]


def _cell_sums(x: Tensor, plan: AttentionPlan) -> Tensor:
    """Sum over the tokens of every cell: (R, N, D) in tile order -> float32 (R, C, D); float64
    stays."""
    sums = tile_sums(x, plan)
    # A product, since scattered adds on a GPU come in any order and so give other bits at every
    # run.
    member = torch.arange(plan.cells.num_cells)[:, None] == plan.cells.cell_of_tile
    return member.to(sums) @ sums


def _low_summaries(key: Tensor, value: Tensor, rows: _Rows) -> Extra:
    """Mean key and value of every cell, from rotated keys and values in tile order."""
    counts = rows.plan.cells.counts.to(key.device)[:, None]
    mean_key, mean_value = (_cell_sums(x, rows.plan) / counts for x in (key, value))
    return mean_key.to(key.dtype), mean_value.to(value.dtype), rows.summary_bias(Band.LOW, mean_key)


def _learned_summaries(key: Tensor, value: Tensor, band: Band, rows: _Rows) -> list[Extra]:
    """Pooled summaries of the mid and the high band, but for the rows' own."""
    queries = rows.parameters.summary_queries if rows.parameters is not None else None
    if queries is None or rows.plan.cells.num_cells == 0:
        return []
    parts = []
    for index, other in enumerate((Band.MID, Band.HIGH)):
        if other != band:
            pooled = _pool(key, value, other, queries[rows.heads, index], rows)
            parts.append((*pooled, rows.summary_bias(other, key)))
    return parts


def _pool(
    key: Tensor, value: Tensor, band: Band, pooling_query: Tensor, rows: _Rows
) -> tuple[Tensor, Tensor]:
    """Softmax pooling of the band-passed keys and values over every cell: two (R, C, D)."""
    plan = rows.plan
    wide = _wide(key)
    passed = rows.passed(torch.cat([key, value], -1), key.new_tensor(ONE_HOT[band]))
    band_key, band_value = passed.to(wide).split(key.shape[-1], -1)
    scores = rows.tiled(band_key @ pooling_query.to(wide)[..., None] * key.shape[-1] ** -0.5)
    # The largest score of a cell keeps the exponentials finite; it cancels, so no gradient passes
    # it.
    owner = (
        plan.cells.cell_of_tile.repeat_interleave(plan.layout.counts)
        .to(key.device)
        .expand(len(key), -1)
    )
    peak = scores.new_full((len(key), plan.cells.num_cells), -torch.inf)
    peak = peak.scatter_reduce(1, owner, scores.detach().squeeze(-1), "amax").gather(1, owner)
    weight = (scores - peak[..., None]).exp()
    rotated = rows.tiled(rows.rotated(band_key))
    weights = _cell_sums(weight, plan)
    pooled_key = _cell_sums(weight * rotated, plan) / weights
    pooled_value = _cell_sums(weight * rows.tiled(band_value), plan) / weights
    return pooled_key.to(key.dtype), pooled_value.to(value.dtype)
