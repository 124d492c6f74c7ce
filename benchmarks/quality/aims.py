"""What the default is held to, beside what was measured."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.quality.report import Result, by_variant, is_usual, mean, overall, tokens_of
from benchmarks.quality.sizes import SIZES, USUAL
from benchmarks.quality.summary import (
    DEFAULT,
    DENSE,
    LONG,
    PUBLISHED,
    SAME_HEADS,
    STEPS,
    Groups,
    best_rates,
    losses,
    paired_ratio,
    step_times,
    usual_way,
)

LONGER_STEPS = 11200


@dataclass(frozen=True)
class Aim:
    """One ratio, which is to be at most a number."""

    about: str
    at_most: float
    measured: float | None
    """None where its runs are missing."""

    @property
    def row(self) -> str:
        """As a row of a table."""
        if self.measured is None:
            return f"| {self.about} | {self.at_most:g} | – | not run |"
        verdict = "yes" if self.measured <= self.at_most else "no"
        return f"| {self.about} | {self.at_most:g} | {self.measured:.3f} | {verdict} |"


def aims_table(results: list[Result]) -> str:
    """Every aim, a row each."""
    groups, longer = by_variant(results, STEPS), by_variant(results, LONGER_STEPS)
    published = [name for name in groups if name in PUBLISHED]
    best = best_rates(results)
    tuned = best[DEFAULT].loss / best[DENSE].loss if {DEFAULT, DENSE} <= best.keys() else None
    aims = [
        Aim(f"loss over that of `{DENSE}`", 0.97, paired_ratio(groups, DENSE)),
        Aim(f"the same, each at its best learning rate, seed 0 (`{DENSE}`)", 0.97, tuned),
        *(
            Aim(f"loss over that of `{name}`", 0.985, paired_ratio(groups, name))
            for name in published
        ),
        Aim(
            f"loss over that without router, `{SAME_HEADS}`",
            0.995,
            paired_ratio(groups, SAME_HEADS),
        ),
        Aim(f"the same after {LONGER_STEPS:,} steps", 1.0, paired_ratio(longer, SAME_HEADS)),
        Aim(f"GPU seconds to the last loss of `{DENSE}`", 0.4, _seconds_ratio(results, USUAL)),
        Aim("the same at 65,536 tokens", 0.1, _seconds_ratio(results, LONG)),
    ]
    head = f"| the default, `{DEFAULT}` | at most | measured | reached |\n|---|---|---|---|"
    return "\n".join([head, *(aim.row for aim in aims)])


def _seconds_ratio(results: list[Result], size: str) -> float | None:
    """The least GPU seconds of a whole run of the default that ends below the loss of dense
    attention's longest usual run, over those of that run; None where there is none."""
    tokens = SIZES[size].grid.num_tokens
    usual = [one for one in results if tokens_of(one) == tokens and is_usual(one)]
    limit = STEPS if size == USUAL else max((one["steps"] for one in usual), default=0)
    dense = [one for one in usual if one["variant"] == DENSE and one["steps"] == limit]
    own = [one for one in usual if one["variant"] == DEFAULT]
    if not dense or not own:
        return None
    goal = mean([overall(one["losses"]) for one in dense]).value
    every: Groups = {
        name: dict(enumerate(one for one in usual if one["variant"] == name))
        for name in (DEFAULT, DENSE)
    }
    step = step_times(every, usual_way(by_variant(usual, max(one["steps"] for one in own), tokens)))
    reached = [
        steps
        for steps in {one["steps"] for one in own}
        if losses(by_variant(usual, steps, tokens)[DEFAULT]).value <= goal
    ]
    if not reached or not {DEFAULT, DENSE} <= step.keys():
        return None
    return min(reached) * step[DEFAULT] / (limit * step[DENSE])
