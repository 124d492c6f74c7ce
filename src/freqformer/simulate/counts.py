"""Exact counts of one attention layer: FLOPs and bytes of every stage, from the plan alone.

A multiply-add counts as two FLOPs. Useful counts are of tokens that exist; executed counts are of
what kernels compute, tokens rounded up to blocks of 128. Derivation: docs/complexity.md.

Shape legend: N video tokens, X text tokens in the sequence, M low tokens, T tiles, C summary cells,
H heads, D head_dim, e bytes of an element.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import nn

from freqformer.bands import low_grid, low_samples
from freqformer.buffers import STATISTIC_BYTES, selects_tiles, text_parts, workspace_bytes
from freqformer.config import Band
from freqformer.grid import TILE_SLOTS
from freqformer.plan import AttentionPlan, Flops
from freqformer.routing import RoutingNetwork
from freqformer.routing.statistics import tile_sample
from freqformer.simulate.allocations import RouterInputs

BACKWARD_FACTOR = 2.5
"""Backward over forward of softmax attention: five matrix products (the scores again, dV, dP, dQ,
dK) against two."""
NORM_FLOPS, ROTARY_FLOPS = 4, 3
"""Per channel: square, add, two products; and two products and a sum of a pair's half."""
ROUTER_SUMS = 9
"""Energies of three bands for queries and keys, and what roughness is made of: per sampled tile and
head."""
BESIDE = "low beside, "
"""What names of stages of a LOW branch beside every head's own begin with, see
`with_low_beside`."""


@dataclass(frozen=True)
class StageCounts:
    """One stage of the layer: all heads, one sample."""

    flops: float
    """Useful."""
    executed: float
    read_bytes: float
    """Every input once."""
    write_bytes: float
    launches: int

    @property
    def bytes(self) -> float:
        """Inputs read once and outputs written once."""
        return self.read_bytes + self.write_bytes


@dataclass(frozen=True)
class LayerCounts:
    """Everything that one attention layer does, from projected queries, keys and values to its
    output."""

    stages: dict[str, StageCounts]
    """prologue, summaries, selection, attention and merge; router where it runs live; those that
    `with_low_beside` adds."""
    band_flops: dict[str, Flops]
    """Attention FLOPs of the heads in each band, by the band's name; without a LOW branch beside
    them."""
    kv_bytes: int
    """Keys and values that blocks of queries read, without reuse between them."""
    summary_bytes: float
    """Keys and values of summary tokens: what bands tell one another."""
    workspace_bytes: int
    """Buffers beside q, k, v and out."""
    beside_backward_flops: float = 0.0
    """Of the backward, what a LOW branch beside every head's own adds."""

    @property
    def flops(self) -> float:
        """Useful, all stages."""
        return sum(stage.flops for stage in self.stages.values())

    @property
    def bytes(self) -> float:
        """All stages, every tensor once."""
        return sum(stage.bytes for stage in self.stages.values())

    @property
    def attention(self) -> Flops:
        """Of all attention, that of a LOW branch beside the own bands too."""
        launches = [
            self.stages[name] for name in ("attention", BESIDE + "attention") if name in self.stages
        ]
        return Flops(
            sum(launch.flops for launch in launches),
            sum(int(launch.executed) for launch in launches),
        )

    @property
    def backward_flops(self) -> float:
        """Useful FLOPs of the backward pass: attention's five products, and the transposes of the
        linear stages."""
        linear = sum(
            self.stages[name].flops
            for name in ("prologue", "summaries", "merge")
            if name in self.stages
        )
        return (
            BACKWARD_FACTOR * self.stages["attention"].flops + linear + self.beside_backward_flops
        )


def layer_counts(
    plan: AttentionPlan,
    allocation: Sequence[int],
    *,
    element_size: int = 2,
    router: RouterInputs | None = None,
) -> LayerCounts:
    """Count one FreqFormer attention layer.

    Args:
        plan: of the grid, configuration and text.
        allocation: the band of every head, or of those heads that one of several machines has.
        element_size: bytes of an element of q, k and v.
        router: what the routing network that runs in the layer reads; None where none runs.

    Raises:
        ValueError: for an allocation of no heads, of more than the plan's, or out of range.
    """
    bands = [int(band) for band in allocation]
    if not 1 <= len(bands) <= plan.num_heads or not all(0 <= band <= Band.DENSE for band in bands):
        raise ValueError(
            f"allocation is {bands}; 1 to {plan.num_heads} bands from 0 to 3 are allowed, one per "
            "head (LOW to DENSE)"
        )
    heads = Counter(Band(band) for band in bands)
    costs = {band: band_counts(plan, band) for band in heads}
    total = Flops(
        sum(costs[band].flops.useful * count for band, count in heads.items()),
        sum(costs[band].flops.executed * count for band, count in heads.items()),
    )
    stages = {
        "prologue": _prologue(plan, heads, element_size),
        "summaries": _summaries(plan, heads, element_size),
        "selection": _selection(plan, heads),
        "attention": _attention(plan, heads, total, element_size),
        "merge": _merge(plan, heads, element_size),
    }
    if router is not None:
        stages["router"] = _router(plan, len(bands), element_size, router)
    return LayerCounts(
        stages=stages,
        band_flops={
            band.name.lower(): Flops(
                costs[band].flops.useful * count, costs[band].flops.executed * count
            )
            for band, count in sorted(heads.items())
        },
        kv_bytes=sum(costs[band].kv_slots * count for band, count in heads.items())
        * _pair(plan, element_size),
        summary_bytes=sum(count * summary_keys(plan, band) for band, count in heads.items())
        * _pair(plan, element_size),
        workspace_bytes=workspace_bytes(plan, len(bands), element_size),
    )


@dataclass(frozen=True)
class BandCounts:
    """Attention of one head in a band."""

    flops: Flops
    key_blocks: tuple[tuple[int, int], ...]
    """(blocks of 128 keys that a query block reads, query blocks): distinct lengths, text queries'
    too."""
    kv_slots: int
    """Slots of keys that all query blocks read together."""


@lru_cache(maxsize=256)
def band_counts(plan: AttentionPlan, band: Band) -> BandCounts:
    """Count the attention of one head of a plan in `band`, cached."""
    lengths, times = plan.key_blocks(band).unique(return_counts=True)
    blocks = tuple(zip(lengths.tolist(), times.tolist(), strict=True))
    slots = TILE_SLOTS * sum(length * count for length, count in blocks)
    return BandCounts(plan.band_flops(band), blocks, slots)


def dense_counts(
    num_tokens: int, heads: int, head_dim: int, *, element_size: int = 2
) -> LayerCounts:
    """Count dense attention over the same tokens, text included: 4 N² D FLOPs a head, one launch.

    Args:
        num_tokens: video and text tokens.
        heads, head_dim: of the attention.
        element_size: bytes of an element.
    """
    blocks = -(-num_tokens // TILE_SLOTS)
    useful = 4.0 * num_tokens**2 * head_dim * heads
    executed = 4 * blocks**2 * TILE_SLOTS**2 * head_dim * heads
    tensor = float(num_tokens * heads * head_dim * element_size)
    return LayerCounts(
        stages={"attention": StageCounts(useful, executed, 3 * tensor, tensor, 1)},
        band_flops={"dense": Flops(useful, executed)},
        kv_bytes=2 * blocks**2 * TILE_SLOTS * heads * head_dim * element_size,
        summary_bytes=0,
        workspace_bytes=0,
    )


def summary_keys(plan: AttentionPlan, band: Band) -> int:
    """Summary tokens that a head in `band` sees."""
    return sum(plan.extra_segments(band)[1:4])


def _pair(plan: AttentionPlan, element_size: int) -> int:
    """Bytes of one key and its value."""
    return 2 * plan.head_dim * element_size


def _video(plan: AttentionPlan) -> int:
    return plan.layout.grid.num_tokens


def _exact_heads(heads: Counter[Band]) -> int:
    return sum(count for band, count in heads.items() if band != Band.LOW)


def _prologue(plan: AttentionPlan, heads: Counter[Band], element_size: int) -> StageCounts:
    """Norm, rotary embedding, tile order, low tokens, sums over tiles."""
    total, text, exact, low = (
        sum(heads.values()),
        plan.num_text_tokens,
        _exact_heads(heads),
        heads[Band.LOW],
    )
    video, channels, scored = (
        _video(plan),
        plan.head_dim * _video(plan),
        heads[Band.MID] if selects_tiles(plan) else 0,
    )
    tables = (
        STATISTIC_BYTES * channels
    )  # cosines and sines of half the channels each, shared by all heads
    read = 3 * total * (video + text) * plan.head_dim * element_size + tables
    # With text, LOW heads write exact keys and values too: text queries see them.
    rows = (
        3 * exact * video
        + low * (3 * plan.num_low_tokens + (2 * video if text else 0))
        + 3 * total * text
    )
    write = rows * plan.head_dim * element_size + sums_bytes(plan, heads)
    flops = (
        total * 2 * channels * (NORM_FLOPS + ROTARY_FLOPS)
        + low * 3 * compress_flops(plan)
        + scored * 2 * channels
    )
    return StageCounts(flops, flops, float(read), float(write), 1)


def sums_bytes(plan: AttentionPlan, heads: Counter[Band]) -> int:
    """Bytes of the tile sums of queries, keys and values that MID and HIGH heads keep for selection
    and low summaries."""
    summed = (
        heads[Band.MID] + heads[Band.HIGH] if selects_tiles(plan) or plan.cells.num_cells else 0
    )
    return 3 * summed * _sum_bytes(plan)


def _sum_bytes(plan: AttentionPlan) -> int:
    """Bytes of one head's sums over tiles of one tensor."""
    return plan.layout.num_tiles * plan.head_dim * STATISTIC_BYTES


def _summaries(plan: AttentionPlan, heads: Counter[Band], element_size: int) -> StageCounts:
    """Summary tokens: means of cells, and learned poolings of band-passed keys and values."""
    exact, pooled = heads[Band.MID] + heads[Band.HIGH], 0
    write = sum(count * summary_keys(plan, band) for band, count in heads.items()) * _pair(
        plan, element_size
    )
    if plan.cells.num_cells == 0:
        return StageCounts(0.0, 0.0, 0.0, 0.0, 1)  # the launch still clears the buffers' padding
    channels = plan.head_dim * _video(plan)
    read, flops = 2.0 * exact * _sum_bytes(plan), 2.0 * channels * exact
    if plan.learned_summaries:
        for band, seen in ((Band.LOW, 2), (Band.MID, 1), (Band.HIGH, 1)):
            # Keys and values: one transform, one inverse per band seen; scores, weighting and sums:
            # 6 a channel.
            flops += heads[band] * (2 * (1 + seen) * dct_flops(plan) + seen * 6 * channels)
            pooled += heads[band] * seen
            read += heads[band] * _video(plan) * _pair(plan, element_size)
    # Kernels multiply each tile's keys by the band's projector instead of transforming them.
    executed = 2.0 * pooled * plan.layout.num_tiles * TILE_SLOTS**2 * plan.head_dim
    return StageCounts(flops, executed, read, float(write), 1)


def _selection(plan: AttentionPlan, heads: Counter[Band]) -> StageCounts:
    """Scores of all tile pairs, and the lists."""
    rows = heads[Band.MID] if selects_tiles(plan) else 0
    tiles, cells = plan.layout.num_tiles, plan.cells.num_cells
    flops = 2.0 * rows * tiles**2 * plan.head_dim
    read = 2 * rows * _sum_bytes(plan)
    write = rows * tiles * (plan.mid_capacity + cells) * STATISTIC_BYTES
    return StageCounts(flops, flops, float(read), float(write), int(rows > 0))


def _attention(
    plan: AttentionPlan, heads: Counter[Band], total: Flops, element_size: int
) -> StageCounts:
    """The one launch: queries, keys, values and lists once, outputs and log-sum-exps once."""
    queries, keys = attention_tensors(plan, heads)
    read = float(queries * plan.head_dim * element_size + keys * _pair(plan, element_size))
    write = float(queries * (plan.head_dim * element_size + STATISTIC_BYTES))
    if selects_tiles(plan):
        read += (
            heads[Band.MID]
            * plan.layout.num_tiles
            * (plan.mid_capacity + plan.cells.num_cells)
            * STATISTIC_BYTES
        )
    # Text queries that see many tiles are split over keys, and joined by a second small launch.
    joined = plan.num_text_tokens > 0 and text_parts(plan.layout.num_tiles) > 1
    return StageCounts(total.useful, total.executed, read, write, 1 + joined)


def attention_tensors(plan: AttentionPlan, heads: Counter[Band]) -> tuple[int, int]:
    """Queries, and keys, of all heads together."""
    queries = keys = 0
    text, video = plan.num_text_tokens, _video(plan)
    for band, count in heads.items():
        queries += count * ((plan.num_low_tokens if band == Band.LOW else video) + text)
        keys += count * (
            (0 if band == Band.LOW and not text else video) + sum(plan.extra_segments(band))
        )
    return queries, keys


def _merge(plan: AttentionPlan, heads: Counter[Band], element_size: int) -> StageCounts:
    """Outputs of LOW heads back to all tokens."""
    low = heads[Band.LOW]
    frames, rows, _ = plan.layout.grid.shape
    _, low_rows, low_columns = low_grid(plan.layout, plan.config)
    # Separable linear interpolation, time first: two products an output of each axis.
    outputs = frames * low_rows * low_columns + frames * rows * low_columns + _video(plan)
    flops = 4.0 * low * outputs * plan.head_dim
    if plan.config.low_output == "inverse_dct":
        flops = float(low * compress_flops(plan))
    read = low * plan.num_low_tokens * plan.head_dim * element_size
    write = low * _video(plan) * plan.head_dim * element_size
    return StageCounts(flops, flops, float(read), float(write), int(low > 0))


def _router(
    plan: AttentionPlan, heads: int, element_size: int, inputs: RouterInputs
) -> StageCounts:
    """Power of the DCT coefficients of sampled tiles of queries, keys and as many channels of the
    input; the network."""
    by_statistics = inputs == "statistics"
    with torch.device("meta"):
        network = RoutingNetwork(plan.num_heads, statistics=by_statistics)
    weights = sum(layer.weight.numel() for layer in network.layers if isinstance(layer, nn.Linear))
    products, scores = 2.0 * weights * heads, heads * 5.0 * STATISTIC_BYTES
    if not by_statistics:
        # One launch that reads no token.
        return StageCounts(products, products, float(weights * STATISTIC_BYTES), scores, 1)
    sample = tile_sample(plan.layout.grid, plan.config)
    tokens = (sample.raster >= 0).sum(1)
    count, slots = len(tokens), 1 << (sample.raster.shape[1] - 1).bit_length()
    sampled, transformed = int(tokens.sum()), int(tokens.square().sum())
    # Of three tensors transform and squares; the norm of queries and keys.
    flops = products + heads * plan.head_dim * (6 * transformed + (6 + 2 * NORM_FLOPS) * sampled)
    executed = float(heads * 6 * count * slots**2 * plan.head_dim)
    sums = float(heads * count * ROUTER_SUMS * STATISTIC_BYTES)
    read = 3.0 * heads * sampled * plan.head_dim * element_size + sums
    return StageCounts(float(flops), executed, read, sums + scores, 2)


def dct_flops(plan: AttentionPlan) -> float:
    """FLOPs of the separable block DCT of one head's tokens."""
    layout = plan.layout
    squares = [sum(n * n for n in layout.extents(axis)) for axis in range(3)]
    pairs = sum(
        _video(plan) * square / extent
        for square, extent in zip(squares, layout.grid.shape, strict=True)
    )
    return 2.0 * pairs * plan.head_dim


def compress_flops(plan: AttentionPlan) -> float:
    """FLOPs of the low tokens of one head's tokens, width first, then height, then time."""
    layout = plan.layout
    frames, rows, _ = layout.grid.shape
    _, low_rows, low_columns = low_grid(layout, plan.config)
    # Along each axis, low samples times tokens, summed over the tiles: the sizes of the operation's
    # own matrices.
    pairs = [
        sum(
            low * n
            for low, n in zip(
                low_samples(layout, plan.config, axis), layout.extents(axis), strict=True
            )
        )
        for axis in range(3)
    ]
    products = (
        frames * rows * pairs[2]
        + frames * low_columns * pairs[1]
        + low_rows * low_columns * pairs[0]
    )
    return 2.0 * products * plan.head_dim
