"""`freqformer fit-hardware`."""

from __future__ import annotations

from functools import wraps
from pathlib import Path
from typing import Annotated, Any

import typer

from freqformer._renamed import warn_renamed
from freqformer.cli.console import errors
from freqformer.cli.documents import is_stdout, write_document

MOST_DIGITS = 12


def fit_hardware(
    results: Annotated[
        list[Path] | None, typer.Argument(help="JSON files that the benchmarks wrote.")
    ] = None,
    hardware: Annotated[str, typer.Option(help="The machine that they were measured on.")] = "h200",
    hold_out: Annotated[
        str, typer.Option(help="Comma-separated numbers of tokens that the fit does not see.")
    ] = "",
    output: Annotated[
        Path | None, typer.Option(help="Write the efficiency here as JSON; - for stdout.")
    ] = None,
    measure_cpu: Annotated[
        Path | None,
        typer.Option(
            help=(
                "Instead, measure this machine's processor and write its profile here; - for "
                "stdout."
            )
        ),
    ] = None,
) -> None:
    """Fit what kernels achieve from committed benchmark results, and say how well the model
    predicts the rest.

    \b
    Examples:
      cd benchmarks/results
      freqformer fit-hardware kernel.json layer.json backward.json \\
          --hold-out 75600,131072,1048576 --output h200.json
      freqformer fit-hardware distributed/*.json --output several.json
      freqformer fit-hardware eager_cpu.json --hardware cpu --output cpu.json
      freqformer fit-hardware --measure-cpu cpu.json
    """
    if measure_cpu is not None:
        from freqformer.simulate.model.processor import cpu_profile_text

        write_document(measure_cpu, cpu_profile_text())
        return
    from rich.console import Console

    from freqformer.simulate.model.efficiency import load_efficiency
    from freqformer.simulate.model.fit import efficiency_text, fit_efficiency
    from freqformer.simulate.model.hardware import load_hardware
    from freqformer.simulate.model.measurements import read_peaks, read_results, read_shares
    from freqformer.simulate.model.profiles import ProfileError
    from freqformer.simulate.model.roofline import Machine
    from freqformer.simulate.present.console import print_fit

    if not results:
        raise ProfileError(
            "results is empty; give the JSON files of benchmarks/results, or --measure-cpu FILE"
        )
    held = [_whole("hold-out", part) for part in hold_out.split(",") if part]
    machine = load_hardware(hardware)
    measurements = read_results(results, machine)
    fit = fit_efficiency(
        measurements,
        Machine(machine, load_efficiency(machine)),
        held,
        read_peaks(results),
        read_shares(results),
    )
    print_fit(fit, errors if is_stdout(output) else Console())
    if output is not None:
        write_document(output, efficiency_text(fit.efficiency))


@wraps(fit_hardware)
def calibrate_hardware(*given: Any, **named: Any) -> None:
    warn_renamed("calibrate-hardware", "fit-hardware")
    fit_hardware(*given, **named)


def _whole(name: str, text: str) -> int:
    from freqformer.simulate.model.profiles import ProfileError

    # More digits than a count of tokens has are no count; int() refuses very many with words of its
    # own.
    if not text.strip().isdecimal() or len(text.strip()) > MOST_DIGITS:
        raise ProfileError(
            f"{name} is {text[:80]!r}; whole numbers separated by commas are allowed"
        )
    return int(text)
