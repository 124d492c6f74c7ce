"""How many heads each band has, at every denoising step and layer of a generation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, get_args

import torch

from freqformer.config import Band, FreqFormerConfig
from freqformer.routing import RoutingNetwork, RoutingTable, allocate, even_allocation, timestep_bucket
from freqformer.routing.network import NUM_STATISTICS
from freqformer.simulate.profiles import ProfileError
from freqformer.simulate.shapes import ModelShape

Schedule = Literal["fixed", "prior"]

Heads = tuple[int, int, int, int]
"""Heads in LOW, MID, HIGH and DENSE."""

Route = tuple[Heads, FreqFormerConfig]
"""What one layer does at one step."""


@dataclass(frozen=True)
class Routing:
    """Who decides which band each head belongs to.

    Raises:
        ProfileError: for an unknown schedule, or a split with negative numbers.
    """

    split: tuple[int, int, int] | None = None
    """Heads that start in LOW, MID and HIGH; in proportion where the model has another number. None: a third each."""
    schedule: Schedule = "prior"
    """`fixed`: every step the same. `prior`: what the paper's prior makes of the split before any training."""
    live: bool = False
    """Whether routing networks run in every layer; without, their choices are frozen in a table."""
    table: RoutingTable | None = None
    """A frozen table, which then decides instead."""

    def __post_init__(self) -> None:
        if self.schedule not in get_args(Schedule):
            raise ProfileError(f"schedule is {self.schedule!r}; choose one of {', '.join(get_args(Schedule))}")
        if self.split is None:
            return
        parts = tuple(self.split) if isinstance(self.split, list | tuple) else (self.split,)
        whole = all(isinstance(part, int) and not isinstance(part, bool) for part in parts)
        if len(parts) != 3 or not whole or min(parts) < 0 or sum(parts) == 0:
            raise ProfileError(f"split is {parts}; three whole numbers of heads (low, mid, high), not all 0, are allowed")
        object.__setattr__(self, "split", parts)

    def initial(self, num_heads: int) -> list[int]:
        """The band that every head starts with."""
        if self.split is None:
            return even_allocation(num_heads)
        total, ends, start = sum(self.split), [], 0
        for part in self.split:
            start += part
            ends.append(round(num_heads * start / total))
        bands = [Band.LOW.value] * ends[0] + [Band.MID.value] * (ends[1] - ends[0])
        return bands + [Band.HIGH.value] * (num_heads - ends[1])


def timesteps(model: ModelShape) -> list[float]:
    """Noise levels of the model's denoising steps, from 1 down: evenly spaced, then shifted."""
    even = [1 - step / model.steps for step in range(model.steps)]
    return [model.shift * s / (1 + (model.shift - 1) * s) for s in even]


def head_schedule(model: ModelShape, routing: Routing, config: FreqFormerConfig) -> list[list[Route]]:
    """For every step and layer: heads per band, and the config, which a table can change.

    Raises:
        ProfileError: for a table with other layers or heads than the model.
    """
    if routing.table is not None:
        return _from_table(model, routing.table, config)
    initial = routing.initial(model.heads)
    rows = [initial for _ in range(model.steps)]
    if routing.schedule == "prior":
        rows = _untrained(tuple(initial), tuple(timesteps(model)))
    return [[(count_heads(row), config)] * model.num_layers for row in rows]


@lru_cache(maxsize=64)
def _untrained(initial: tuple[int, ...], noise: tuple[float, ...]) -> list[list[int]]:
    """Allocations, step by step, of a router that knows its prior and the heads' first bands alone."""
    with torch.random.fork_rng(devices=[]):
        network = RoutingNetwork(len(initial), hidden=1, prior="paper", initial=initial)
    with torch.no_grad():
        for parameter in network.layers.parameters():
            parameter.zero_()
        logits = network(torch.zeros(len(noise), len(initial), NUM_STATISTICS), torch.tensor(noise))
    return allocate(logits).tolist()


def _from_table(model: ModelShape, table: RoutingTable, config: FreqFormerConfig) -> list[list[Route]]:
    buckets, layers, heads = table.shape
    if (layers, heads) != (model.num_layers, model.heads):
        raise ProfileError(
            f"table has {layers} layers of {heads} heads; {model.name} has {model.num_layers} of {model.heads}: pass the "
            "table of this model"
        )
    steps = timestep_bucket(torch.tensor(timesteps(model)), buckets).tolist()
    known = [table.for_layer(layer, heads, config) for layer in range(layers)]
    return [[(count_heads(bands[bucket].tolist()), configs[bucket]) for bands, configs in known] for bucket in steps]


def count_heads(allocation: Sequence[int]) -> Heads:
    """Heads in LOW, MID, HIGH and DENSE."""
    counts = Counter(int(band) for band in allocation)
    return (counts[0], counts[1], counts[2], counts[3])


def allocation_of(heads: Heads) -> list[int]:
    """An allocation with these numbers of heads."""
    return [band for band, count in enumerate(heads) for _ in range(count)]
