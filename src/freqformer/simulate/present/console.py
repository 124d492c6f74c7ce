"""What the simulator prints: results as a table, and how far to trust them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from freqformer._optional import needs
from freqformer.simulate.model.simulation import Result
from freqformer.simulate.present.describe import (
    LEFT_OUT,
    dense_rate_note,
    efficiency_notes,
    fit_note,
    preset_title,
    settings,
)
from freqformer.simulate.present.units import duration, memory

if TYPE_CHECKING:
    from rich.console import Console

    from freqformer.simulate.model.fit import Fit

SHOWN_SETTINGS = (
    *("split", "routing", "schedule", "learned summaries", "low branch", "attention"),
    *("density", "banded steps", "dense blocks", "min tokens"),
)
"""What the table's head says of the settings; the report and the JSON have all of them."""


def print_results(results: Sequence[Result], console: Console) -> None:
    """Print one row per length, and notes on where the figures come from."""
    with needs("cli"):
        from rich.box import SIMPLE
        from rich.table import Table

    case = results[0].scenario
    title = (
        f"{case.model.title} on {case.machine.hardware.title}, {preset_title(case)}: forward, and "
        "how "
        "much faster than dense attention"
    )
    console.print(title, highlight=False)
    for name, text in settings(case).items():
        if name in SHOWN_SETTINGS:
            console.print(f"  {name}: {text}", highlight=False)
    table = Table(box=SIMPLE)
    for name in ("tokens\ngrid", "video", "FLOPs", "layer", "step", "generation", "memory"):
        table.add_column(name, justify="right", no_wrap=True)
    for result in results:
        levels = (result.layer, result.step, result.generation)
        table.add_row(
            f"{result.scenario.tokens:,}\n{'x'.join(map(str, result.scenario.grid.shape))}",
            f"{result.scenario.seconds_of_video:.1f} s",
            f"{result.density:.2%}",
            *(f"{duration(level.seconds)}\n{level.speedup:.1f}x" for level in levels),
            memory(result.step.peak_memory_bytes) + ("" if result.fits_memory else " (!)"),
        )
    console.print(table)
    print_notes(results, console)


def print_notes(results: Sequence[Result], console: Console) -> None:
    """Print what the figures mean and how far to trust them."""
    efficiency = results[0].scenario.machine.efficiency
    console.print(
        "FLOPs: attention's, of dense attention's. Layer: one attention layer from projected "
        "queries, keys and values.",
        highlight=False,
    )
    console.print(f"{dense_rate_note(results[0])} {LEFT_OUT}", highlight=False)
    for note in efficiency_notes(results[0]):
        console.print(note, style="yellow", highlight=False)
    if efficiency.fit and not efficiency.transferred:
        console.print(fit_note(efficiency.fit), highlight=False)
    if not all(result.fits_memory for result in results):
        console.print(
            "(!) more than the machine's memory: several machines would have to share it.",
            highlight=False,
        )


def print_fit(fit: Fit, console: Console) -> None:
    """Print every measurement beside its prediction, and the fitted values."""
    with needs("cli"):
        from rich.box import SIMPLE
        from rich.table import Table

    table = Table(title="Predicted against measured", title_justify="left", box=SIMPLE)
    for name in ("measurement", "tokens", "measured", "predicted", "error", ""):
        table.add_column(name, justify="left" if name == "measurement" else "right")
    for row in fit.comparisons:
        one = row.measurement
        table.add_row(
            one.name,
            f"{one.tokens:,}",
            duration(one.seconds),
            duration(row.predicted_s),
            f"{row.predicted_s / one.seconds - 1:+.1%}",
            "held out" if row.held_out else "",
        )
    console.print(table)
    for name, source in fit.efficiency.sources.items():
        if source.startswith("fitted"):
            console.print(f"{name}: {getattr(fit.efficiency, name):g}", highlight=False)
    console.print(fit_note(fit.efficiency.fit), highlight=False)
