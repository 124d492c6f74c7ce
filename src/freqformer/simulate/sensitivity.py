"""How cost moves with each setting, the others left alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from freqformer.simulate.scenarios import Result, Scenario, simulate

KNOBS: dict[str, tuple[Any, ...]] = {
    "compression": (8, 16, 32, 64, 128),
    "mid_tiles": (4, 8, 16, 32, 64, 128),
    "window": ((1, 1, 1), (1, 3, 3), (3, 3, 3), (3, 5, 5), (5, 5, 5)),
    "split": ((1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 1), (1, 1, 2), (2, 1, 1)),
    "head_dim": (64, 128),
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
        """The value as text."""
        return "x".join(map(str, self.value)) if isinstance(self.value, tuple) else str(self.value)


def sensitivity(case: Scenario) -> list[Variant]:
    """Simulate a scenario with every value of every knob."""
    return list(_variants(case))


def _variants(case: Scenario) -> Iterator[Variant]:
    for knob, values in KNOBS.items():
        for value in values:
            if knob == "head_dim":
                if case.model.width % value:
                    continue
                changed = replace(case, model=case.model.with_head_dim(value))
            elif knob == "split":
                changed = replace(case, routing=replace(case.routing, split=value, table=None))
            else:
                changed = replace(case, config=replace(case.config, **{knob: value}))
            yield Variant(knob, value, simulate(changed))
