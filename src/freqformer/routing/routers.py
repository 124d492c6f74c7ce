"""Who says what the heads of a layer do: routers, all with one method, `decide`.

Shape legend: B batch, H heads, T timestep buckets. Timesteps are in [0, 1], and 1 is the most
noise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from freqformer.config import Band, FreqFormerConfig, Prior
from freqformer.routing.allocation import allocate
from freqformer.routing.network import NUM_BANDS, RoutingNetwork
from freqformer.routing.table import bands_at
from freqformer.routing.training import RouterTraining
from freqformer.tracing import constant_result

Score = Callable[[RoutingNetwork], tuple[Tensor, Tensor]]
"""A network's logits of the heads (B, H, 3), and the best bands by them, int64 (B, H)."""
Weigh = Callable[[RoutingNetwork], tuple[Tensor, Tensor]]
"""A network's logits of the heads (B, H, 3), and their `branch_weights` (B, 2, H)."""
LookUp = Callable[[Tensor, Tensor], Tensor]
"""As `bands_at`."""
Costs = tuple[float, float, float, float]
"""Of one head as LOW, MID and HIGH, and of dense attention."""


@dataclass(frozen=True, eq=False)
class RouterInputs:
    """What a router may look at in one call of its layer."""

    timestep: Tensor
    """(B,)."""
    allocation: Tensor
    """The layer's own bands, int64 (H,)."""
    present: tuple[int, ...]
    """Which bands there are among them, each once."""
    score: Score
    """What a network makes of the layer's statistics and the timestep; takes them when called."""
    weigh: Weigh
    """The same, with weights of the own branch and of LOW in place of bands."""
    costs: Callable[[], Costs]
    """What a head costs in each band, for budgets."""
    look_up: LookUp = bands_at
    """What finds bands in a table."""


@dataclass(frozen=True, eq=False)
class Decision:
    """What the heads of a layer do in one call."""

    bands: Tensor
    """The band of every head, int64 (B, H)."""
    branch_weights: Tensor | None = None
    """What is added to the gates of the own branch and of LOW, (B, 2, H); None for nothing."""
    logits: Tensor | None = None
    """The scores that it was made by, (B, H, 3); None where no network ran."""
    summary_offsets: Tensor | None = None
    """What is added to the layer's summary offsets, (B, H, 3); None for nothing."""
    present: tuple[int, ...] | None = None
    """Every band that may be among the heads', where the host knows; None for any."""
    others: Tensor | None = None
    """Bands to compute in addition for a router that learns, int64 (K, B, H), see `other_bands`."""

    def of_heads(self, heads: Tensor | None) -> Decision:
        """The decision for some heads, int64 (heads,); itself for None."""
        if heads is None:
            return self
        named = (("bands", 1), ("branch_weights", 2), ("logits", 1), ("summary_offsets", 1))
        picked = {
            name: None if (x := getattr(self, name)) is None else x.index_select(axis, heads)
            for name, axis in (*named, ("others", 2))
        }
        return replace(self, **picked)


@runtime_checkable
class Router(Protocol):
    """Decides what heads do."""

    def decide(self, given: RouterInputs) -> Decision:
        """The decision for one call."""
        ...


class FixedRouter(nn.Module):
    """The layer's own bands, always."""

    def decide(self, given: RouterInputs) -> Decision:
        """See `Router`."""
        bands = given.allocation.expand(len(given.timestep), -1)
        return Decision(bands, present=given.present)


class HardRouter(RoutingNetwork):
    """A band for each head, the best by a network's scores.

    Args:
        num_heads: heads of the layer.
        initial: the band that every head starts with, LOW, MID or HIGH.
        prior: see `RoutingNetwork`.
    """

    def __init__(self, num_heads: int, initial: Sequence[int], prior: Prior) -> None:
        super().__init__(num_heads, prior=prior, initial=initial)
        self.mode: RouterTraining = "off"
        """How it learns in training mode, see `other_bands`."""
        self.flop_budget: float | None = None
        """Share of dense attention's FLOPs that it is held to while it does not learn."""

    @property
    def learns(self) -> bool:
        """Whether a call gives it a gradient."""
        return self.mode != "off" and self.training and torch.is_grad_enabled()

    def decide(self, given: RouterInputs) -> Decision:
        """See `Router`."""
        logits, bands = given.score(self)
        if self.flop_budget is not None and not self.learns:
            bands = allocate(logits, costs=given.costs(), budget=self.flop_budget)
        return Decision(bands, logits=logits)


class SoftRouter(RoutingNetwork):
    """The layer's own bands, each weighed against LOW by the layer's statistics and the timestep.

    Args:
        num_heads: heads of the layer.
        statistics: False weighs by the timestep alone, as `TimestepRouter` does.
    """

    def __init__(self, num_heads: int, *, statistics: bool = True) -> None:
        super().__init__(num_heads, prior="none", statistics=statistics)

    def decide(self, given: RouterInputs) -> Decision:
        """See `Router`."""
        logits, weights = given.weigh(self)
        bands = given.allocation.expand(len(logits), -1)
        return Decision(bands, weights, logits, present=given.present)


class TimestepRouter(SoftRouter):
    """As `SoftRouter`, by the timestep alone: no statistics are taken."""

    def __init__(self, num_heads: int) -> None:
        super().__init__(num_heads, statistics=False)


@dataclass(frozen=True, eq=False)
class TableRouter:
    """One layer's bands by timestep, from a `RoutingTable`."""

    bands: Tensor
    """int64 (T, H); T is 1 where the host knows that all buckets have the same."""
    weigher: Router | None = None
    """What still weighs branches; its bands give way to the table's. None for nothing."""
    present: tuple[int, ...] | None = None
    """Every band that may be among them, where the host knows."""

    def decide(self, given: RouterInputs) -> Decision:
        """See `Router`."""
        if len(self.bands) == 1:
            bands = self.bands.expand(len(given.timestep), -1)
        else:
            bands = given.look_up(self.bands, given.timestep)
        if self.weigher is None:
            return Decision(bands, present=self.present)
        return replace(self.weigher.decide(given), bands=bands, present=self.present)


def branch_weights(logits: Tensor, bands: Sequence[int]) -> Tensor:
    """What soft routing adds to the gates of the own branch and of LOW: the logits of the two
    bands.

    Args:
        logits: (B, H, 3).
        bands: the own band of every head, LOW, MID or HIGH.

    Returns: (B, 2, H), one launch on a device.
    """
    (places,) = _weight_places(tuple(bands), logits.device)
    return logits.flatten(1).index_select(1, places).unflatten(1, (2, -1))


@constant_result
def _weight_places(bands: tuple[int, ...], device: torch.device) -> tuple[Tensor]:
    return (_cached_places(bands, device),)


@lru_cache(maxsize=256)
@torch.inference_mode(False)  # what it caches must also serve training
def _cached_places(bands: tuple[int, ...], device: torch.device) -> Tensor:
    """Places of the own bands' logits, and then of LOW's, in (H, 3) laid flat: int64 (2 H,)."""
    first = NUM_BANDS * torch.arange(len(bands))
    return torch.cat([first + torch.tensor(bands), first + Band.LOW.value]).to(device)


def make_router(config: FreqFormerConfig, num_heads: int) -> Router:
    """The router that the record asks for.

    Args:
        config: `routing`, `allocation` and `prior` are read.
        num_heads: heads of the layer.
    """
    if config.routing == "hard":
        return HardRouter(num_heads, config.bands(num_heads), config.prior)
    if config.routing == "soft":
        return SoftRouter(num_heads)
    return TimestepRouter(num_heads) if config.routing == "timestep" else FixedRouter()
