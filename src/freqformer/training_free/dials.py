"""What a user sets: how much is computed, and when the model keeps its own attention."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from freqformer._validate import check_choice, check_number, check_whole
from freqformer.routing import RoutingTable
from freqformer.training_free.schedule import DENSITY_SCHEDULES, DensitySchedule

DENSITY = 0.2
START_PERCENT = 0.2
MIN_TOKENS = 12_288
LEAST_DENSITY = 0.001
"""Below it no grid can be served: summaries and the own tile cost more."""


@dataclass(frozen=True)
class Dials:
    """The dials of `enable_frequency_attention`, checked, each with its value."""

    density: float | None
    """Of the preset; None where a table or an adapter says what heads do."""
    start_percent: float
    end_percent: float
    dense_blocks: tuple[int, int]
    min_tokens: int
    density_schedule: DensitySchedule | None = None
    """Of the preset; None takes "falling" where the sampler's steps are known."""

    @property
    def by_step(self) -> bool:
        """Whether some steps of the sampler are left to the model."""
        return self.start_percent > 0 or self.end_percent < 1


def checked_dials(
    table: RoutingTable | Mapping[str, RoutingTable] | None = None,
    density: Any = None,
    percents: tuple[Any, Any] = (None, 1.0),
    dense_blocks: Any = (0, 0),
    min_tokens: Any = None,
    *,
    density_schedule: Any = None,
    adapter: bool = False,
) -> Dials:
    """The dials with their defaults, which a table sets to nothing: it has guards of its own. So
    does an adapter, which was trained at all noise levels.

    Args:
        table, density, dense_blocks, min_tokens, density_schedule: as in
            `enable_frequency_attention`.
        percents: start_percent and end_percent.
        adapter: whether an adapter says what heads do.

    Raises:
        ValueError: for values out of range, or a density or its schedule beside a table or an
            adapter.
    """
    for one in table.values() if isinstance(table, Mapping) else (table,):
        if one is not None and not isinstance(one, RoutingTable):
            raise ValueError(
                f"table is a {type(one).__name__}; a RoutingTable is allowed: make one, read it "
                "with RoutingTable.load(folder), or leave it out and give a density"
            )
    preset = table is None and not adapter
    _check_alone(preset, adapter, density=density, density_schedule=density_schedule)
    if density_schedule is not None:
        check_choice("density_schedule", density_schedule, DENSITY_SCHEDULES)
    if preset:
        density = DENSITY if density is None else density
        check_number("density", density, LEAST_DENSITY, 1, "0.2 computes a fifth of attention")
    start, end = percents
    if start is None:
        start = START_PERCENT if preset else 0.0
    check_number("start_percent", start, 0, 1, "0.2 leaves the first fifth of the steps dense")
    check_number("end_percent", end, 0, 1, "1 leaves no last step dense")
    if start >= end:
        raise ValueError(
            f"start_percent is {start} and end_percent {end}, which leaves no step between them; "
            "start_percent < end_percent is allowed"
        )
    if min_tokens is None:
        min_tokens = MIN_TOKENS if preset else 0
    check_whole("min_tokens", min_tokens, 0, "video tokens below which nothing changes")
    return Dials(density, start, end, _pair(dense_blocks), min_tokens, density_schedule)


def tables_by_part(
    table: RoutingTable | Mapping[str, RoutingTable] | None, parts: tuple[str, ...]
) -> dict[str, RoutingTable | None]:
    """The table of every transformer: the same for all, or each its own.

    Args:
        table: as in `enable_frequency_attention`.
        parts: names of the transformers in their pipeline; "" is one that was passed itself.

    Raises:
        ValueError: for tables of other transformers.
    """
    if not isinstance(table, Mapping):
        return dict.fromkeys(parts, table)
    if parts == ("",) and len(table) == 1:
        return {"": next(iter(table.values()))}
    if set(table) != set(parts):
        raise ValueError(
            f"table is for {', '.join(table) or 'nothing'}, and {', '.join(parts)} are to be "
            "enabled; one table for each of them is allowed: calibrate this pipeline, or pass the "
            "table of the transformer"
        )
    return {part: table[part] for part in parts}


def _check_alone(preset: bool, adapter: bool, **given: Any) -> None:
    """Raise ValueError for a dial of the preset beside what takes its place."""
    for name, value in given.items():
        if not preset and value is not None:
            what = "an adapter" if adapter else "a table"
            raise ValueError(
                f"{name} is {value!r} beside {what}, which says itself what every head does; one "
                "of the two is allowed: leave one out"
            )


def _pair(blocks: Any) -> tuple[int, int]:
    if not isinstance(blocks, tuple | list) or len(blocks) != 2:
        raise ValueError(
            f"dense_blocks is {blocks!r}; how many first and how many last blocks stay dense is "
            "allowed, like (1, 1)"
        )
    for count in blocks:
        check_whole("dense_blocks", count, 0, "how many first and last blocks stay dense")
    first, last = blocks
    return (first, last)
