"""How cost moves with each setting, the others left alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from freqformer.config import Band
from freqformer.patterns import FIXED_PATTERNS
from freqformer.routing import RoutingTable
from freqformer.simulate.model.scenarios import Scenario
from freqformer.simulate.model.simulation import Result, simulate

KNOBS: dict[str, tuple[Any, ...]] = {
    "compression": (8, 16, 32, 64, 128),
    "mid_tiles": (4, 8, 16, 32, 64, 128),
    "window": ((1, 1, 1), (1, 3, 3), (3, 3, 3), (3, 5, 5), (5, 5, 5)),
    "split": ((1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 1), (1, 1, 2), (2, 1, 1)),
    "head_dim": (64, 128),
    "density": (0.1, 0.15, 0.2, 0.3, 0.5),
}
"""Settings and their values; `split` is heads in LOW, MID and HIGH, in proportion."""


@dataclass(frozen=True)
class Variant:
    """One setting changed."""

    knob: str
    value: Any
    result: Result

    @property
    def label(self) -> str:
        """The value as text: sides of a window as 3x3x3, parts of a split as 1:1:4."""
        between = ":" if self.knob == "split" else "x"
        return (
            between.join(map(str, self.value)) if isinstance(self.value, tuple) else str(self.value)
        )


def sensitivity(case: Scenario) -> list[Variant]:
    """Simulate a scenario with every value of every knob that acts on it.

    Dense attention has no bands, and of a trained dense model the density alone acts; a list length
    acts on MID heads and a window on HIGH heads, so that those knobs are left out where no head is
    in the band; heads of another size are not those that a table gives bands to.
    """
    return list(_variants(case))


def _variants(case: Scenario) -> Iterator[Variant]:
    for knob, values in KNOBS.items():
        if not _acts(case, knob):
            continue
        for value in values:
            if knob == "head_dim" and case.model.width % value:
                continue
            yield Variant(knob, value, simulate(_changed(case, knob, value)))


def _acts(case: Scenario, knob: str) -> bool:
    """Whether a knob changes anything."""
    if knob == "head_dim":
        return case.routing.table is None
    if knob == "density" or case.dials is not None:
        return knob == "density" and case.dials is not None
    if case.runs_dense:
        return False
    if knob == "split":
        return case.attention == "frequency"
    table = case.routing.table
    bands = set(case.initial if table is None else table.bands.unique().tolist())
    if knob == "mid_tiles":
        return Band.MID in bands and case.config.mid_pattern == "topk"
    if knob == "window":
        pattern = FIXED_PATTERNS.get(case.config.mid_pattern)
        in_mid = pattern is not None and pattern.reads == "window"
        return Band.HIGH in bands or (Band.MID in bands and in_mid)
    return True


def _changed(case: Scenario, knob: str, value: Any) -> Scenario:
    """The scenario with one setting changed, in its table too where it has one."""
    if knob == "head_dim":
        return replace(case, model=case.model.with_head_dim(value))
    if knob == "density" and case.dials is not None:
        return replace(case, dials=replace(case.dials, density=value))
    table = case.routing.table
    if knob == "split":
        return replace(case, routing=replace(case.routing, split=value, table=None))
    changed = replace(case, config=replace(case.config, **{knob: value}))
    if table is None:
        return changed
    kept = (
        table.mid_tiles.new_full(table.mid_tiles.shape, value)
        if knob == "mid_tiles"
        else table.mid_tiles
    )
    return replace(
        changed,
        routing=replace(
            case.routing,
            table=RoutingTable(table.bands, kept, replace(table.config, **{knob: value})),
        ),
    )
