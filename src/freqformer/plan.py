"""The attention plan: what is static about one attention call, and what that costs.

A plan is built once per grid and configuration, outside any compiled region. Together with the
`Selection` of a call it is all that kernels and the cost model know about structure.
"""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from freqformer import patterns
from freqformer._validate import check_choice, check_kind, check_whole
from freqformer.bands import low_grid, low_weights
from freqformer.config import Band, FreqFormerConfig, checked_bands
from freqformer.grid import Grid, TileLayout, check_grid, tile_layout
from freqformer.tracing import constant_result


@dataclass(frozen=True, eq=False)
class Selection:
    """The tiles that MID heads of one call see: int tensor (batch, heads, query tiles, tiles kept),
    -1 behind the end.

    Rows of heads that are not MID are not read.
    """

    tiles: Tensor


BAND_COSTS = "band costs"
"""Where a plan keeps them: a layer that ranks share asks at every call."""


@dataclass(frozen=True)
class Flops:
    """Floating-point operations of attention, a multiply-add counted as two."""

    useful: float
    """Of tokens that exist. For top-k lists the expectation over tiles, since edge tiles differ in
    size."""
    executed: int
    """Of the slots that a kernel computes, each segment's tokens rounded up to blocks of 128."""


@dataclass(frozen=True, eq=False)
class AttentionPlan:
    """Static structure of one attention call over a grid; made by `build_plan`.

    The keys of a head are numbered in segments [video | low | summaries | text]; `segments` gives
    their offsets.
    """

    layout: TileLayout
    config: FreqFormerConfig
    num_heads: int
    head_dim: int
    num_text_tokens: int
    learned_summaries: bool
    """Whether the mid and high bands are summarised too, which needs learned parameters."""
    mid_lists: Tensor | None
    """Key tiles of every query tile for a fixed mid pattern, int64 (tiles, longest), -1 behind the
    end; None: top-k."""
    high_lists: Tensor
    """Key tiles of every query tile in the window, int64 (tiles, window)."""
    cells: patterns.SummaryCells
    low_weights: Tensor
    """Tokens that every low token stands for, float64 (low tokens,)."""
    key: tuple[int, int, int, int, int]
    """What compiled graphs hold of the plan: its number in the process, low tokens, tiles, longest
    MID list and cells."""

    @cached_property
    def kept(self) -> dict[Hashable, Any]:
        """What operations made of the plan, as its tables on a device: it lives as long as the
        plan. No field, so that a changed copy starts without."""
        return {}

    @property
    def num_low_tokens(self) -> int:
        """Low tokens of the video, M."""
        return self.low_weights.shape[0]

    @property
    def mid_capacity(self) -> int:
        """Longest list of key tiles of a MID head."""
        return self.key[3]

    @property
    def segments(self) -> tuple[int, int, int, int, int]:
        """Offsets of the key segments video, low, summaries and text, and their end."""
        video = self.layout.grid.num_tokens
        low = video + self.num_low_tokens
        summaries = low + 3 * self.cells.num_cells
        return (0, video, low, summaries, summaries + self.num_text_tokens)

    def lengths(self, band: Band) -> Tensor:
        """Key tiles of every query tile for a MID, HIGH or DENSE head, int64 (tiles,)."""
        tiles = self.layout.num_tiles
        if band == Band.HIGH:
            return torch.full((tiles,), self.high_lists.shape[1])
        if band == Band.MID and self.mid_lists is not None:
            return (self.mid_lists >= 0).sum(-1)
        return torch.full((tiles,), self.mid_capacity if band == Band.MID else tiles)

    def extra_segments(self, band: Band) -> tuple[int, int, int, int, int]:
        """Keys of a head beside exact video tokens: low tokens, low, mid and high summaries, and
        text."""
        low, mid, high = (
            self.cells.num_cells if self._summarised(band, other) else 0 for other in list(Band)[:3]
        )
        return (
            self.num_low_tokens if band == Band.LOW else 0,
            low,
            mid,
            high,
            self.num_text_tokens,
        )

    def _summarised(self, band: Band, other: Band) -> bool:
        """Whether a head in `band` sees the summaries of the band `other`."""
        return band not in (other, Band.DENSE) and (other == Band.LOW or self.learned_summaries)

    def key_blocks(self, band: Band) -> Tensor:
        """Blocks of keys that every query block of a head reads, int64 (query blocks,).

        Blocks have the slots of a tile, `TileLayout.block`. Query blocks are the tiles, or blocks
        of low tokens for LOW, and then the blocks of text queries, which see everything. Every
        segment of keys begins a new block.
        """
        extra = sum(map(self._blocks, self.extra_segments(band)))
        video = (
            torch.full((self._blocks(self.num_low_tokens),), extra)
            if band == Band.LOW
            else self.lengths(band) + extra
        )
        text = self._blocks(self.num_text_tokens)
        return torch.cat([video, torch.full((text,), self.layout.num_tiles + text)])

    def _blocks(self, tokens: int) -> int:
        return -(-tokens // self.layout.block)

    def task_order(self, allocation: Sequence[int], longest: int | None = None) -> Tensor:
        """Work items, longest first so that the last to run are short: int64 (tasks, 4).

        Columns: head, query block, first key block, end of key blocks; blocks as in `key_blocks`.

        Args:
            allocation: the band of every head.
            longest: most key blocks of an item; longer lists are split into pieces that differ by
                one at most. None splits nothing.
        """
        tasks = []
        for head, band in enumerate(_checked(allocation, self.num_heads)):
            lengths = self.key_blocks(band)
            pieces = torch.ones_like(lengths) if longest is None else -(-lengths // longest)
            block = torch.repeat_interleave(pieces)
            piece = torch.arange(len(block)) - (pieces.cumsum(0) - pieces)[block]
            ends = torch.stack([piece, piece + 1], -1) * lengths[block, None] // pieces[block, None]
            tasks.append(
                torch.cat([torch.full_like(block, head)[:, None], block[:, None], ends], -1)
            )
        rows = torch.cat(tasks)
        return rows[(rows[:, 3] - rows[:, 2]).argsort(descending=True, stable=True)]

    def band_flops(self, band: Band) -> Flops:
        """FLOPs of one head in `band`, text queries included."""
        n, text, extra = (
            self.layout.grid.num_tokens,
            self.num_text_tokens,
            sum(self.extra_segments(band)),
        )
        pairs = (
            float(self.num_low_tokens * extra)
            if band == Band.LOW
            else self._video_pairs(band) + n * extra
        )
        pairs += text * (n + text)
        slots = int(self.key_blocks(band).sum()) * self.layout.block**2
        return Flops(4.0 * self.head_dim * pairs, 4 * self.head_dim * slots)

    def _video_pairs(self, band: Band) -> float:
        """Pairs of a video query and an exact video key."""
        n, tiles, counts = self.layout.grid.num_tokens, self.layout.num_tiles, self.layout.counts
        lists = {Band.MID: self.mid_lists, Band.HIGH: self.high_lists}.get(band)
        if lists is not None:
            keys = torch.where(lists >= 0, counts[lists.clamp_min(0)], 0).sum(-1)
            return float((counts * keys).sum())
        kept = tiles if band == Band.DENSE else self.mid_capacity
        if kept == tiles:
            return float(n) * n
        # The own tile is always kept; the others are as large as the mean of the rest.
        own = float((counts * counts).sum())
        return own + (kept - 1) / (tiles - 1) * (float(n) * n - own)

    def band_costs(self) -> tuple[float, float, float, float]:
        """Useful FLOPs of one head as LOW, MID, HIGH and DENSE."""
        if BAND_COSTS not in self.kept:
            self.kept[BAND_COSTS] = tuple(self.band_flops(band).useful for band in Band)
        low, mid, high, dense = self.kept[BAND_COSTS]
        return (low, mid, high, dense)

    def flops(self, allocation: Sequence[int]) -> Flops:
        """FLOPs of the attention of all heads.

        Args:
            allocation: the band of every head.
        """
        costs = [self.band_flops(band) for band in _checked(allocation, self.num_heads)]
        return Flops(sum(cost.useful for cost in costs), sum(cost.executed for cost in costs))

    def kv_bytes(self, allocation: Sequence[int], element_size: int = 2) -> int:
        """Bytes of keys and values that blocks of queries read, without reuse between them; 2 bytes
        for bfloat16."""
        blocks = sum(
            int(self.key_blocks(band).sum()) for band in _checked(allocation, self.num_heads)
        )
        return 2 * blocks * self.layout.block * self.head_dim * element_size

    def density(self, allocation: Sequence[int]) -> float:
        """Useful FLOPs over those of dense attention in every head."""
        return self.flops(allocation).useful / (self.num_heads * self.band_flops(Band.DENSE).useful)

    def validate(self, selection: Selection | None = None) -> None:
        """Raise ValueError where the plan or a selection breaks its rules: range, order,
        duplicates, own tile, counts.

        Every head of the selection is held to them, MID or not.
        """
        n = self.layout.grid.num_tokens
        if int(self.layout.counts.sum()) != n or (
            self.cells.num_cells and int(self.cells.counts.sum()) != n
        ):
            raise ValueError(f"plan counts other than {n} tokens; build it with build_plan")
        for name, lists in (("mid_lists", self.mid_lists), ("high_lists", self.high_lists)):
            if lists is not None:
                self._check_lists(name, lists)
        if selection is not None:
            self._check_shape(selection)
            self._check_lists("selection.tiles", selection.tiles)

    def _check_shape(self, selection: Selection, batch: int | None = None) -> None:
        tiles, expected = selection.tiles, (self.num_heads, self.layout.num_tiles)
        whole = not (tiles.is_floating_point() or tiles.is_complex() or tiles.dtype == torch.bool)
        fits = tiles.ndim == 4 and tuple(tiles.shape[1:3]) == expected and tiles.shape[3] > 0
        if not (whole and fits and batch in (None, tiles.shape[0])):
            raise ValueError(
                f"selection.tiles is {tiles.dtype} {tuple(tiles.shape)}; whole numbers "
                f"({batch or 'batch'}, {expected[0]}, "
                f"{expected[1]}, tiles kept) are allowed: select with the plan of this grid"
            )

    def _check_lists(self, name: str, lists: Tensor) -> None:
        tiles = self.layout.num_tiles
        if int(lists.max()) >= tiles or int(lists.min()) < -1:
            raise ValueError(
                f"{name} names tiles outside 0 to {tiles - 1}; build the plan with build_plan"
            )
        if bool(((lists[..., 1:] >= 0) & (lists[..., :-1] < 0)).any()):
            raise ValueError(
                f"{name} has -1 before the end of a list; -1 is allowed behind the last tile alone"
            )
        ordered = lists.sort(-1).values
        if bool(((ordered[..., 1:] == ordered[..., :-1]) & (ordered[..., 1:] >= 0)).any()):
            raise ValueError(
                f"{name} names a tile twice, which would count its keys twice; keep each once"
            )
        own = torch.arange(tiles, device=lists.device)[:, None]
        if not bool((lists == own).any(-1).all()):
            raise ValueError(
                f"{name} leaves a tile out of its own list; every query sees its own tile"
            )

    def check_selection(
        self, selection: Selection, batch: int, rows: tuple[Tensor, Tensor]
    ) -> Tensor:
        """The lists of the given MID rows (batch indices, head indices), validated: int64 (rows,
        tiles, kept)."""
        self._check_shape(selection, batch)
        lists = selection.tiles[rows].long()
        if len(lists):
            self._check_lists("selection.tiles", lists)
        return lists


_NUMBERS = itertools.count(2)  # compilers take 0 and 1 for constants
_NUMBERED: WeakValueDictionary[int, AttentionPlan] = WeakValueDictionary()


def check_known(plan: AttentionPlan) -> None:
    """Raise ValueError for a plan that `build_plan` didn't make, which `plan_numbered` would not
    find."""
    if _NUMBERED.get(plan.key[0]) is not plan:
        raise ValueError("plan is a changed copy of another one; make it with build_plan")


def plan_numbered(number: int) -> AttentionPlan:
    """The plan of that number, the first of `AttentionPlan.key`.

    Raises:
        ValueError: where it is gone, since nothing holds it any more.
    """
    plan = _NUMBERED.get(number)
    if plan is None:
        raise ValueError(
            f"number is {number}, and that plan is gone; keep a plan as long as the graph compiled "
            "with it"
        )
    return plan


def _checked(allocation: Sequence[int], num_heads: int) -> list[Band]:
    return [Band(band) for band in checked_bands(allocation, num_heads)]


@constant_result
def build_plan(
    grid: Grid,
    config: FreqFormerConfig,
    *,
    num_heads: int,
    head_dim: int,
    num_text_tokens: int = 0,
    learned_summaries: bool = False,
) -> AttentionPlan:
    """The plan of a grid and configuration, cached.

    Args:
        grid: the video's token grid.
        config: bands, patterns and summaries. The plan holds its `for_plan()`.
        num_heads, head_dim: of the attention.
        num_text_tokens: text tokens behind the video tokens.
        learned_summaries: whether mid and high summaries take part, as they do when parameters are
            given.

    Raises:
        ValueError: for a number of heads or tokens, or a head_dim, that is out of range.
    """
    check_grid(grid)
    check_kind("config", config, FreqFormerConfig, "FreqFormerConfig() is the default")
    check_choice("learned_summaries", learned_summaries, (True, False))
    for name, value, least in (
        ("num_heads", num_heads, 1),
        ("head_dim", head_dim, 1),
        ("num_text_tokens", num_text_tokens, 0),
    ):
        check_whole(name, value, least)
    # Layers that differ in what no plan depends on share one.
    made = config.for_plan()
    return _cached_plan(grid, made, num_heads, head_dim, num_text_tokens, learned_summaries)


@lru_cache(maxsize=64)
@torch.inference_mode(False)  # what it caches must also serve training
def _cached_plan(
    grid: Grid,
    config: FreqFormerConfig,
    num_heads: int,
    head_dim: int,
    num_text_tokens: int,
    learned_summaries: bool,
) -> AttentionPlan:
    layout = tile_layout(grid, config.tile)
    fixed = patterns.FIXED_PATTERNS.get(config.mid_pattern)
    mid_lists = None if fixed is None else fixed.lists(layout, config)
    if config.mid_tiles is None and mid_lists is not None:
        mid_lists = torch.arange(layout.num_tiles).expand(layout.num_tiles, -1)
    high_lists = patterns.window_tiles(layout, config.window)
    cells = patterns.summary_cells(layout, config.summary_tokens)
    weights = low_weights(layout, config)
    kept = layout.num_tiles if config.mid_tiles is None else min(config.mid_tiles, layout.num_tiles)
    longest = kept if mid_lists is None else mid_lists.shape[1]
    plan = AttentionPlan(
        layout=layout,
        config=config,
        num_heads=num_heads,
        head_dim=head_dim,
        num_text_tokens=num_text_tokens,
        learned_summaries=learned_summaries,
        mid_lists=mid_lists,
        high_lists=high_lists,
        cells=cells,
        low_weights=weights,
        key=(next(_NUMBERS), weights.shape[0], layout.num_tiles, longest, cells.num_cells),
    )
    _NUMBERED[plan.key[0]] = plan
    assert plan.num_low_tokens == torch.Size(low_grid(layout, config)).numel()
    plan.validate()
    return plan
