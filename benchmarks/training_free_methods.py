"""What the training-free comparison compares: tables of single patterns, and a threshold that no
table can say.

Shape legend: B clips, N tokens, H heads, D head_dim, T tiles.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from math import log
from typing import Any

import torch
from torch import Tensor

from freqformer.attention import frequency_attention
from freqformer.calibration import Calibration
from freqformer.calibration.measure import Attended, LayerWatch
from freqformer.calibration.pipelines.choice import (
    BUCKETS,
    PipelineCalibration,
    bucket_rows,
    evened,
)
from freqformer.config import Band, FreqFormerConfig
from freqformer.grid import Grid, tile_layout
from freqformer.models.transformer import FreqFormerTransformer3DModel
from freqformer.ops.tokens import reorder, rms_norm, rotate
from freqformer.plan import Selection, build_plan
from freqformer.routing import RoutingTable
from freqformer.training_free.preset import preset_configs, preset_range
from freqformer.training_free.schedule import falling_densities

SLACK = 0.1
"""How far a pattern may be from the budget, relatively, for its shape to decide."""
CUBES = FreqFormerConfig(tile=(4, 4, 4), compression=16, mid_tiles=16, summary_tokens=256)
"""What most patterns share."""
PLAIN = replace(CUBES, summary_tokens=0)
NUM_BUCKETS = 10
HALVINGS = 12
"""Of the interval in which a threshold is looked for."""


@dataclass(frozen=True)
class Method:
    """How a model runs, its attention FLOPs in a banded step relative to dense, and what it is."""

    on: Callable[[FreqFormerTransformer3DModel], AbstractContextManager[Any]]
    density: float
    about: str
    table: RoutingTable | None = None
    """None where no table can say it."""


def by_table(table: RoutingTable, density: float, about: str) -> Method:
    """The method of a table."""
    return Method(partial(_tabled, table=table), density, about, table)


@contextmanager
def _tabled(model: FreqFormerTransformer3DModel, table: RoutingTable) -> Iterator[None]:
    model.set_routing_table(table)
    try:
        yield
    finally:
        model.set_routing_table(None)


def guarded(table: RoutingTable, start: float) -> RoutingTable:
    """The same table, its noisiest share of the buckets DENSE.

    Args:
        table: with one bucket, or `NUM_BUCKETS`.
        start: share.
    """
    bands = table.bands.expand(NUM_BUCKETS, -1, -1).clone()
    first = round(NUM_BUCKETS * (1 - start))
    bands[first:] = Band.DENSE
    return replace(table, bands=bands, mid_tiles=table.mid_tiles.expand_as(bands).clone())


def preset_table(
    density: float,
    grid: Grid,
    shape: tuple[int, int, int],
    levels: list[float],
    knee: float | None,
) -> tuple[RoutingTable, float]:
    """What the plug-in's preset does at this density as a table, and the density that it delivers.

    Args:
        density: share of dense, the mean over the banded steps.
        grid: of the tokens.
        shape: layers, heads and head_dim.
        levels: noise levels of the banded steps, falling; what is noisier stays dense.
        knee: of a falling density, see `falling_densities`; None for the same in all steps.
    """
    layers, heads, head_dim = shape
    densities = (density,) * len(levels)
    if knee is not None:
        least, most = preset_range(grid, 0)
        densities = falling_densities((*levels, 0.0), density, least, most, knee=knee)
    by_step = [preset_configs(grid, 0, one, layers) for one in densities]
    kept = [config for configs in by_step for config in configs if config is not None]
    if not kept:
        raise ValueError(f"density is {density}, at which the preset is dense; take a smaller one")
    bands = torch.full((len(levels), layers, heads), Band.DENSE.value)
    mid_tiles = torch.ones_like(bands)
    shares = []
    for step, configs in enumerate(by_step):
        for layer, config in enumerate(configs):
            if config is not None:
                bands[step, layer] = Band.MID.value
                mid_tiles[step, layer] = config.mid_tiles or 0
            plan = build_plan(grid, config or kept[0], num_heads=1, head_dim=head_dim)
            shares.append(1.0 if config is None else plan.density([Band.MID.value]))
    rows = bucket_rows(levels)
    by_bucket = bands[rows]
    noisier = torch.arange(BUCKETS, dtype=torch.float64) / BUCKETS > levels[0]
    by_bucket[noisier] = Band.DENSE.value
    return RoutingTable(by_bucket, mid_tiles[rows], kept[0]), sum(shares) / len(shares)


def by_expected_error(calibration: PipelineCalibration, density: float, power: float) -> Method:
    """The choice of a pipeline's calibration that was not tried.

    Args:
        calibration: of a pipeline.
        density: share of dense.
        power: to which what every step weighs is raised; 1 changes nothing.
    """
    weighed = replace(calibration, calibration=evened(calibration.calibration, power))
    choice = weighed.choose(density)
    (table,) = choice.tables.values()
    about = "calibrate_pipeline without trials"
    if power == 1:
        about += f", expected error of the latents {choice.expected_error:.4f}"
    else:
        about += f", weights of steps to the {power}"
    return by_table(table, choice.density, about)


def within_tolerance(calibration: Calibration, density: float, start: float) -> Method:
    """The cheapest heads within the least tolerance that keeps the banded buckets to a density.

    Args:
        calibration: on clips, of `NUM_BUCKETS`.
        density: share of dense, the mean over the banded buckets.
        start: share of the noisiest buckets that stays dense.
    """
    first = round(NUM_BUCKETS * (1 - start))
    banded = replace(calibration, errors=calibration.errors[:first])
    tolerance = banded.tolerance_for(density)
    choice = banded.choose(tolerance)
    rows = torch.arange(NUM_BUCKETS).clamp_max(first - 1)
    bands, mid_tiles = choice.table.bands[rows], choice.table.mid_tiles[rows]
    table = guarded(replace(choice.table, bands=bands, mid_tiles=mid_tiles), start)
    return by_table(
        table, choice.cost, f"calibrate on clips, within a tolerance of {tolerance:.4f}"
    )


def single_patterns(budget: float, grid: Grid, shape: tuple[int, int, int]) -> dict[str, Method]:
    """Every head alike, by one pattern at about this share of dense attention's FLOPs.

    Args:
        budget: share of dense.
        grid: of the tokens.
        shape: layers, heads and head_dim.
    """
    tiles = tile_layout(grid, CUBES.tile).tiles
    wide = replace(PLAIN, tile=tile_layout(grid).tile)
    windows = list(product(*(range(1, extent + 1) for extent in tiles)))
    counts = _counts(budget, tile_layout(grid, CUBES.tile).num_tiles)
    wide_counts = _counts(budget, tile_layout(grid).num_tiles)
    kinds: dict[str, tuple[str, Band, list[FreqFormerConfig]]] = {
        "window": ("window", Band.HIGH, [replace(PLAIN, window=window) for window in windows]),
        "window_summaries": (
            "window and low summaries",
            Band.HIGH,
            [replace(CUBES, window=window) for window in windows],
        ),
        "radial": (
            "radial",
            Band.MID,
            [replace(PLAIN, mid_pattern="radial", radial_radius=r) for r in range(max(tiles))],
        ),
        "topk": (
            f"top-k tiles {wide.tile} by tile means",
            Band.MID,
            [replace(wide, mid_tiles=count) for count in wide_counts],
        ),
        "vsa_selection": (
            f"top-k cubes {PLAIN.tile} by tile means, as Video Sparse Attention selects",
            Band.MID,
            [replace(PLAIN, mid_tiles=count) for count in counts],
        ),
        "wide_summaries": (
            f"top-k tiles {wide.tile} and low summaries",
            Band.MID,
            [
                replace(wide, summary_tokens=CUBES.summary_tokens, mid_tiles=count)
                for count in wide_counts
            ],
        ),
    }
    layers, heads, head_dim = shape
    methods = {}
    for name, (about, band, configs) in kinds.items():

        def density(config: FreqFormerConfig, band: Band = band) -> float:
            return build_plan(grid, config, num_heads=heads, head_dim=head_dim).density(
                [band.value] * heads
            )

        best = nearest(configs, density, budget)
        bands = torch.full((1, layers, heads), band.value)
        pinned = replace(best, tile=tile_layout(grid, best.tile).tile)
        table = RoutingTable(bands, torch.full_like(bands, best.mid_tiles or 0), pinned)
        settings = {"window": best.window, "radial": best.radial_radius}.get(
            name.partition("_")[0], best.mid_tiles
        )
        methods[name] = by_table(table, density(best), f"{about}: {settings}")
    return methods


def _counts(budget: float, tiles: int) -> range:
    """Numbers of tiles whose share of all may be about the budget."""
    return range(max(1, int(budget * tiles / 2)), min(tiles, int(1.2 * budget * tiles) + 2) + 1)


def nearest(
    configs: list[FreqFormerConfig], density: Callable[[FreqFormerConfig], float], budget: float
) -> FreqFormerConfig:
    """The config whose density is nearest to the budget; of several within SLACK of it the window
    nearest a cube."""

    def rank(config: FreqFormerConfig) -> tuple[float, float, float]:
        off = abs(log(density(config) / budget))
        uneven = max(config.window) / min(config.window)
        return (off, 0.0, 0.0) if off > log(1 + SLACK) else (log(1 + SLACK), uneven, off)

    return min(configs, key=rank)


class Threshold:
    """Tiles whose summed weight reaches a threshold, as many as each query tile needs; what is
    skipped counts by its tiles' means (low summaries).

    Weights are those of tile means in a softmax. Published methods of this kind choose by the
    weight within the kernel; this is what can be known before it.

    Args:
        levels: (query, key means) of every layer at several noise levels, each (B, H, T, D).
        grid: of the tokens.
        density: that the mean over them is to have.
        start: share of the noisiest levels that stays dense.
    """

    def __init__(
        self, levels: list[tuple[Tensor, Tensor]], grid: Grid, density: float, start: float
    ) -> None:
        self.grid = grid
        self.start = start
        tiles = tile_layout(grid, CUBES.tile).num_tiles
        costs = [
            build_plan(grid, replace(CUBES, mid_tiles=count), num_heads=1, head_dim=1).density(
                [Band.MID.value]
            )
            for count in (1, 2)
        ]
        wanted = 1 + (density - costs[0]) / (costs[1] - costs[0])
        low, high = 0.0, 1.0
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            kept = [float(chosen(*means, middle)[1].double().mean()) for means in levels]
            if sum(kept) / len(kept) <= wanted:
                low = middle
            else:
                high = middle
        self.threshold = low
        kept = [float(chosen(*means, low)[1].double().mean()) for means in levels]
        mean = min(sum(kept) / len(kept), tiles)
        self.density = costs[0] + (mean - 1) * (costs[1] - costs[0])

    @contextmanager
    def on(self, model: FreqFormerTransformer3DModel) -> Iterator[None]:
        """The model's heads see these tiles inside the block."""
        with ExitStack() as hooks:
            for layer in model.attentions:
                for handle in LayerWatch(layer, self._attend).hooks():
                    hooks.callback(handle.remove)
            yield

    def _attend(self, attended: Attended) -> Tensor | None:
        if self.start > 0 and float(attended.timestep.max()) >= 1 - self.start:
            return None
        query, key = tile_means(attended)
        tiles, _ = chosen(query, key, self.threshold)
        return frequency_attention(
            *attended.qkv,
            grid=attended.grid,
            allocation=[Band.MID.value] * query.shape[1],
            config=replace(CUBES, mid_tiles=tiles.shape[-1]),
            parameters=attended.parameters,
            token_order=attended.token_order,
            selection=Selection(tiles),
        )


def tile_means(attended: Attended) -> tuple[Tensor, Tensor]:
    """Means of normalised and rotated queries and keys over tiles that all hold as many tokens:
    each float32 (B, H, T, D)."""
    layout = tile_layout(attended.grid, CUBES.tile)
    norms = (attended.parameters.query_norm, attended.parameters.key_norm)
    means = []
    for x, norm in zip(attended.qkv[:2], norms, strict=True):
        x = rms_norm(x, norm, attended.parameters.norm_eps).transpose(1, 2)
        rotation = attended.parameters.rotation
        if rotation is not None:
            # Tables (1, N, 1, P) for x (B, H, N, D).
            tables = (rotation.cos.transpose(1, 2), rotation.sin.transpose(1, 2))
            x = rotate(x, tables, rotation.pairs)
        x = reorder(x.transpose(1, 2), layout, attended.token_order, "tile").float()
        means.append(x.unflatten(1, (layout.num_tiles, -1)).mean(2).transpose(1, 2))
    query, key = means
    return query, key


def chosen(query: Tensor, key: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
    """Tiles in order of weight until their sum reaches the threshold, the own one first.

    Args:
        query, key: tile means (B, H, T, D).
        threshold: of the sum, 0 to 1.

    Returns: int64 (B, H, T, most) ascending, -1 behind the end, and how many, (B, H, T).
    """
    weights = (query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5).softmax(-1)
    rank = weights.clone()
    rank.diagonal(dim1=-2, dim2=-1).fill_(torch.inf)
    order = rank.argsort(-1, descending=True)
    sums = weights.gather(-1, order).cumsum(-1)
    before = sums - weights.gather(-1, order)
    kept = before < threshold
    kept[..., 0] = True
    count = kept.sum(-1)
    none = weights.shape[-1]
    tiles = torch.where(kept, order, none)[..., : int(count.max())].sort(-1).values
    return torch.where(tiles == none, -1, tiles), count
