"""`freqformer simulate`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from freqformer.cli.console import errors
from freqformer.cli.documents import is_stdout, write_document

if TYPE_CHECKING:
    from freqformer.simulate.model.scenarios import Scenario
    from freqformer.simulate.model.simulation import Result

DEFAULT_TOKENS = "65536,131072,262144,524288,1048576"


@dataclass(frozen=True)
class _Outputs:
    """Where documents go; None writes none."""

    json: Path | None
    csv: Path | None
    html: Path | None
    figures: Path | None

    def __post_init__(self) -> None:
        piped = [f"--{name}" for name in ("json", "csv", "html") if is_stdout(getattr(self, name))]
        if len(piped) > 1:
            raise ValueError(
                f"{' and '.join(piped)} are both -; one of them can be written to stdout: name a "
                "file for others"
            )
        if is_stdout(self.figures):
            raise ValueError("--figures is -; a folder is allowed: charts are several files")

    @property
    def piped(self) -> bool:
        """Whether stdout belongs to a document, so that the table goes to stderr."""
        return any(map(is_stdout, (self.json, self.csv, self.html)))


def simulate(
    model: Annotated[
        str, typer.Option(help="A known model, or the path of a model's JSON file.")
    ] = "wan2.1-14b",
    hardware: Annotated[
        str, typer.Option(help="A known machine, or the path of a machine's JSON file.")
    ] = "h200",
    tokens: Annotated[
        str,
        typer.Option(
            "--tokens",
            "--lengths",
            help="Comma-separated numbers of tokens like 65536, 64K (65,536), 1M (1,048,576) or "
            "1e6, or durations like 5s, "
            "5s@720p or 60s@1080p/24 (frames per second).",
        ),
    ] = DEFAULT_TOKENS,
    preset: Annotated[
        str,
        typer.Option(
            help="What the attention layers do: `default`, the library's own (a window and a "
            "gated LOW branch in every "
            "head, soft routing); `paper`, the source's method (a third of the heads in each band, "
            "chosen by a router); `dense`; `training-free`, what `freqformer generate` makes of a "
            "trained dense model."
        ),
    ] = "default",
    setting: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="NAME=VALUE, as often as needed, of what is not as in the preset: a field of "
            "FreqFormerConfig, or "
            "routing, split, schedule, table, head_dim, efficiency, learned_summaries, "
            "low_branch; of training-free density, start_percent, end_percent, dense_blocks, "
            "min_tokens. For instance --set window=3,5,5 --set split=1,1,4.",
        ),
    ] = None,
    json_path: Annotated[
        Path | None, typer.Option("--json", help="Write everything as JSON; - for stdout.")
    ] = None,
    csv_path: Annotated[
        Path | None, typer.Option("--csv", help="Write one row per length as CSV; - for stdout.")
    ] = None,
    html_path: Annotated[
        Path | None, typer.Option("--html", help="Write the interactive report; - for stdout.")
    ] = None,
    figures: Annotated[
        Path | None, typer.Option(help="Write the charts as PNG files into this folder.")
    ] = None,
) -> None:
    """Simulate the cost of FreqFormer beside dense attention: time, memory and FLOPs for a model on
    a machine.

    FLOPs and bytes are exact counts of the plan; times come from a roofline fitted to
    measurements. Text encoder, VAE and what a pipeline loses between its operations are left out.

    \b
    Examples:
      freqformer simulate
      freqformer simulate --preset paper --tokens 64K,256K,1M
      freqformer simulate --model hunyuanvideo --hardware h100 --tokens 65536,262144 \\
          --html report.html
      freqformer simulate --tokens 5s@720p,60s@720p/24 --set window=3,5,5 --json out.json
      freqformer simulate --model wan2.2-a14b --tokens 5s,20s --preset training-free \\
          --set density=0.2
    """
    outputs = _Outputs(json_path, csv_path, html_path, figures)
    from rich.console import Console

    from freqformer.simulate.model.settings import Request, scenarios
    from freqformer.simulate.present.console import print_results

    cases = scenarios(Request(model, hardware, tokens, preset, setting or []))
    results = _simulated(cases)
    print_results(results, errors if outputs.piped else Console())
    _write_documents(results, outputs)


def _simulated(cases: Sequence[Scenario]) -> list[Result]:
    """The results of all cases, with a bar meanwhile."""
    from freqformer._progress import progress_bar
    from freqformer.simulate.model.simulation import simulate as simulate_case

    results = []
    with progress_bar("simulating", len(cases), counted="lengths", transient=True) as bar:
        for case in cases:
            results.append(simulate_case(case))
            bar.advance()
    return results


def _write_documents(results: list[Result], outputs: _Outputs) -> None:
    if outputs.csv:
        from freqformer.simulate.present.export import csv_text

        write_document(outputs.csv, csv_text(results))
    if not (outputs.json or outputs.html or outputs.figures):
        return
    from freqformer.simulate.model.scale_out import scale_out
    from freqformer.simulate.model.sensitivity import sensitivity

    middle = results[len(results) // 2]
    variants = sensitivity(middle.scenario)
    rows = scale_out(middle) if middle.scenario.machine.hardware.interconnect else []
    if outputs.json:
        from freqformer.simulate.present.export import document, json_text

        write_document(outputs.json, json_text(document(results, variants, rows)))
    if outputs.html:
        from freqformer.simulate.present.report import report_page

        write_document(outputs.html, report_page(results, variants, rows))
    if outputs.figures:
        from freqformer.simulate.present.charts import all_charts
        from freqformer.simulate.present.figures import write_figures

        write_figures(all_charts(results, variants, rows), outputs.figures)
