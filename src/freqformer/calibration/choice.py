"""From measured errors to a routing table: the cheapest within a tolerance, or the least error
within a budget.

Shape legend: T timestep buckets, L layers, H heads, C candidates.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from freqformer._validate import check_positive
from freqformer.calibration.candidates import Candidates
from freqformer.config import Band
from freqformer.grid import Grid
from freqformer.routing import RoutingTable
from freqformer.routing.origin import Origin

LOWEST_PRICE = 1e-20
HIGHEST_PRICE = 1e12
Price = Callable[[Tensor, Tensor], Tensor]
"""Errors (K, T, L, H, 4) and costs relative to dense (K, 1, 1, 1, 4) of LOW, MID, HIGH and DENSE,
by tile count -> what each head minimises."""


class Assigned(NamedTuple):
    """What every head becomes."""

    window: int
    """Place of the window of HIGH heads."""
    mid: Tensor
    """Place of the tile count of MID heads, int64 (T, L)."""
    column: Tensor
    """As `Choice.column`."""


@dataclass(frozen=True, eq=False)
class Choice:
    """A table, and what is expected of it."""

    table: RoutingTable
    column: Tensor
    """What every head became: its place among the candidates, C for DENSE; int64 (T, L, H)."""
    errors: Tensor
    """Relative error of every head's output, float64 (T, L, H)."""
    costs: Tensor
    """Attention FLOPs of every head relative to dense, float64 (T, L, H)."""

    @property
    def cost(self) -> float:
        """Attention FLOPs of the model relative to dense, every bucket weighing the same."""
        return float(self.costs.mean())


@dataclass(frozen=True, eq=False)
class Calibration:
    """What `calibrate` measured; tables for any tolerance or budget follow from it."""

    errors: Tensor
    """Norm of a candidate's error over the norm of the dense output, float64 (T, L, H, C)."""
    costs: Tensor
    """Useful attention FLOPs of one head as every candidate, and as DENSE at the end: float64 (C +
    1,)."""
    candidates: Candidates
    """Their tile is pinned."""
    grid: Grid
    """The tokens' grid, which the costs are of."""
    origin: Origin | None = None
    """What marks the model; tables keep it."""

    def choose(self, tolerance: float) -> Choice:
        """Every head the cheapest whose error is at most `tolerance`, else DENSE.

        One tile count serves the MID heads of a layer and bucket, and one window all HIGH heads:
        those with which the sum of the costs is least. Of equal costs the earlier candidate is
        taken.

        Raises:
            ValueError: for a tolerance that is not positive.
        """
        check_positive("tolerance", tolerance)
        return self._choice(self._within(tolerance))

    def _within(self, tolerance: float) -> Assigned:
        return self._assign(lambda errors, costs: costs.where(errors <= tolerance, math.inf))

    def choose_within(self, budget: float) -> Choice:
        """The least sum of squared errors, for at most a share `budget` of dense attention's FLOPs.

        Heads of all layers and buckets pay one price for FLOPs, the lowest that keeps to the
        budget, so FLOPs go where they help most. No choice as cheap as the one returned errs less;
        a part of the budget may be left.

        Raises:
            ValueError: for a budget below that of all heads in the cheapest candidate.
        """
        check_positive("budget", budget)

        least = self._cost(self._priced(HIGHEST_PRICE))
        if least > budget:
            raise ValueError(
                f"budget is {budget!r} of dense attention; from {least:.6f} up is feasible: raise "
                "it, or measure cheaper candidates"
            )
        return self._turning_point(lambda assigned: self._cost(assigned) <= budget)

    def cheapest(self, tolerance: float) -> Choice:
        """The least FLOPs for errors whose squares sum up to at most the square of `tolerance`.

        As `choose_within` with the roles of errors and FLOPs exchanged: no choice that errs as
        little as the one returned is cheaper; a part of the tolerance may be left.

        Raises:
            ValueError: for a tolerance that is not positive.
        """
        check_positive("tolerance", tolerance)

        def errs_more(assigned: Assigned) -> bool:
            return float(self._errors_of(assigned).square().sum()) > tolerance**2

        cheapest = self._priced(HIGHEST_PRICE)
        if not errs_more(cheapest):
            return self._choice(cheapest)
        return self._turning_point(errs_more, above=False)

    def _turning_point(self, met: Callable[[Assigned], bool], *, above: bool = True) -> Choice:
        """The choice beside the price from which on something holds: the first above it, or the
        last below."""
        low, high = LOWEST_PRICE, HIGHEST_PRICE
        if met(self._priced(low)):
            return self._choice(self._priced(low))
        # Costs fall as the price rises, in steps; halvings of its logarithm end on the step, when
        # no number lies between the two.
        while low < (middle := math.sqrt(low * high)) < high:
            low, high = (low, middle) if met(self._priced(middle)) else (middle, high)
        return self._choice(self._priced(high if above else low))

    def _priced(self, price: float) -> Assigned:
        """Every head what has the least sum of its squared error and its FLOPs at this price."""
        return self._assign(lambda errors, costs: errors.square() + price * costs)

    def tolerance_for(self, budget: float) -> float:
        """The smallest tolerance, among the measured errors, at which `choose` keeps to a share
        `budget` of dense.

        Raises:
            ValueError: for a budget that no tolerance meets.
        """
        check_positive("budget", budget)
        levels = self.errors.clamp_min(torch.finfo(torch.float64).tiny).unique()
        low, high = 0, len(levels) - 1
        if self._cost(self._within(float(levels[high]))) > budget:
            raise ValueError(
                f"budget is {budget!r}, which no tolerance meets: raise it, or measure cheaper "
                "candidates"
            )
        while low < high:
            middle = (low + high) // 2
            low, high = (
                (low, middle)
                if self._cost(self._within(float(levels[middle]))) <= budget
                else (middle + 1, high)
            )
        return float(levels[low])

    @cached_property
    def _all_errors(self) -> Tensor:
        """With those of DENSE, which errs nowhere, at the end: (T, L, H, C + 1)."""
        return torch.cat([self.errors, torch.zeros_like(self.errors[..., :1])], -1)

    @cached_property
    def _options(self) -> list[tuple[Tensor, Tensor, Tensor]]:
        """By window, for each of K tile counts LOW, MID, HIGH and DENSE: their columns (K, 4),
        errors (K, T, L, H, 4), and costs relative to dense (K, 1, 1, 1, 4)."""
        counts, dense = len(self.candidates.mid_tiles), self.errors.shape[-1]
        options = []
        for window in range(len(self.candidates.windows)):
            columns = torch.tensor(
                [(*self.candidates.columns(mid, window), dense) for mid in range(counts)]
            )
            errors = torch.stack([self._all_errors[..., own] for own in columns])
            costs = (self.costs / self.costs[dense])[columns]
            options.append((columns, errors, costs[:, None, None, None]))
        return options

    def _assign(self, price: Price) -> Assigned:
        """What has the least sum of prices. Asked some hundred times for each choice, so that all
        tile counts are compared at once."""
        found = []
        for window, (columns, errors, costs) in enumerate(self._options):
            prices, which = price(errors, costs).min(-1)
            least, mid = prices.sum(-1).min(0)
            place = mid[..., None].expand_as(which[0])
            which = which.gather(0, place[None])[0]
            found.append((float(least.sum()), Assigned(window, mid, columns[place, which])))
        return min(found, key=lambda pair: pair[0])[1]

    def _cost(self, assigned: Assigned) -> float:
        """As `Choice.cost`."""
        return float(self._costs_of(assigned).mean())

    def _costs_of(self, assigned: Assigned) -> Tensor:
        return (self.costs / self.costs[-1])[assigned.column]

    def _errors_of(self, assigned: Assigned) -> Tensor:
        return self._all_errors.gather(-1, assigned.column[..., None])[..., 0]

    def _choice(self, assigned: Assigned) -> Choice:
        """The record of what heads were assigned."""
        candidates = self.candidates
        band = torch.tensor([*(band.value for band, _ in candidates.operators), Band.DENSE.value])
        counts = torch.tensor(candidates.mid_tiles)[assigned.mid]
        mid_tiles = counts[..., None].expand_as(assigned.column).contiguous()
        config = replace(candidates.config, window=candidates.windows[assigned.window])
        return Choice(
            table=RoutingTable(band[assigned.column], mid_tiles, config, self.origin),
            column=assigned.column,
            errors=self._errors_of(assigned),
            costs=self._costs_of(assigned),
        )
