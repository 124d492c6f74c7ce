"""From measured errors to a routing table: the cheapest within a tolerance, or the least error
within a budget.

Shape legend: T timestep buckets, L layers, H heads, C candidates.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

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
"""Errors (T, L, H, 4) and costs relative to dense (4,) of LOW, MID, HIGH and DENSE -> what each
head minimises."""


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

        least = self._priced(HIGHEST_PRICE).cost
        if least > budget:
            raise ValueError(
                f"budget is {budget!r} of dense attention; from {least:.6f} up is feasible: raise "
                "it, or measure cheaper candidates"
            )
        return self._turning_point(lambda choice: choice.cost <= budget)

    def cheapest(self, tolerance: float) -> Choice:
        """The least FLOPs for errors whose squares sum up to at most the square of `tolerance`.

        As `choose_within` with the roles of errors and FLOPs exchanged: no choice that errs as
        little as the one returned is cheaper; a part of the tolerance may be left.

        Raises:
            ValueError: for a tolerance that is not positive.
        """
        check_positive("tolerance", tolerance)

        def errs_more(choice: Choice) -> bool:
            return float(choice.errors.square().sum()) > tolerance**2

        cheapest = self._priced(HIGHEST_PRICE)
        if not errs_more(cheapest):
            return cheapest
        return self._turning_point(errs_more, above=False)

    def _turning_point(self, met: Callable[[Choice], bool], *, above: bool = True) -> Choice:
        """The choice beside the price from which on something holds: the first above it, or the
        last below."""
        low, high = LOWEST_PRICE, HIGHEST_PRICE
        if met(self._priced(low)):
            return self._priced(low)
        # Costs fall as the price rises, in steps; 80 halvings of its logarithm end on the step.
        for _ in range(80):
            middle = math.sqrt(low * high)
            low, high = (low, middle) if met(self._priced(middle)) else (middle, high)
        return self._priced(high if above else low)

    def _priced(self, price: float) -> Choice:
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
        if self.choose(float(levels[high])).cost > budget:
            raise ValueError(
                f"budget is {budget!r}, which no tolerance meets: raise it, or measure cheaper "
                "candidates"
            )
        while low < high:
            middle = (low + high) // 2
            low, high = (
                (low, middle)
                if self.choose(float(levels[middle])).cost <= budget
                else (middle + 1, high)
            )
        return float(levels[low])

    def _assign(self, price: Price) -> Choice:
        """The choice with the least sum of prices."""
        counts, windows = len(self.candidates.mid_tiles), len(self.candidates.windows)
        choices = []
        for window in range(windows):
            options = [
                self._heads(self.candidates.columns(mid, window), price) for mid in range(counts)
            ]
            totals = torch.stack([total for _, total in options])
            least, mid = totals.min(0)
            column = torch.stack([column for column, _ in options])
            column = column.gather(0, mid[None, :, :, None].expand(1, -1, -1, column.shape[-1]))[0]
            choices.append((float(least.sum()), window, mid, column))
        _, window, mid, column = min(choices, key=lambda choice: choice[:2])
        return self._choice(window, mid, column)

    def _heads(self, columns: tuple[int, int, int], price: Price) -> tuple[Tensor, Tensor]:
        """The best columns (T, L, H) among LOW, one MID, one HIGH and DENSE, and the sums of their
        prices (T, L)."""
        dense = self.errors.shape[-1]
        places = torch.tensor([*columns, dense])
        errors = torch.cat([self.errors, torch.zeros_like(self.errors[..., :1])], -1)[..., places]
        prices, which = price(errors, self.costs[places] / self.costs[dense]).min(-1)
        return places[which], prices.sum(-1)

    def _choice(self, window: int, mid: Tensor, column: Tensor) -> Choice:
        """The record of these columns (T, L, H), with one place of a count for each bucket and
        layer, mid (T, L)."""
        candidates, dense = self.candidates, self.errors.shape[-1]
        band = torch.tensor([*(band.value for band, _ in candidates.operators), Band.DENSE.value])
        mid_tiles = torch.tensor(candidates.mid_tiles)[mid][..., None].expand_as(column)
        config = replace(candidates.config, window=candidates.windows[window])
        errors = torch.cat([self.errors, torch.zeros_like(self.errors[..., :1])], -1)
        return Choice(
            table=RoutingTable(band[column], mid_tiles.contiguous(), config, self.origin),
            column=column,
            errors=errors.gather(-1, column[..., None])[..., 0],
            costs=(self.costs / self.costs[dense])[column],
        )
