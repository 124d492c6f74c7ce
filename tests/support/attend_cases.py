"""Cases for the fused attention launch: buffers as the prologue leaves them, and what must come
out.

Keys and values that no head may read are NaN, so that a stray read shows in the result.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from tests.support.numerics import Pool, check_errors
from torch import Tensor
from torch.nn.functional import pad

from freqformer import buffers
from freqformer.buffers import buffer_width, selects_tiles
from freqformer.config import Band, FreqFormerConfig
from freqformer.grid import Grid
from freqformer.ops.block_sparse.records import (
    AttentionBuffers,
    AttentionOutputs,
    MidLists,
    RowBands,
)
from freqformer.ops.block_sparse.tables import LaunchTables, launch_tables, unseen_bias
from freqformer.patterns import topk_tiles
from freqformer.plan import AttentionPlan, build_plan


@dataclass(frozen=True)
class AttendCase:
    """Arguments of `attend`, and the plan they were made for."""

    plan: AttentionPlan
    tables: LaunchTables
    buffers: AttentionBuffers
    rows: RowBands
    mid: MidLists | None
    summary_offsets: Tensor | None
    text_mask: Tensor | None
    token_order: str

    @property
    def arguments(self) -> dict:
        names = ("buffers", "rows", "tables", "mid", "summary_offsets", "text_mask", "token_order")
        return {name: getattr(self, name) for name in names}


def make_case(
    grid: Grid,
    config: FreqFormerConfig,
    *,
    bands: Tensor,
    head_dim: int = 64,
    dtype: torch.dtype = torch.float32,
    text: int = 0,
    learned: bool = False,
    masked: bool = False,
    branch: bool = False,
    token_order: str = "raster",
    outliers: float = 1.0,
    device: str = "cpu",
    seed: int = 0,
) -> AttendCase:
    """A random case; `bands` (batch, heads) holds the band of every head, `outliers` scales one
    channel in 16, and with `branch` every row has low queries."""
    draw = torch.Generator(device).manual_seed(seed)
    batch, heads = bands.shape
    plan = build_plan(
        grid,
        config,
        num_heads=heads,
        head_dim=head_dim,
        num_text_tokens=text,
        learned_summaries=learned,
    )
    tables = launch_tables(plan, torch.device(device))
    rows, video = batch * heads, grid.num_tokens
    channel = torch.ones(head_dim, device=device)
    channel[::16] = outliers

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw, device=device)

    allocation = bands.flatten().to(device=device, dtype=torch.int32)
    low = plan.num_low_tokens
    query = random(rows, video + text + low, head_dim) * channel
    key, value = (
        torch.full((rows, tables.keys.rows, head_dim), torch.nan, device=device) for _ in range(2)
    )
    for row, band in enumerate(bands.flatten().tolist()):
        if band == Band.LOW:
            query[row, :video] = torch.nan
            query[row, : min(buffers.PAD, video)] = 0
        elif not branch:
            query[row, video + text :] = torch.nan
            query[row, video + text :][: buffers.PAD] = 0
        for x, scale in ((key, channel), (value, 1.0)):
            for start, length, read in _segments(tables, band, branch):
                if read:
                    x[row, start : start + length] = random(length, head_dim) * scale
                x[row, start + length : start + length + 128] = 0
    order = tables.band_blocks[allocation.long()].argsort(descending=True, stable=True).int()
    mid = None
    if selects_tiles(plan):
        mid = _topk(plan, random, rows, device)
    return AttendCase(
        plan=plan,
        tables=tables,
        buffers=AttentionBuffers(*(_padded(x).to(dtype) for x in (query, key, value))),
        rows=RowBands(allocation, order, bool((bands == Band.LOW).any()), branch),
        mid=mid,
        summary_offsets=random(batch, heads, 3) if learned else None,
        text_mask=random(batch, text) > 0 if masked else None,
        token_order=token_order,
    )


def _padded(x: Tensor) -> Tensor:
    """Rows as wide as those of the buffers, zeros after their channels."""
    return pad(x, (0, buffer_width(x.shape[-1]) - x.shape[-1]))


def _segments(tables: LaunchTables, band: int, branch: bool) -> list[tuple[int, int, bool]]:
    """(start, length, whether a row of `band` reads it) of every segment of the key buffer."""
    plan, keys = tables.plan, tables.keys
    video, cells, text = plan.layout.grid.num_tokens, plan.cells.num_cells, plan.num_text_tokens
    found = [
        (0, video, band != Band.LOW or text > 0),
        (keys.low, plan.num_low_tokens, branch or band == Band.LOW),
    ]
    for start, other in (
        (keys.low_summaries, 0),
        (keys.mid_summaries, 1),
        (keys.high_summaries, 2),
    ):
        read = band not in (other, Band.DENSE) or (branch and other != Band.LOW)
        found.append((start, cells, read))
    found.append((keys.text, text, True))
    if keys.exact:
        found.append((keys.exact, video, band in (Band.MID, Band.HIGH)))
    return [segment for segment in found if segment[0] >= 0]


def _topk(plan: AttentionPlan, random, rows: int, device: str) -> MidLists:
    tiles = plan.layout.num_tiles
    lists = topk_tiles(random(rows, tiles, 4), random(rows, tiles, 4), plan.mid_capacity).cpu()
    bias = (
        torch.stack([unseen_bias(row, plan) for row in lists]).float().to(device)
        if plan.cells.num_cells
        else None
    )
    return MidLists(lists.int().to(device), None, bias)


def expected(case: AttendCase, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    """out, low_out and lse by a full mask over the key buffer, in float64; NaN where nothing is to
    be written.

    With a 16-bit `dtype`: the same in float32 with weights and output rounded to it, as any kernel
    on matrix units must, so that its error is the yardstick.
    """
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    plan, given = case.plan, case.buffers
    rows, query_rows, _ = given.query.shape
    head_dim = plan.head_dim
    video, low = plan.layout.grid.num_tokens, plan.num_low_tokens
    tokens = query_rows - low
    batch = rows // plan.num_heads
    device = given.query.device
    out = torch.full((rows, tokens, head_dim), torch.nan, dtype=dtype, device=device)
    low_out = torch.full((rows, low, head_dim), torch.nan, dtype=dtype, device=device)
    lse = torch.full((rows, query_rows), torch.nan, dtype=wide, device=device)
    for row, band in enumerate(case.rows.allocation.tolist()):
        bias = _bias(case, row, band).to(wide)
        held = queries_of(case, band).to(device)
        seen = (bias[held] > -torch.inf).any(0)
        query, key, value = (
            x[row, places, :head_dim].to(wide)
            for x, places in ((given.query, held), (given.key, seen), (given.value, seen))
        )
        logits = query @ key.T * head_dim**-0.5 + bias[held][:, seen]
        lse[row, held] = logits.logsumexp(-1)
        weight = (logits - lse[row, held, None]).exp().nan_to_num(0.0).to(dtype).to(wide)
        result = torch.full((query_rows, head_dim), torch.nan, dtype=dtype, device=device)
        result[held] = (weight @ value).to(dtype)
        assert not result[held].isnan().any(), "a query of the case reads what no head may read"
        out[row], low_out[row] = result.split([tokens, low])
    if case.token_order == "raster":
        out[:, :video] = out[:, plan.layout.tile_to_raster.to(out.device)]
    return out.unflatten(0, (batch, -1)).transpose(1, 2).contiguous(), low_out, lse


def _bias(case: AttendCase, row: int, band: int) -> Tensor:
    """What is added to every (query, key) logit of a row, -inf for keys that the query doesn't see:
    float64."""
    plan, keys, device = case.plan, case.tables.keys, case.buffers.query.device
    video, cells, text = plan.layout.grid.num_tokens, plan.cells.num_cells, plan.num_text_tokens
    low = plan.num_low_tokens
    shape = (video + text + low, keys.rows)
    bias = torch.full(shape, -torch.inf, dtype=torch.float64, device=device)
    offsets = (
        [0.0] * 3
        if case.summary_offsets is None
        else case.summary_offsets.flatten(0, 1)[row].double().tolist()
    )
    bias[video + text :, keys.low : keys.low + low] = plan.low_weights.log().to(device)
    if band != Band.LOW:
        owner = torch.arange(plan.layout.num_tiles).repeat_interleave(plan.layout.counts).to(device)
        seen = _seen(case, row, band)
        bias[:video, :video].masked_fill_(seen.to(device)[owner][:, owner], 0.0)
        if band != Band.DENSE and cells:
            cell = torch.nn.functional.one_hot(plan.cells.cell_of_tile, cells).double()
            left = plan.cells.counts - (seen.double() * plan.layout.counts) @ cell
            bias[:video, keys.low_summaries : keys.low_summaries + cells] = (
                left.log().to(device)[owner] + offsets[0]
            )
    for start, other in ((keys.mid_summaries, 1), (keys.high_summaries, 2)):
        if start >= 0 and band not in (other, Band.DENSE):
            bias[:video, start : start + cells] = offsets[other]
        if start >= 0:
            bias[video + text :, start : start + cells] = offsets[other]
    if text:
        exact = keys.exact if band in (Band.MID, Band.HIGH) else 0
        bias[video : video + text, exact : exact + video] = 0.0
        bias[:, keys.text : keys.text + text] = 0.0
        if case.text_mask is not None:
            hidden = ~case.text_mask[row // plan.num_heads]
            bias[:, keys.text : keys.text + text].masked_fill_(hidden, -torch.inf)
    return bias


def queries_of(case: AttendCase, band: int) -> Tensor:
    """Places of the queries that a row of `band` has, int64."""
    video, text = case.plan.layout.grid.num_tokens, case.plan.num_text_tokens
    places = torch.arange(case.buffers.query.shape[1])
    is_video, is_low = places < video, places >= video + text
    has_low = case.rows.low_branch or band == Band.LOW
    return places[~(is_video & (band == Band.LOW)) & (~is_low | has_low)]


def _seen(case: AttendCase, row: int, band: int) -> Tensor:
    """Which key tiles every query tile of a row sees, bool (T, T), on the CPU."""
    plan, tiles = case.plan, case.plan.layout.num_tiles
    lists = {Band.MID: plan.mid_lists, Band.HIGH: plan.high_lists}.get(Band(band))
    if band == Band.MID and case.mid is not None:
        lists = case.mid.lists[row].long().cpu()
        if case.mid.lengths is not None:
            lengths = case.mid.lengths[row].cpu()
            lists = lists.masked_fill(torch.arange(lists.shape[1]) >= lengths[:, None], -1)
    if lists is None:
        return torch.ones(tiles, tiles, dtype=torch.bool)
    seen = torch.zeros(tiles, tiles + 1, dtype=torch.bool)
    seen[torch.arange(tiles)[:, None], lists] = True  # -1 falls into the spare last column
    return seen[:, :-1]


SMALL = (
    (1, 1, 1),
    (1, 5, 7),
    (2, 3, 5),
    (7, 1, 1),
    (1, 11, 13),
    (4, 4, 16),
    (3, 7, 11),
    (4, 8, 8),
    (2, 8, 16),
    (2, 5, 13),
)
"""Grids of one to four tiles: single frames, primes, fewer tokens than a tile, ragged and full
tiles."""
LARGE = (
    (3, 31, 37),
    (5, 17, 11),
    (8, 32, 32),
    (13, 24, 20),
    (11, 13, 17),
    (9, 8, 16),
    (21, 1, 40),
    (4, 33, 40),
    (8, 16, 16),
)


def random_case(
    seed: int,
    *,
    form: int | None = None,
    grids: Sequence[tuple[int, int, int]] = SMALL,
    head_dims: Sequence[int] = (16,),
    device: str = "cpu",
) -> tuple[AttendCase, dict[str, Any]]:
    """A case drawn from `seed`, and what it is made of: every pattern, band, dtype, kind of text
    and order comes up.

    What a kernel is compiled for is drawn from `form`, so that many cases can share it; None takes
    the seed.
    """
    draw, shape = random.Random(seed), random.Random(seed if form is None else form)
    batch, heads = draw.choice(((1, 3), (1, 4), (2, 2)))
    one = draw.choice((None, None, None, *Band))
    bands = [
        [int(draw.choice(list(Band)) if one is None else one) for _ in range(heads)]
        for _ in range(batch)
    ]
    text = shape.choice((0, 0, 0, 1, 5, 70))
    config = FreqFormerConfig(
        tile=shape.choice((None, None, (4, 4, 8), (2, 4, 8), (3, 5, 7))),
        compression=shape.choice((2, 8, 32, 128)),
        band_features=shape.choice(("full", "full", "high_pass_values")),
        mid_pattern=shape.choice(("topk", "topk", "topk", "axial", "radial")),
        mid_tiles=None if shape.random() < 0.2 else draw.choice((1, 2, 3)),
        radial_radius=draw.choice((0, 1)),
        window=draw.choice(((1, 1, 1), (1, 2, 2), (3, 3, 3))),
        summary_tokens=shape.choice((0, 1, 3, 256)),
    )
    made: dict[str, Any] = {
        "bands": torch.tensor(bands),
        "head_dim": shape.choice(head_dims),
        "dtype": shape.choice((torch.float32, torch.bfloat16, torch.float16)),
        "text": text,
        "learned": shape.random() < 0.5,
        "masked": text > 0 and shape.random() < 0.5,
        "branch": shape.random() < 0.4,
        "token_order": shape.choice(("raster", "tile")),
        "outliers": draw.choice((1.0, 1.0, 30.0)),
        "seed": seed,
    }
    grid = Grid(*shape.choice(grids))
    case = make_case(grid, config, device=device, **made)
    if case.text_mask is not None and draw.random() < 0.3:
        case = replace(case, text_mask=torch.zeros_like(case.text_mask))
    return case, {"grid": grid, "config": config, **made}


def check_case(
    case: AttendCase,
    got: AttentionOutputs,
    told: dict[str, Any],
    pool: Pool | None = None,
) -> None:
    """Raise AssertionError unless `got` is written where it must be, and as near float64 as a peer
    in the same dtype."""
    exact, peer = expected(case), expected(case, case.buffers.query.dtype)
    actual, beside, wanted = {}, {}, {}
    for name, mine, theirs, right in zip(
        ("out", "low_out", "lse"), got[:3], peer, exact, strict=True
    ):
        empty = right == -torch.inf
        assert torch.equal(mine[empty], theirs[empty]), (
            f"{name} where nothing is seen; case: {told}"
        )
        written = ~right.isnan() & ~empty
        if name != "lse":
            written = written[..., 0]
        actual[name], beside[name], wanted[name] = mine[written], theirs[written], right[written]
    check_errors(actual, beside, wanted, outliers=told.get("outliers", 1.0) > 1, case=told)
    if pool is not None:
        # The log-sum-exp is float32 whatever the dtype, and off by a rounding or two: nothing to
        # pool.
        pool.add(
            *(
                {name: x for name, x in result.items() if name != "lse"}
                for result in (actual, beside, wanted)
            )
        )
