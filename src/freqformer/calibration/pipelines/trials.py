"""Tables that are tried by the calibration's own videos, and which of them is taken.

Nothing here runs a model: `nearness` is asked how near a table's videos are. Shape legend: S steps,
L layers, H heads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import permutations

import torch
from torch import Tensor

from freqformer.calibration.choice import Calibration, Choice
from freqformer.calibration.pipelines.by_step import cheapest_density, digest, priced
from freqformer.calibration.pipelines.choice import PipelineCalibration, Tried, evened
from freqformer.config import Band
from freqformer.routing import RoutingTable
from freqformer.training_free.preset import preset_configs, preset_range
from freqformer.training_free.schedule import falling_densities

HALF = 0.5
LESS = (0.75, 0.25)
"""Densities whose choices compete with that for the asked one, too, as shares of it."""
MOVED = 0.1
"""Share of all FLOPs that a move takes from one third of the steps or layers to another."""
SHRINKS = (1.0, 0.99, 0.98, 0.96, 0.94)
"""The preset delivers a density up to 2% above the one it is asked for, and is asked for less
until it keeps to it."""
ROUNDING = 1e-12
"""So that sums of costs stay within a density."""


@dataclass(frozen=True, eq=False)
class Trial:
    """A table by step that may be tried."""

    name: str
    table: RoutingTable
    """(S, L, H)."""
    density: float
    """That it keeps to."""
    weighing: Calibration
    """What its heads were chosen by, and are again where density moves."""

    @property
    def key(self) -> str:
        """The same for tables that compute the same."""
        return digest(self.table)


Nearness = Callable[[Trial], float]
"""How near the videos of a table are to dense attention's, in dB."""


def first_trials(calibration: PipelineCalibration, density: float) -> Iterator[Trial]:
    """Tables of at most this density, those that promise most first; each is made as it is asked
    for.

    Args:
        calibration: of the pipeline.
        density: share of dense attention's FLOPs.

    Raises:
        ValueError: for a density that no choice keeps to.
    """
    main = calibration.calibration
    plain = calibration.by_tokens

    def chosen(name: str, weighing: Calibration, share: float = 1.0) -> Iterator[Trial]:
        if share == 1 or share * density >= cheapest_density(weighing):
            table = weighing.choose_within(share * density).table
            yield Trial(name, table, share * density, weighing)

    yield from chosen("least expected error", main)
    preset = preset_by_step(calibration, density)
    if preset is not None:
        yield Trial("preset", preset, density, main)
    yield from chosen("steps' weights to the 0.5", evened(main, 0.5))
    if plain is not None:
        yield from chosen("by tokens alone", plain)
    yield from chosen(f"least expected error, {HALF:g} of the density", main, HALF)
    alike = evened(main, 0.0)
    yield from chosen("steps weigh the same", alike)
    within = alike.choose(alike.tolerance_for(density)).table
    yield Trial("steps weigh the same, one tolerance for all heads", within, density, alike)
    for share in LESS:
        yield from chosen(f"least expected error, {share:g} of the density", main, share)
    if plain is not None:
        yield from chosen("by tokens alone, steps' weights to the 0.5", evened(plain, 0.5))


def preset_by_step(calibration: PipelineCalibration, density: float) -> RoutingTable | None:
    """What the plug-in does without a table, its density falling over these steps; None where it
    has nothing for a density.

    Args:
        calibration: whose steps are banded.
        density: at most this.
    """
    main = calibration.calibration
    grid, exact = main.grid, calibration.exact
    levels = tuple(step.level for step in calibration.steps)
    least, most = preset_range(grid, exact)
    layers, heads = main.errors.shape[1:3]
    for shrink in SHRINKS:
        if density * shrink < least:
            return None
        bands = torch.full((len(levels), layers, heads), Band.DENSE.value)
        counts = torch.ones_like(bands)
        for step, own in enumerate(
            falling_densities((*levels, 0.0), density * shrink, least, most)
        ):
            for layer, config in enumerate(preset_configs(grid, exact, own, layers)):
                if config is not None and config.mid_tiles is not None:
                    bands[step, layer] = Band.MID.value
                    counts[step, layer] = config.mid_tiles
        table = RoutingTable(bands, counts, main.candidates.config)
        if priced(table, main, exact).cost <= density:
            return table
    return None


def tried_trials(
    calibration: PipelineCalibration, density: float, limit: int, nearness: Nearness
) -> list[tuple[Trial, Tried]]:
    """Try tables: first those of `first_trials`, then others round the nearest of them, that give
    a third of the steps or layers more and another less.

    What is tried follows from the arguments and from what `nearness` said alone, so that the same
    call goes on where it was stopped.

    Args:
        calibration: of the pipeline.
        density: share of dense attention's FLOPs, at most.
        limit: tables in all.
        nearness: asked once for each.

    Raises:
        ValueError: for a density that no choice keeps to.
    """
    found: dict[str, tuple[Trial, Tried]] = {}

    def attempt(trial: Trial) -> Tried:
        cost = priced(trial.table, calibration.calibration, calibration.exact).cost
        tried = Tried(trial.name, cost, nearness(trial))
        found[trial.key] = (trial, tried)
        return tried

    for trial in first_trials(calibration, density):
        if trial.key not in found:
            attempt(trial)
        if len(found) == limit:
            return list(found.values())
    best, reached = max(found.values(), key=lambda pair: pair[1].nearness)
    places = moves(best.table)
    failed = 0
    while failed < len(places) and len(found) < limit:
        trial = moved(calibration, best, places[0])
        if trial is not None and trial.key not in found:
            tried = attempt(trial)
            if tried.nearness > reached.nearness:
                best, reached, failed = trial, tried, 0
                continue
        failed += 1
        places = [*places[1:], places[0]]
    return list(found.values())


@dataclass(frozen=True)
class Move:
    """FLOPs go from some steps or layers to others."""

    name: str
    axis: int
    """0 for steps, 1 for layers."""
    source: tuple[int, ...]
    target: tuple[int, ...]


def moves(table: RoutingTable) -> list[Move]:
    """Between thirds of the steps, and of the layers; those between the ends first.

    Args:
        table: by step (S, L, H).
    """
    found = []
    for axis, word in enumerate(("steps", "layers")):
        parts = torch.arange(table.bands.shape[axis]).tensor_split(3)
        thirds = [tuple(part.tolist()) for part in parts if len(part)]
        for source, target in permutations(range(len(thirds)), 2):
            name = f"{word} {_span(thirds[source])} to {_span(thirds[target])}"
            far = abs(source - target)
            found.append((-far, axis, Move(name, axis, thirds[source], thirds[target])))
    return [move for *_, move in sorted(found, key=lambda entry: entry[:2])]


def _span(places: tuple[int, ...]) -> str:
    first, last = places[0] + 1, places[-1] + 1
    return f"{first}" if first == last else f"{first}-{last}"


def moved(calibration: PipelineCalibration, trial: Trial, move: Move) -> Trial | None:
    """The table with a tenth of its FLOPs elsewhere; None where they can't be taken or given.

    Heads of the two thirds are chosen anew, each third within its own budget, the second with what
    the first leaves over; all others stay.

    Args:
        calibration: of the pipeline.
        trial: that is changed.
        move: from where to where.
    """
    costs = priced(trial.table, calibration.calibration, calibration.exact).costs
    weighing = with_window(trial.weighing, trial.table.config.window)
    source, target = (torch.tensor(places) for places in (move.source, move.target))
    given = costs.index_select(move.axis, target)
    taken = costs.index_select(move.axis, source)
    budget = float(taken.sum()) - MOVED * float(costs.sum())
    fewer = _chosen_anew(weighing, move.axis, source, budget / taken.numel())
    if fewer is None:
        return None
    used = float(costs.sum() - taken.sum() - given.sum()) + fewer.cost * taken.numel()
    budget = (1 - ROUNDING) * trial.density * costs.numel() - used
    more = _chosen_anew(weighing, move.axis, target, budget / given.numel())
    if more is None:
        return None
    bands, counts = trial.table.bands.clone(), trial.table.mid_tiles.clone()
    for index, choice in ((source, fewer), (target, more)):
        bands.index_copy_(move.axis, index, choice.table.bands)
        counts.index_copy_(move.axis, index, choice.table.mid_tiles)
    table = replace(trial.table, bands=bands, mid_tiles=counts)
    return replace(trial, name=f"{trial.name}; {move.name}", table=table)


def _chosen_anew(weighing: Calibration, axis: int, index: Tensor, budget: float) -> Choice | None:
    """Of these steps or layers alone, within a share of dense; None where there is none."""
    if not cheapest_density(weighing) <= budget <= 1:
        return None
    errors = weighing.errors.index_select(axis, index)
    return replace(weighing, errors=errors).choose_within(budget)


def with_window(calibration: Calibration, window: tuple[int, int, int]) -> Calibration:
    """The calibration without the other windows of HIGH heads.

    Args:
        calibration: that measured it.
        window: of all HIGH heads.
    """
    candidates = calibration.candidates
    first = 1 + len(candidates.mid_tiles)
    place = first + candidates.windows.index(window)
    columns = torch.tensor([*range(first), place])
    kept: Tensor = torch.cat([columns, torch.tensor([calibration.errors.shape[-1]])])
    return replace(
        calibration,
        errors=calibration.errors[..., columns],
        costs=calibration.costs[kept],
        candidates=replace(candidates, windows=(window,)),
    )
