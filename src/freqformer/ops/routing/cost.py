"""What a live router costs: power of the DCT coefficients of sampled tiles, and the network."""

from __future__ import annotations

import torch
from torch import nn

from freqformer.buffers import buffer_width
from freqformer.cost import STATISTIC_BYTES, Call, Cost
from freqformer.plan import AttentionPlan
from freqformer.routing import RoutingNetwork
from freqformer.routing.statistics import tile_sample

NORM_FLOPS = 4
"""Per channel of queries and keys: square, add, two products."""
SUMS = 9
"""Energies of three bands for queries and keys, and what roughness is made of: per sampled tile and
head."""
SCORES = 5
"""Of a head: three logits and the chosen band, 64 bits wide."""


def sampled_tiles(plan: AttentionPlan) -> int:
    """Tiles, and boxes across tiles, that statistics are taken over: work items of one head."""
    return tile_sample(plan.layout.grid, plan.config).raster.shape[0]


def statistics_cost(call: Call) -> Cost:
    """A router that reads the layer's tokens: sampled tiles of queries, keys and as many channels
    of the input, then the network."""
    heads, width, network = call.count(), call.plan.head_dim, timestep_cost(call, statistics=True)
    sample = tile_sample(call.plan.layout.grid, call.plan.config)
    tokens = (sample.raster >= 0).sum(1)
    slots = 1 << (sample.raster.shape[1] - 1).bit_length()
    sampled, transformed = int(tokens.sum()), int(tokens.square().sum())
    # Of three tensors transform and squares; the norm of queries and keys.
    flops = heads * width * (6 * transformed + (6 + 2 * NORM_FLOPS) * sampled)
    executed = heads * 6 * len(tokens) * slots**2 * buffer_width(width)
    sums = heads * len(tokens) * SUMS * STATISTIC_BYTES
    read = 3 * heads * sampled * call.row_bytes + sums
    return Cost(
        float(network.flops + flops), float(executed), float(read), sums + network.write_bytes, 2
    )


def timestep_cost(call: Call, *, statistics: bool = False) -> Cost:
    """A router that reads the timestep alone: one launch, of no token.

    Args:
        call: of the layer.
        statistics: whether the network takes statistics too.
    """
    with torch.device("meta"):
        network = RoutingNetwork(call.plan.num_heads, statistics=statistics)
    weights = sum(layer.weight.numel() for layer in network.layers if isinstance(layer, nn.Linear))
    products = 2.0 * weights * call.count()
    scores = float(call.count() * SCORES * STATISTIC_BYTES)
    return Cost(products, products, float(weights * STATISTIC_BYTES), scores, 1)
