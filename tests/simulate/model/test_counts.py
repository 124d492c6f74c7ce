"""Exact counts against brute force: masks, tensors that the operation really makes, and PyTorch's
FLOP counter."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.flop_counter import FlopCounterMode

from freqformer import Band, FreqFormerConfig, Grid, build_plan
from freqformer.bands import compress, dct, interpolation_matrix, low_grid
from freqformer.cost import compress_flops, dct_flops
from freqformer.grid import tile_layout
from freqformer.ops.block_sparse.reference import attend_dense
from freqformer.ops.prologue import prepare
from freqformer.patterns import topk_tiles
from freqformer.plan import AttentionPlan
from freqformer.routing import RoutingNetwork, routing_statistics
from freqformer.simulate.model.counts import dense_counts, layer_counts

HEAD_DIM = 16


def scenario(seed: int, pattern: str | None = None) -> tuple[AttentionPlan, list[int]]:
    """A random small plan and allocation; the pattern is fixed unless one is named."""
    rng = random.Random(seed)
    grid = Grid(rng.randint(1, 6), rng.randint(1, 13), rng.randint(1, 17))
    config = FreqFormerConfig(
        tile=rng.choice([None, (1, 3, 4), (2, 2, 3), (4, 4, 8)]),
        compression=rng.choice([8, 32, 128]),
        mid_pattern=pattern or rng.choice(["axial", "radial"]),
        mid_tiles=rng.choice([1, 2, 5]),
        radial_radius=rng.randint(0, 3),
        window=(rng.randint(1, 4), rng.randint(1, 4), rng.randint(1, 4)),
        summary_tokens=rng.choice([0, 3, 64]),
    )
    plan = build_plan(
        grid,
        config,
        num_heads=4,
        head_dim=HEAD_DIM,
        num_text_tokens=rng.choice([0, 0, 7, 130]),
        learned_summaries=rng.random() < 0.5,
    )
    return plan, [rng.randrange(4) for _ in range(4)]


def seen_tiles(plan: AttentionPlan, band: Band, query: int) -> list[int]:
    """Key tiles of one query tile, straight from the words of docs/attention.md."""
    layout, config = plan.layout, plan.config
    places = layout.coordinates().tolist()
    t, h, w = places[query]

    def inside(place: list[int], window: tuple[int, int, int]) -> bool:
        for own, other, total, width in zip(
            places[query], place, layout.tiles, window, strict=True
        ):
            start = min(max(own - (width - 1) // 2, 0), max(0, total - width))
            if not start <= other < start + min(width, total):
                return False
        return True

    def kept(place: list[int]) -> bool:
        if band == Band.DENSE:
            return True
        if band == Band.HIGH:
            return inside(place, config.window)
        if config.mid_pattern == "axial":
            own_time = place[0] == t and inside(place, (layout.tiles[0], *config.window[1:]))
            return place[1:] == [h, w] or own_time
        halvings = (abs(place[0] - t) + 1).bit_length() - 1
        return max(abs(place[1] - h), abs(place[2] - w)) <= config.radial_radius * 2.0**-halvings

    return [tile for tile, place in enumerate(places) if kept(place)]


def side_of(plan):
    """Slots of a block of queries or keys."""
    return 64 if math.prod(plan.layout.tile) <= 64 else 128


def brute_force(plan: AttentionPlan, allocation: list[int]) -> tuple[int, int, int]:
    """Useful pairs, executed blocks and blocks of keys read, counted query by query."""
    counts, text = plan.layout.counts.tolist(), plan.num_text_tokens
    video, cells = sum(counts), plan.cells.num_cells
    side = side_of(plan)
    pairs = blocks = 0
    for band in map(Band, allocation):
        extras = [plan.num_low_tokens] if band == Band.LOW else []
        for other in (Band.LOW, Band.MID, Band.HIGH):
            if band not in (other, Band.DENSE) and (other == Band.LOW or plan.learned_summaries):
                extras.append(cells)
        extras.append(text)
        extra_blocks = sum(-(-extra // side) for extra in extras)
        if band == Band.LOW:
            pairs += plan.num_low_tokens * sum(extras)
            blocks += -(-plan.num_low_tokens // side) * extra_blocks
        else:
            for query, own in enumerate(counts):
                tiles = seen_tiles(plan, band, query)
                pairs += own * (sum(counts[tile] for tile in tiles) + sum(extras))
                blocks += len(tiles) + extra_blocks
        pairs += text * (video + text)
        blocks += -(-text // side) * (len(counts) + -(-text // side))
    return pairs, blocks, blocks


@pytest.mark.parametrize("start", range(0, 200, 50))
def test_flops_and_bytes_equal_brute_force(start):
    """200 random scenarios with fixed patterns: useful and executed FLOPs and KV bytes, no
    difference."""
    for seed in range(start, start + 50):
        plan, allocation = scenario(seed)
        counts = layer_counts(plan, allocation)
        pairs, executed, read = brute_force(plan, allocation)
        attention = counts.stages["attention"]
        assert attention.flops == 4 * HEAD_DIM * pairs, seed
        assert attention.executed == 4 * HEAD_DIM * side_of(plan) ** 2 * executed, seed
        assert counts.kv_bytes == 2 * 2 * HEAD_DIM * side_of(plan) * read, seed
        assert sum(flops.useful for flops in counts.band_flops.values()) == attention.flops, seed


def token_mask(plan: AttentionPlan, band: Band) -> torch.Tensor:
    """Which video tokens every video token sees, (N, N): straight from coordinates, without the
    plan's tiles and lists."""
    grid, tile, config = plan.layout.grid, plan.layout.tile, plan.config
    place = torch.cartesian_prod(
        *(torch.arange(extent) // side for extent, side in zip(grid.shape, tile, strict=True))
    )
    tiles = torch.tensor(
        [-(-extent // side) for extent, side in zip(grid.shape, tile, strict=True)]
    )

    def inside(window: tuple[int, int, int]) -> torch.Tensor:
        width = torch.tensor(window)
        start = (
            (place - (width - 1) // 2).clamp_min(0).minimum((tiles - width).clamp_min(0))[:, None]
        )
        return ((place >= start) & (place < start + width)).all(-1)

    if band == Band.DENSE:
        return torch.ones(len(place), len(place), dtype=torch.bool)
    if band == Band.HIGH:
        return inside(config.window)
    apart = (place[:, None] - place).abs()
    if config.mid_pattern == "axial":
        own_time = (apart[..., 0] == 0) & inside((int(tiles[0]), *config.window[1:]))
        return (apart[..., 1:] == 0).all(-1) | own_time
    reach = config.radial_radius * 2.0 ** -(apart[..., 0] + 1).log2().floor()
    return apart[..., 1:].amax(-1) <= reach


def check_masks(seed: int) -> None:
    plan, allocation = scenario(seed)
    text, pairs = plan.num_text_tokens, 0
    video = plan.layout.grid.num_tokens
    for band in map(Band, allocation):
        extra = sum(plan.extra_segments(band))
        pairs += (
            plan.num_low_tokens * extra
            if band == Band.LOW
            else int(token_mask(plan, band).sum()) + video * extra
        )
        pairs += text * (video + text)
    assert layer_counts(plan, allocation).stages["attention"].flops == 4 * HEAD_DIM * pairs, seed


def test_flops_equal_masks_of_tokens():
    for seed in range(1000, 1020):
        check_masks(seed)


@pytest.mark.slow
def test_flops_equal_masks_of_tokens_200_times():
    for seed in range(1020, 1220):
        check_masks(seed)


def test_prologue_and_merge_bytes_are_those_of_real_tensors():
    """What the reference prologue makes, tensor by tensor, is what the counts say is written; so is
    what merge reads."""
    for seed in range(40):
        plan, allocation = scenario(seed, random.Random(seed).choice(["topk", "axial"]))
        if plan.num_text_tokens or plan.learned_summaries:
            continue  # copies of text are the fused path's own; pooling needs learned parameters
        written = selection = low_out = 0
        for band, heads in Counter(map(Band, allocation)).items():
            rows = torch.randn(heads, plan.layout.grid.num_tokens, HEAD_DIM)
            if band == Band.DENSE:
                written += 3 * rows.nbytes
                continue
            made = prepare(
                rows,
                rows,
                rows,
                band=band,
                plan=plan,
                rows=torch.arange(heads),
                parameters=None,
                token_order="raster",
            )
            tensors = [made.query, made.key, made.value, made.extra_key, made.extra_value]
            written += sum(x.nbytes for x in tensors if x is not None)
            if made.selection_means is not None and plan.mid_capacity < plan.layout.num_tiles:
                selection += sum(x.nbytes for x in made.selection_means)
            low_out += made.query.nbytes if band == Band.LOW else 0
        counts = layer_counts(plan, allocation, element_size=4)
        assert counts.stages["selection"].read_bytes == selection, seed
        assert counts.stages["merge"].read_bytes == low_out, seed
        # The fused prologue keeps sums over tiles of three tensors, where the reference makes means
        # of two.
        summed = sum(band in (1, 2) for band in allocation)
        sums = (
            3 * 4 * summed * plan.layout.num_tiles * HEAD_DIM
            if selection or plan.cells.num_cells
            else 0
        )
        made = counts.stages["prologue"].write_bytes + counts.stages["summaries"].write_bytes - sums
        assert made == written, seed
        assert counts.stages["summaries"].write_bytes == counts.summary_bytes, seed


def test_topk_expectation_is_that_of_drawn_selections():
    """Useful FLOPs with top-k: the mean of 100 drawn selections is within 1% on ragged grids."""
    generator = torch.Generator().manual_seed(3)
    for grid, kept in ((Grid(5, 9, 13), 3), (Grid(3, 11, 10), 7), (Grid(7, 7, 7), 2)):
        config = FreqFormerConfig(tile=(2, 4, 4), mid_tiles=kept, summary_tokens=0)
        plan = build_plan(grid, config, num_heads=1, head_dim=HEAD_DIM)
        counts = plan.layout.counts
        assert int(counts.min()) < int(counts.max())
        means = torch.randn(2, 100, plan.layout.num_tiles, 16, generator=generator)
        lists = topk_tiles(means[0], means[1], kept)
        drawn = (counts[lists].sum(-1) * counts).sum(-1).double().mean() * 4 * HEAD_DIM
        expected = layer_counts(plan, [Band.MID]).stages["attention"].flops
        assert abs(float(drawn) / expected - 1) <= 0.01


def test_dense_and_low_equal_pytorchs_counter():
    """The math path's matrix products, forward and backward (which scores are recomputed in, twice
    more)."""
    tensors = [torch.randn(1, 2, 270, HEAD_DIM) for _ in range(3)]
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        scaled_dot_product_attention(*tensors)
    assert counter.get_total_flops() == dense_counts(270, 2, HEAD_DIM).flops
    plan = build_plan(
        Grid(3, 9, 10), FreqFormerConfig(summary_tokens=256), num_heads=2, head_dim=HEAD_DIM
    )
    query, key = (torch.randn(2, 270, HEAD_DIM, requires_grad=True) for _ in range(2))
    with FlopCounterMode(display=False) as counter:
        out = attend_dense(query, key, key, None)
    counted = dense_counts(270, 2, HEAD_DIM)
    assert counter.get_total_flops() == counted.flops
    with FlopCounterMode(display=False) as counter:
        out.sum().backward()
    recomputed = counted.flops / 2
    assert counter.get_total_flops() + recomputed == counted.backward_flops

    low = torch.randn(1, plan.num_low_tokens, HEAD_DIM)
    with FlopCounterMode(display=False) as counter:
        attend_dense(low, low, low, None)
    no_summaries = build_plan(
        Grid(3, 9, 10), FreqFormerConfig(summary_tokens=0), num_heads=1, head_dim=HEAD_DIM
    )
    assert (
        counter.get_total_flops()
        == layer_counts(no_summaries, [Band.LOW]).stages["attention"].flops
    )


@pytest.mark.parametrize(
    ("grid", "tile"),
    [
        (Grid(3, 9, 10), None),
        (Grid(5, 7, 11), None),
        (Grid(1, 1, 300), None),
        (Grid(21, 45, 80), None),
        (Grid(2, 8, 16), (8, 4, 4)),  # a pinned tile that the grid clips keeps its own samples
        (Grid(1, 9, 13), (2, 8, 8)),
        (Grid(5, 2, 7), (1, 8, 16)),
    ],
)
def test_transforms_cost_what_pytorch_counts(grid, tile):
    """Low tokens and the block DCT."""
    config = FreqFormerConfig(compression=16, tile=tile)
    plan = build_plan(grid, config, num_heads=1, head_dim=HEAD_DIM)
    layout = tile_layout(grid, tile)

    def counted(work: Callable[[torch.Tensor], object]) -> int:
        flops = []
        for channels in (HEAD_DIM, 2 * HEAD_DIM):
            with FlopCounterMode(display=False) as counter:
                work(torch.randn(grid.num_tokens, channels))
            flops.append(counter.get_total_flops())
        # The difference leaves out the matrices themselves, which are made once.
        return flops[1] - flops[0]

    assert counted(lambda x: compress(x, layout, config)) == compress_flops(plan)
    assert counted(lambda x: dct(x, layout, config)) == dct_flops(plan)


def test_interpolation_takes_two_products_an_output_at_most():
    """Counted on the matrices: products that are not zero, and fewer only at a grid's ends, which
    have one neighbour."""
    grid, config = Grid(9, 21, 26), FreqFormerConfig(tile=(2, 4, 4), compression=16)
    plan = build_plan(grid, config, num_heads=1, head_dim=HEAD_DIM)
    matrices = [interpolation_matrix(plan.layout, config, axis) for axis in range(3)]
    _, low_rows, low_columns = low_grid(plan.layout, config)
    frames, rows, columns = grid.shape
    others = (low_rows * low_columns, frames * low_columns, frames * rows)
    taken = sum(
        int((matrix != 0).sum()) * other for matrix, other in zip(matrices, others, strict=True)
    )
    assert [matrix.shape[0] for matrix in matrices] == [frames, rows, columns]
    assert 0.75 < 2 * HEAD_DIM * taken / layer_counts(plan, [Band.LOW]).stages["merge"].flops <= 1


def test_router_counts_only_where_it_runs():
    plan, allocation = scenario(1)
    frozen, live = (
        layer_counts(plan, allocation),
        layer_counts(plan, allocation, router="statistics"),
    )
    assert "router" not in frozen.stages
    assert live.flops - frozen.flops == live.stages["router"].flops > 0


def test_router_costs_what_pytorch_counts():
    """Transforms of the sampled tiles, and the network."""
    grid, config, heads = Grid(16, 32, 32), FreqFormerConfig(tile=(2, 8, 8)), 3
    counted, flops = [], []
    for head_dim in (HEAD_DIM, 2 * HEAD_DIM):
        plan = build_plan(grid, config, num_heads=heads, head_dim=head_dim)
        router = layer_counts(plan, [0, 1, 2], router="statistics").stages["router"]
        query = torch.randn(1, grid.num_tokens, heads, head_dim)
        with FlopCounterMode(display=False) as counter:
            routing_statistics(query, query, query.flatten(2), grid, config)
        counted.append(counter.get_total_flops())
        norms_and_squares = (2 * 4 + 3 * 2) * 32 * 128 * heads * head_dim
        flops.append(router.flops - norms_and_squares)
        assert router.executed == 6 * 32 * 128**2 * heads * head_dim
        assert router.launches == 2
    # The difference leaves out the sums over coefficients, and the network, which don't grow with
    # the head.
    assert counted[1] - counted[0] == flops[1] - flops[0]
    with FlopCounterMode(display=False) as counter:
        RoutingNetwork(heads)(torch.randn(1, heads, 8), torch.rand(1))
    assert 2 * flops[0] - flops[1] == counter.get_total_flops()


def test_router_does_not_grow_with_the_video():
    config = FreqFormerConfig(tile=(2, 8, 8))
    counts = [
        layer_counts(
            build_plan(Grid(frames, 64, 64), config, num_heads=4, head_dim=64),
            [0, 1, 2, 2],
            router="statistics",
        )
        for frames in (16, 256)
    ]
    assert counts[0].stages["router"] == counts[1].stages["router"]


def test_summaries_are_counted_for_the_bands_a_head_is_not_in():
    grid, config = Grid(4, 16, 16), FreqFormerConfig(tile=(4, 4, 8), summary_tokens=4)
    for learned, seen in ((False, {0: 0, 1: 1, 2: 1, 3: 0}), (True, {0: 2, 1: 2, 2: 2, 3: 0})):
        plan = build_plan(grid, config, num_heads=1, head_dim=HEAD_DIM, learned_summaries=learned)
        for band, times in seen.items():
            assert (
                layer_counts(plan, [band]).summary_bytes
                == times * plan.cells.num_cells * 2 * HEAD_DIM * 2
            )


def test_wrong_allocation_is_refused():
    plan, _ = scenario(0)
    for wrong in ([], [0] * 5, [0, 1, 2, 4], [-1]):
        with pytest.raises(ValueError, match="allocation"):
            layer_counts(plan, wrong)
