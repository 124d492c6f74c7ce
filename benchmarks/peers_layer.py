"""All queries of a whole layer for `peers.py`: lists as unequal as the default and the source's
method have them, low tokens and summaries.

Shape legend: R rows (heads; one sample), N video tokens, M low tokens, D head_dim.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from freqformer.buffers import selects_tiles
from freqformer.config import Band, FreqFormerConfig
from freqformer.cost import Call
from freqformer.grid import TILE_SLOTS
from freqformer.ops.block_sparse.cost import attention_flops
from freqformer.ops.block_sparse.records import AttentionBuffers, MidLists, RowBands
from freqformer.ops.block_sparse.tables import LaunchTables, launch_tables, unseen_bias
from freqformer.plan import AttentionPlan, build_plan
from peers_lists import random_lists
from peers_work import LOW_QUERIES, Block, Size, Work, tile_tokens

OFFSETS = (0.0, -4.0, -4.0)
"""Of low, mid and high summaries, as a layer starts with them."""
CONFIGS = {"default": FreqFormerConfig(), "paper": FreqFormerConfig.paper()}


@dataclass(frozen=True, eq=False)
class LayerQueries(Work):
    """All queries of a whole layer, with lists as unequal as it has them."""

    plan: AttentionPlan
    tables: LaunchTables
    rows: RowBands
    bands: tuple[int, ...]
    mid: MidLists | None
    summary_offsets: Tensor | None
    """float32 (1, H, 3)."""

    @property
    def flops(self) -> float:
        heads = {band: self.bands.count(band) for band in Band}
        return attention_flops(Call(self.plan, heads, low_branch=self.rows.low_branch)).useful

    @property
    def samples(self) -> list[tuple[int, int]]:
        last = self.plan.layout.num_tiles - 1
        found = []
        for band in sorted(set(self.bands)):
            row = self.bands.index(band)
            found += [] if band == Band.LOW else [(row, 0), (row, last)]
            found += [(row, LOW_QUERIES)] if band == Band.LOW or self.rows.low_branch else []
        return found

    def block(self, row: int, index: int) -> Block:
        band = Band.LOW if index == LOW_QUERIES else Band(self.bands[row])
        low, *cells, _ = self.plan.extra_segments(band)
        keys = self.tables.keys
        listed = self._list(row, index)
        parts = [] if listed is None else [(tile_tokens(listed), self._zeros(len(listed)))]
        if low:
            parts.append((self._range(keys.low, low), self.tables.low_bias.double()))
        starts = (keys.low_summaries, keys.mid_summaries, keys.high_summaries)
        for kind, (start, length) in enumerate(zip(starts, cells, strict=True)):
            if length:
                bias = self._zeros(0).new_full((length,), self._offset(row, kind))
                if kind == Band.LOW:
                    bias = bias + self._unseen(row, index)
                parts.append((self._range(start, length), bias))
        places, biases = zip(*parts, strict=True)
        return Block(self._queries(index), torch.cat(places), torch.cat(biases))

    def listing(self, row: int, tile: int) -> list[int]:
        if self.bands[row] == Band.HIGH:
            lists = self.tables.high_lists
        else:
            assert self.mid is not None
            assert self.mid.lists is not None
            lists = self.mid.lists[row]
        return (lists == tile).any(-1).nonzero().squeeze(1).tolist()

    def written(self, x: Tensor) -> Tensor:
        rows = [row for row, band in enumerate(self.bands) if band != Band.LOW]
        return x[rows, : self.plan.layout.grid.num_tokens]

    @property
    def arguments(self) -> dict[str, Any]:
        """What our launches take."""
        return {
            "buffers": AttentionBuffers(self.query, self.key, self.value),
            "rows": self.rows,
            "tables": self.tables,
            "mid": self.mid,
            "summary_offsets": self.summary_offsets,
            "text_mask": None,
            "token_order": "raster",
        }

    def at_queries(self, out: Tensor, low_out: Tensor) -> Tensor:
        """What the launch gives, (1, N, H, D) in raster order and (R, M, D), at the places of the
        queries."""
        video = out[0].index_select(0, self.plan.layout.raster_to_tile.to(out.device))
        return torch.cat([video.transpose(0, 1), low_out], 1)

    @cached_property
    def out_grads(self) -> tuple[Tensor, Tensor]:
        """`grad_out` as the launch takes it, the reverse of `at_queries`."""
        video, low = self.grad_out.split(
            [self.plan.layout.grid.num_tokens, self.plan.num_low_tokens], 1
        )
        place = self.plan.layout.raster_to_tile.to(video.device)
        raster = torch.empty_like(video).index_copy_(1, place, video)
        return raster.transpose(0, 1)[None].contiguous(), low.contiguous()

    def _queries(self, index: int) -> slice:
        if index != LOW_QUERIES:
            return slice(index * TILE_SLOTS, (index + 1) * TILE_SLOTS)
        start = self.plan.layout.grid.num_tokens
        return slice(start, start + self.plan.num_low_tokens)

    def _list(self, row: int, index: int) -> Tensor | None:
        if index == LOW_QUERIES:
            return None
        if self.bands[row] == Band.HIGH:
            return self.tables.high_lists[index]
        return None if self.mid is None or self.mid.lists is None else self.mid.lists[row, index]

    def _unseen(self, row: int, index: int) -> Tensor:
        if self.bands[row] == Band.HIGH:
            assert self.tables.high_bias is not None
            return self.tables.high_bias[index].double()
        assert self.mid is not None
        assert self.mid.bias is not None
        return self.mid.bias[row, index].double()

    def _offset(self, row: int, kind: int) -> float:
        offsets = self.summary_offsets
        return 0.0 if offsets is None else float(offsets[0, row, kind])

    def _zeros(self, tiles: int) -> Tensor:
        return self.key.new_zeros(tiles * TILE_SLOTS, dtype=torch.float64)

    def _range(self, start: int, length: int) -> Tensor:
        return torch.arange(start, start + length, device=self.key.device)


def layer_queries(size: Size, told: dict[str, Any]) -> LayerQueries:
    """What a layer of the record `told["config"]`, with other fields in `changed`, launches on
    random buffers; MID heads list random tiles."""
    config = replace(CONFIGS[told["config"]], **told["changed"])
    draw = size.draw
    learned = config.summary_tokens > 0
    plan = build_plan(
        size.grid,
        config,
        num_heads=size.heads,
        head_dim=size.head_dim,
        learned_summaries=learned,
    )
    tables = launch_tables(plan, size.device)
    bands = config.bands(size.heads)
    allocation = torch.tensor(bands, dtype=torch.int32, device=size.device)
    order = tables.band_blocks[allocation].argsort(descending=True, stable=True).int()
    lows = config.routing == "hard" or Band.LOW in bands
    places = size.grid.num_tokens + plan.num_low_tokens
    query, grad_out = (size.normal(draw, places) for _ in range(2))
    key, value = (_filled(size, draw, tables) for _ in range(2))
    mid = None
    if selects_tiles(plan) and Band.MID in bands:
        lists = random_lists(size, draw, plan.mid_capacity)
        mid = MidLists(lists, None, _mid_bias(lists, bands, plan) if learned else None)
    offsets = torch.tensor(OFFSETS, device=size.device).expand(1, size.heads, 3).contiguous()
    return LayerQueries(
        query,
        key,
        value,
        grad_out,
        plan,
        tables,
        RowBands(allocation, order, lows, config.low_branch),
        bands,
        mid,
        offsets if learned else None,
    )


def _mid_bias(lists: Tensor, bands: tuple[int, ...], plan: AttentionPlan) -> Tensor:
    bias = lists.new_zeros(*lists.shape[:2], plan.cells.num_cells, dtype=torch.float32)
    for row, band in enumerate(bands):
        if band == Band.MID:
            bias[row] = unseen_bias(lists[row].long().cpu(), plan).to(bias)
    return bias


def _filled(size: Size, draw: torch.Generator, tables: LaunchTables) -> Tensor:
    """Keys or values in every segment, zero between them."""
    keys = tables.keys
    x = torch.zeros(size.heads, keys.rows, size.head_dim, device=size.device, dtype=size.dtype)
    for start, length in _segments(tables):
        x[:, start : start + length] = size.normal(draw, length)
    return x


def _segments(tables: LaunchTables) -> Iterator[tuple[int, int]]:
    keys, plan = tables.keys, tables.plan
    yield 0, plan.layout.grid.num_tokens
    yield keys.low, plan.num_low_tokens
    for start in (keys.low_summaries, keys.mid_summaries, keys.high_summaries):
        if start >= 0:
            yield start, plan.cells.num_cells
