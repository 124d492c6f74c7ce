"""`freqformer simulate`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from freqformer.simulate.scenarios import Result, Scenario

DEFAULT_TOKENS = "65536,131072,262144,524288,1048576"
OTHER_SETTINGS = ("split", "schedule", "live", "table", "head_dim", "calibration", "learned_summaries", "low_beside")
SWITCHES = ("live", "learned_summaries", "low_beside")
TEXTS = ("schedule", "table", "calibration")


def simulate(
    model: Annotated[str, typer.Option(help="A known model, or the path of a model's JSON file.")] = "wan2.1-14b",
    hardware: Annotated[str, typer.Option(help="A known machine, or the path of a machine's JSON file.")] = "h200",
    tokens: Annotated[
        str,
        typer.Option(
            "--tokens",
            "--lengths",
            help="Comma-separated numbers of tokens, or durations like 5s, 5s@720p or 60s@1080p/24 (frames per second).",
        ),
    ] = DEFAULT_TOKENS,
    setting: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="NAME=VALUE, as often as needed: a field of FreqFormerConfig, or split, schedule, live, table, head_dim, "
            "calibration, learned_summaries, low_beside. For instance --set mid_tiles=32 --set split=1,1,4.",
        ),
    ] = None,
    json_path: Annotated[Path | None, typer.Option("--json", help="Write everything as JSON.")] = None,
    csv_path: Annotated[Path | None, typer.Option("--csv", help="Write one row per length as CSV.")] = None,
    html_path: Annotated[Path | None, typer.Option("--html", help="Write the interactive report.")] = None,
    figures: Annotated[Path | None, typer.Option(help="Write the charts as PNG files into this folder.")] = None,
) -> None:
    """Simulate the cost of FreqFormer beside dense attention: time, memory and FLOPs for a model on a machine.

    FLOPs and bytes are exact counts of the plan; times come from a roofline calibrated on measurements. Text encoder and
    VAE are left out.

    \b
    Examples:
      freqformer simulate
      freqformer simulate --model hunyuanvideo --hardware h100 --tokens 65536,262144 --html report.html
      freqformer simulate --tokens 5s@720p,60s@720p/24 --set mid_tiles=32 --json out.json --csv out.csv
    """
    from freqformer.simulate.scenarios import simulate as simulate_case

    cases = _cases(model, hardware, tokens, setting or [])
    results = [simulate_case(case) for case in _progress(cases)]
    _print_results(results)
    if json_path or html_path or figures:
        _write_documents(results, json_path, html_path, figures)
    if csv_path:
        from freqformer.simulate.export import write_csv

        write_csv(csv_path, results)


def _cases(model: str, hardware: str, lengths: str, settings: Sequence[str]) -> list[Scenario]:
    from freqformer.config import FreqFormerConfig
    from freqformer.simulate.allocations import Routing
    from freqformer.simulate.profiles import ProfileError
    from freqformer.simulate.scenarios import scenario

    config: dict[str, Any] = {}
    other: dict[str, Any] = {}
    known = {field.name for field in fields(FreqFormerConfig)}
    for item in settings:
        name, separator, text = item.partition("=")
        if not separator or name not in known | set(OTHER_SETTINGS):
            raise ProfileError(
                f"setting is {item!r}; NAME=VALUE with one of {', '.join(sorted(known) + list(OTHER_SETTINGS))} is allowed"
            )
        value = text if name in TEXTS else _value(text)
        if name in SWITCHES and not isinstance(value, bool):
            raise ProfileError(f"{name} is {text!r}; true and false are allowed")
        (config if name in known else other)[name] = value
    routing = Routing(
        split=other.get("split"),
        schedule=other.get("schedule", "prior"),
        live=other.get("live", False),
        table=_table(other.get("table")),
    )
    wanted = [part.strip() for part in lengths.split(",") if part.strip()]
    if not wanted:
        raise ProfileError("tokens is empty; numbers of tokens or durations, separated by commas, are allowed")
    return [
        replace(
            scenario(
                model,
                hardware,
                length,
                config=FreqFormerConfig.from_dict(config),
                routing=routing,
                head_dim=other.get("head_dim"),
                calibration=other.get("calibration"),
            ),
            learned_summaries=other.get("learned_summaries", True),
            low_beside=other.get("low_beside", False),
        )
        for length in wanted
    ]


def _value(text: str) -> Any:
    """A setting's value: JSON where it is some, numbers separated by commas as a tuple, and text otherwise."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        pass
    try:
        return tuple(json.loads(f"[{text}]"))
    except json.JSONDecodeError:
        return text


def _table(folder: str | None) -> Any:
    if folder is None:
        return None
    from freqformer.routing import RoutingTable

    return RoutingTable.load(folder)


def _progress(cases: Sequence[Scenario]) -> Any:
    from rich.progress import track

    return track(cases, description="simulating", transient=True)


def _write_documents(results: list[Result], json_path: Path | None, html_path: Path | None, figures: Path | None) -> None:
    from freqformer.simulate.scale_out import scale_out
    from freqformer.simulate.sensitivity import sensitivity

    middle = results[len(results) // 2]
    variants = sensitivity(middle.scenario)
    rows = scale_out(middle) if middle.scenario.machine.hardware.interconnect else []
    if json_path:
        from freqformer.simulate.export import document, write_json

        write_json(json_path, document(results, variants, rows))
    if html_path:
        from freqformer.simulate.report import write_report

        write_report(html_path, results, variants, rows)
    if figures:
        from freqformer.simulate.charts import all_charts
        from freqformer.simulate.figures import write_figures

        write_figures(all_charts(results, variants, rows), figures)


def _print_results(results: Sequence[Result]) -> None:
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table

    from freqformer.simulate.report import calibration_notes, fit_note
    from freqformer.simulate.units import duration, memory

    case = results[0].scenario
    title = f"{case.model.title} on {case.machine.hardware.title}, forward, and how much faster than dense attention"
    if case.low_beside:
        title += "; every head with a gated LOW branch beside its own"
    table = Table(title=title, title_justify="left", box=SIMPLE)
    for name in ("tokens", "grid", "video", "attention layer", "step", "generation", "memory"):
        table.add_column(name, justify="right")
    for result in results:
        layer, step, whole = result.layer, result.step, result.generation
        peak = memory(step.peak_memory_bytes)
        if step.peak_memory_bytes > case.machine.hardware.memory_bytes:
            peak += " (!)"
        table.add_row(
            f"{result.scenario.tokens:,}",
            "x".join(map(str, result.scenario.grid.shape)),
            f"{result.scenario.seconds_of_video:.1f} s",
            f"{duration(layer.seconds)}\n{layer.speedup:.1f}x",
            f"{duration(step.seconds)}\n{step.speedup:.1f}x",
            f"{duration(whole.seconds)}\n{whole.speedup:.1f}x",
            peak,
        )
    console = Console()
    console.print(table)
    for note in calibration_notes(results[0]):
        console.print(note, style="yellow", highlight=False)
    if case.machine.calibration.fit and not case.machine.calibration.transferred:
        console.print(fit_note(case.machine.calibration.fit), highlight=False)
    if any(result.step.peak_memory_bytes > case.machine.hardware.memory_bytes for result in results):
        console.print("(!) more than the machine's memory: several machines would have to share it.", highlight=False)
