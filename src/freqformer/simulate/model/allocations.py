"""How many heads each band has, at every denoising step and layer of a generation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, get_args

import torch

from freqformer.config import WEIGHING, Band, FreqFormerConfig
from freqformer.config import Routing as Kind
from freqformer.routing import (
    RoutingNetwork,
    RoutingTable,
    allocate,
    timestep_bucket,
)
from freqformer.routing.network import NUM_STATISTICS
from freqformer.simulate.model.profiles import ProfileError, shown
from freqformer.simulate.model.transformers import ModelShape

Schedule = Literal["fixed", "prior"]
RouterInputs = Literal["statistics", "timestep"]
"""What a running router reads: statistics of the layer's tokens, or the timestep alone."""

Heads = tuple[int, int, int, int]
"""Heads in LOW, MID, HIGH and DENSE."""

Route = tuple[Heads, FreqFormerConfig]
"""What one layer does at one step."""


@dataclass(frozen=True)
class Routing:
    """Who decides which band each head belongs to.

    Raises:
        ProfileError: for an unknown kind or schedule, a split with negative numbers, or a prior
            where no router chooses.
    """

    kind: Kind = FreqFormerConfig.routing
    """As `routing` of `FreqAttention`: `soft` weighs each head's band and LOW by statistics and
    timestep, `timestep` by the timestep alone, `hard` chooses a band for each head, `fixed` does
    neither."""
    split: tuple[int, int, int] | None = None
    """Heads that start in LOW, MID and HIGH; in proportion where the model has another number.
    None: by the `allocation` of the scenario's config, as in a layer."""
    schedule: Schedule | None = None
    """`fixed`: every step the same. `prior`: what the paper's prior makes of the split before any
    training. None: `prior` where a router chooses, else `fixed`."""
    table: RoutingTable | None = None
    """A frozen table, which then gives heads to bands instead."""

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise ProfileError(
                f"routing is {shown(self.kind)}; choose one of {', '.join(get_args(Kind))}"
            )
        if self.schedule is None:
            object.__setattr__(self, "schedule", "prior" if self.kind == "hard" else "fixed")
        if self.schedule not in get_args(Schedule):
            raise ProfileError(
                f"schedule is {shown(self.schedule)}; choose one of {', '.join(get_args(Schedule))}"
            )
        if self.schedule == "prior" and self.kind != "hard":
            raise ProfileError(
                f"schedule is 'prior' with routing {self.kind!r}; a router that chooses has a "
                "prior: take "
                "routing=hard, or schedule=fixed"
            )
        if self.split is not None:
            object.__setattr__(self, "split", _checked_split(self.split))

    @classmethod
    def of(cls, config: FreqFormerConfig) -> Routing:
        """As a record says; its prior is a schedule."""
        return cls(config.routing, schedule="prior" if config.prior != "none" else "fixed")

    @property
    def weighs(self) -> bool:
        """Whether a router weighs each head's band and LOW, which needs a LOW branch."""
        return self.kind in WEIGHING

    @property
    def running(self) -> RouterInputs | None:
        """What the router that runs in every layer reads; None where none runs.

        A table takes the place of a router that chooses; one that weighs runs beside a table too.
        """
        if self.kind == "hard":
            return "statistics" if self.table is None else None
        inputs: dict[Kind, RouterInputs] = {"soft": "statistics", "timestep": "timestep"}
        return inputs.get(self.kind)

    def initial(self, num_heads: int, config: FreqFormerConfig) -> list[int]:
        """The band that every head starts with, of a model with so many and of a config."""
        if self.split is None:
            return list(config.bands(num_heads))
        total, start = sum(self.split), 0
        ends = []
        for part in self.split:
            start += part
            ends.append(round(num_heads * start / total))
        bands = [Band.LOW.value] * ends[0] + [Band.MID.value] * (ends[1] - ends[0])
        return bands + [Band.HIGH.value] * (num_heads - ends[1])


MOST_HEADS = 4096
"""Largest part of a split: as many heads as a model may have."""


def _checked_split(split: object) -> tuple[int, int, int]:
    """The split as a tuple; ProfileError unless it is three whole numbers of heads, not all 0."""
    parts = tuple(split) if isinstance(split, list | tuple) else (split,)
    whole = all(
        isinstance(part, int) and not isinstance(part, bool) and 0 <= part <= MOST_HEADS
        for part in parts
    )
    if len(parts) != 3 or not whole or not any(parts):
        raise ProfileError(
            f"split is {shown(parts)}; three whole numbers of heads (low, mid, high) from 0 to "
            f"{MOST_HEADS}, not all "
            "0, are allowed: for instance 1,1,4"
        )
    low, mid, high = parts
    return (low, mid, high)


def timesteps(model: ModelShape) -> list[float]:
    """Noise levels of the model's denoising steps, from 1 down: evenly spaced, then shifted."""
    even = [1 - step / model.steps for step in range(model.steps)]
    return [model.shift * s / (1 + (model.shift - 1) * s) for s in even]


def head_schedule(
    model: ModelShape, routing: Routing, config: FreqFormerConfig
) -> list[list[Route]]:
    """For every step and layer: heads per band, and the config, which a table can change.

    Raises:
        ProfileError: for a table with other layers or heads than the model.
    """
    if routing.table is not None:
        return _from_table(model, routing.table, config)
    initial = routing.initial(model.heads, config)
    rows = [initial for _ in range(model.steps)]
    if routing.schedule == "prior":
        rows = _untrained(tuple(initial), tuple(timesteps(model)))
    return [[(count_heads(row), config)] * model.num_layers for row in rows]


@lru_cache(maxsize=64)
def _untrained(initial: tuple[int, ...], noise: tuple[float, ...]) -> list[list[int]]:
    """Allocations, step by step, of a router that knows its prior and the heads' first bands
    alone."""
    with torch.random.fork_rng(devices=[]):
        network = RoutingNetwork(len(initial), hidden=1, prior="noise_level", initial=initial)
    with torch.no_grad():
        for parameter in network.layers.parameters():
            parameter.zero_()
        logits = network(torch.zeros(len(noise), len(initial), NUM_STATISTICS), torch.tensor(noise))
    return allocate(logits).tolist()


def _from_table(
    model: ModelShape, table: RoutingTable, config: FreqFormerConfig
) -> list[list[Route]]:
    buckets, layers, heads = table.shape
    if (layers, heads) != (model.num_layers, model.heads):
        raise ProfileError(
            f"table has {layers} layers of {heads} heads; {model.name} has {model.num_layers} of "
            f"{model.heads}: pass the "
            "table of this model"
        )
    steps = timestep_bucket(torch.tensor(timesteps(model)), buckets).tolist()
    known = [table.for_layer(layer, heads, config) for layer in range(layers)]
    return [
        [(count_heads(bands[bucket].tolist()), configs[bucket]) for bands, configs in known]
        for bucket in steps
    ]


def count_heads(allocation: Sequence[int]) -> Heads:
    """Heads in LOW, MID, HIGH and DENSE."""
    counts = Counter(int(band) for band in allocation)
    return (counts[0], counts[1], counts[2], counts[3])


def allocation_of(heads: Heads) -> list[int]:
    """An allocation with these numbers of heads."""
    return [band for band, count in enumerate(heads) for _ in range(count)]
