"""Frequency attention written out from the design, one query at a time, in float64: slow, and
shares no operator code.

It takes tile layout, low box and lists of fixed patterns from the package; those have tests of
their own.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from tests.support.cases import Case, Inputs
from torch import Tensor

from freqformer.bands import low_box
from freqformer.config import Band
from freqformer.plan import AttentionPlan


def attend_oracle(case: Case, inputs: Inputs, tiles: Tensor | None) -> Tensor:
    """Output (B, N + X, H, D) in float64.

    Args:
        case: full band features, raster order, without norm and rotary embedding.
        inputs: in float64.
        tiles: the choice of MID heads, (B, H, tiles, kept); None for a fixed pattern.
    """
    out = torch.zeros_like(inputs.query)
    for sample, bands in enumerate(case.allocation):
        own = _of_sample(inputs, sample)
        for head, band in enumerate(bands):
            q, k, v = (x[sample, :, head] for x in (inputs.query, inputs.key, inputs.value))
            chosen = None if tiles is None else tiles[sample, head]
            out[sample, :, head] = _head(case, own, sample, head, Band(band), (q, k, v), chosen)
    return out


def _of_sample(inputs: Inputs, sample: int) -> Inputs:
    """The inputs with the offsets of one sample."""
    learned = inputs.parameters
    if learned is None or learned.summary_offsets is None or learned.summary_offsets.ndim == 2:
        return inputs
    return replace(
        inputs, parameters=replace(learned, summary_offsets=learned.summary_offsets[sample])
    )


def _softmax_mean(query: Tensor, keys: list[tuple[Tensor, Tensor, float]]) -> Tensor:
    scale = query.shape[-1] ** -0.5
    scores = torch.stack([query @ key * scale + bias for key, _, bias in keys])
    return torch.stack([value for _, value, _ in keys]).T @ scores.softmax(0)


def _head(
    case: Case,
    inputs: Inputs,
    sample: int,
    head: int,
    band: Band,
    qkv: tuple[Tensor, ...],
    chosen: Tensor | None,
) -> Tensor:
    query, key, value = qkv
    plan, video = case.plan, case.grid.num_tokens
    layout = plan.layout
    members = [
        layout.raster_to_tile[a:b].tolist()
        for a, b in zip(layout.offsets[:-1], layout.offsets[1:], strict=True)
    ]
    shown = [
        inputs.text_mask is None or bool(inputs.text_mask[sample, i])
        for i in range(case.num_text_tokens)
    ]
    text = [(key[video + i], value[video + i], 0.0) for i, show in enumerate(shown) if show]
    everything = [(key[i], value[i], 0.0) for i in range(video)] + text
    out = torch.zeros_like(query)
    for i in range(video, len(query)):
        out[i] = _softmax_mean(query[i], everything)
    if band == Band.LOW:
        low = [_low_tokens(x[:video], plan) for x in (query, key, value)]
        keys = list(zip(low[1], low[2], plan.low_weights.log().tolist(), strict=True))
        keys += [
            entry
            for b in (Band.MID, Band.HIGH)
            for entry in _pooled(case, inputs, head, b, key, value)
        ] + text
        low_out = torch.stack([_softmax_mean(token, keys) for token in low[0]])
        out[:video] = _spread(low_out, plan)
        return out
    for tile, tokens in enumerate(members):
        seen = _seen(plan, band, tile, chosen)
        keys = [(key[i], value[i], 0.0) for t in seen for i in members[t]] + text
        if band != Band.DENSE:
            keys += _low_summaries(case, inputs, head, key, value, seen, members)
            for other in (Band.MID, Band.HIGH):
                if other != band:
                    keys += _pooled(case, inputs, head, other, key, value)
        for i in tokens:
            out[i] = _softmax_mean(query[i], keys)
    return out


def _seen(plan: AttentionPlan, band: Band, tile: int, chosen: Tensor | None) -> list[int]:
    if band == Band.DENSE:
        return list(range(plan.layout.num_tiles))
    if band == Band.MID and chosen is not None:
        row = chosen[tile]
    else:
        lists = plan.high_lists if band == Band.HIGH else plan.mid_lists
        assert lists is not None
        row = lists[tile]
    return [t for t in row.tolist() if t >= 0]


def _low_summaries(
    case: Case,
    inputs: Inputs,
    head: int,
    key: Tensor,
    value: Tensor,
    seen: list[int],
    members: list[list[int]],
) -> list[tuple[Tensor, Tensor, float]]:
    cells, offset = case.plan.cells, 0.0
    if inputs.parameters is not None and inputs.parameters.summary_offsets is not None:
        offset = float(inputs.parameters.summary_offsets[head, 0])
    keys = []
    for cell in range(cells.num_cells):
        inside = (cells.cell_of_tile == cell).nonzero().flatten().tolist()
        tokens = [i for t in inside for i in members[t]]
        unseen = len(tokens) - sum(len(members[t]) for t in inside if t in seen)
        if unseen:
            keys.append((key[tokens].mean(0), value[tokens].mean(0), math.log(unseen) + offset))
    return keys


def _pooled(
    case: Case, inputs: Inputs, head: int, band: Band, key: Tensor, value: Tensor
) -> list[tuple[Tensor, Tensor, float]]:
    learned, plan, video = inputs.parameters, case.plan, case.grid.num_tokens
    if learned is None or learned.summary_queries is None:
        return []
    offset = (
        0.0 if learned.summary_offsets is None else float(learned.summary_offsets[head, int(band)])
    )
    band_key, band_value = (_band(x[:video], band, plan) for x in (key, value))
    owner = plan.cells.cell_of_tile.repeat_interleave(plan.layout.counts)[
        plan.layout.tile_to_raster
    ]
    keys = []
    for cell in range(plan.cells.num_cells):
        tokens = (owner == cell).nonzero().flatten()
        scores = (
            band_key[tokens] @ learned.summary_queries[head, int(band) - 1] * key.shape[-1] ** -0.5
        )
        weights = scores.softmax(0)
        keys.append((weights @ band_key[tokens], weights @ band_value[tokens], offset))
    return keys


def _cosine(n: int, k: int) -> Tensor:
    wave = torch.cos(math.pi / n * (torch.arange(n, dtype=torch.float64) + 0.5) * k)
    return wave * math.sqrt((1 if k == 0 else 2) / n)


def _boxes(plan: AttentionPlan) -> list[tuple[Tensor, tuple[int, ...], tuple[int, ...]]]:
    """Raster tokens, extents and low samples of every tile."""
    layout, config = plan.layout, plan.config
    most = low_box(config.tile or layout.tile, config.compression)
    boxes = []
    for index, place in enumerate(layout.coordinates().tolist()):
        shape = tuple(layout.extents(axis)[i] for axis, i in enumerate(place))
        tokens = layout.raster_to_tile[layout.offsets[index] : layout.offsets[index + 1]]
        boxes.append((tokens, shape, tuple(min(n, m) for n, m in zip(shape, most, strict=True))))
    return boxes


def _band(x: Tensor, band: Band, plan: AttentionPlan) -> Tensor:
    """The part of x (N, D) in one band: a sum over cosine products of every tile."""
    out = torch.zeros_like(x)
    for tokens, shape, samples in _boxes(plan):
        for k in torch.cartesian_prod(*(torch.arange(n) for n in shape)).reshape(-1, 3).tolist():
            long = [i / n for i, n in zip(k, shape, strict=True) if n > 1]
            radius = math.sqrt(sum(r * r for r in long) / max(len(long), 1))
            own = Band.MID if radius < plan.config.mid_cutoff else Band.HIGH
            if all(i < m for i, m in zip(k, samples, strict=True)):
                own = Band.LOW
            if own == band:
                t, h, w = (_cosine(n, i) for n, i in zip(shape, k, strict=True))
                wave = torch.einsum("t,h,w->thw", t, h, w).flatten()
                out[tokens] += wave[:, None] * (wave @ x[tokens])
    return out


def _low_tokens(x: Tensor, plan: AttentionPlan) -> Tensor:
    """(N, D) -> (M, D): each tile's lowest coefficients as samples, in raster order of the low
    grid."""
    centres, tokens = [], []
    for own, shape, samples in _boxes(plan):
        tile = x[own].reshape(*shape, -1)
        for axis, (n, m) in enumerate(zip(shape, samples, strict=True)):
            waves = [torch.outer(_cosine(m, k), _cosine(n, k)) for k in range(m)]
            analysis = torch.stack(waves).sum(0) * math.sqrt(m / n)
            tile = (tile.movedim(axis, -1) @ analysis.T).movedim(-1, axis)
        tokens.append(tile.flatten(0, 2))
        centres += _centres(own, shape, samples, plan)
    order = sorted(range(len(centres)), key=lambda i: centres[i])
    return torch.cat(tokens)[order]


def _centres(
    own: Tensor, shape: tuple[int, ...], samples: tuple[int, ...], plan: AttentionPlan
) -> list[tuple]:
    _, height, width = plan.layout.grid.shape
    first = int(own[0])
    corner = (first // (height * width), first // width % height, first % width)
    axes = [
        [c + (j + 0.5) * n / m - 0.5 for j in range(m)]
        for c, n, m in zip(corner, shape, samples, strict=True)
    ]
    return [(t, h, w) for t in axes[0] for h in axes[1] for w in axes[2]]


def _spread(low: Tensor, plan: AttentionPlan) -> Tensor:
    """Linear interpolation of (M, D) between the low tokens' centres, axis by axis, to (N, D)."""
    centres = sorted(
        c for own, shape, samples in _boxes(plan) for c in _centres(own, shape, samples, plan)
    )
    axes = [sorted({c[axis] for c in centres}) for axis in range(3)]
    out = low.reshape(*(len(axis) for axis in axes), -1)
    for axis, (places, extent) in enumerate(zip(axes, plan.layout.grid.shape, strict=True)):
        rows = []
        for i in range(extent):
            right = next((j for j, c in enumerate(places) if c >= i), len(places) - 1)
            left = max(right - 1, 0) if places[right] > i else right
            gap = places[right] - places[left]
            share = (i - places[left]) / gap if gap and places[left] <= i else 0.0
            rows.append(out.select(axis, left) * (1 - share) + out.select(axis, right) * share)
        out = torch.stack(rows, axis)
    return out.flatten(0, 2)
