"""What a variant costs: attention FLOPs of a head and of a clip, and all FLOPs of a training run.

A multiply-add counts as two, and what isn't a product of matrices as nothing.
"""

from __future__ import annotations

import torch
from benchmarks.quality.linear import linear_flops
from benchmarks.quality.sizes import STUDY, Size
from benchmarks.quality.variants import Variant, config_at
from torch import Tensor

from freqformer.config import Band
from freqformer.grid import tile_layout
from freqformer.plan import build_plan

PASSES = 3
"""A training step in forward passes: its backward takes two products for each one of the forward
pass."""
FEED_FORWARD = 4
"""Width of the feed-forward network, of the model's."""


def head_costs(variant: Variant, size: Size = STUDY) -> tuple[float, float, float, float]:
    """Useful attention FLOPs of one head and clip as LOW, MID, HIGH and DENSE: by the plan, with
    what the head does beside its own band."""
    config = config_at(variant, size)
    plan = build_plan(
        size.grid, config, num_heads=size.heads, head_dim=size.head_dim, learned_summaries=True
    )
    low, mid, high, dense = plan.band_costs()
    beside = low if variant.mixing is not None and variant.mixing.low_branch else 0.0
    if variant.linear is not None:
        tiles = tile_layout(size.grid, config.tile).num_tiles
        beside += linear_flops(variant.linear, size.grid.num_tokens, size.head_dim, tiles)
    return (low, beside + mid, beside + high, dense)


def density(variant: Variant, size: Size = STUDY) -> float:
    """Attention FLOPs relative to dense, expected over the timesteps of training; of a router,
    where it starts."""
    if variant.dense:
        return 1.0
    costs = head_costs(variant, size)
    means = [
        sum(heads * cost for heads, cost in zip(split, costs, strict=False)) / sum(split)
        for split in variant.splits
    ]
    chances = bucket_chances(len(variant.splits))
    expected = sum(chance * mean for chance, mean in zip(chances, means, strict=True))
    return expected / costs[Band.DENSE]


def bucket_chances(buckets: int) -> list[float]:
    """How often training's timesteps, whose logit is standard normal, fall in each of equal parts
    of [0, 1]."""
    ends = torch.special.ndtr(
        torch.special.logit(torch.linspace(0, 1, buckets + 1, dtype=torch.float64))
    )
    return ends.diff().tolist()


def allocation_density(allocation: Tensor, variant: Variant, size: Size) -> float:
    """Attention FLOPs of observed bands, int (..., heads), relative to dense."""
    costs = torch.tensor(head_costs(variant, size), dtype=torch.float64)
    return float(costs[allocation.cpu()].mean() / costs[Band.DENSE])


def attention_flops(share: float, size: Size) -> float:
    """Of all layers in a forward pass of one clip, from the share of dense attention's."""
    dense = 4 * size.grid.num_tokens**2 * size.head_dim
    return share * dense * size.layers * size.heads


def token_flops(size: Size) -> float:
    """Of all layers that work token by token, in a forward pass of one clip: the four projections
    of attention, the feed-forward network, the patches in and out. Gates and what is made once a
    clip are left out: less than 1%."""
    frames, rows, columns = size.patch
    patch = 3 * frames * rows * columns
    block = (4 + 2 * FEED_FORWARD) * size.width**2
    return 2 * size.grid.num_tokens * (size.layers * block + 2 * patch * size.width)


def training_flops(share: float, steps: int, size: Size) -> float:
    """Of a whole run with this share of dense attention's FLOPs; a router's other bands and what
    is computed again are left out."""
    clip = token_flops(size) + attention_flops(share, size)
    return PASSES * steps * size.batch * clip
