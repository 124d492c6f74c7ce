"""The commands put together: what they share, and how their errors end."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from typing import Annotated, Any, TextIO

import typer
from rich.logging import RichHandler
from typer.core import TyperGroup

from freqformer import __version__
from freqformer._interrupt import Interrupted, raising
from freqformer.cli.cache import cache
from freqformer.cli.calibrate import calibrate
from freqformer.cli.console import INTERRUPTED, USER_ERROR, errors
from freqformer.cli.convert import convert
from freqformer.cli.demo import demo
from freqformer.cli.doctor import doctor
from freqformer.cli.export import export
from freqformer.cli.fit_hardware import calibrate_hardware, fit_hardware
from freqformer.cli.generate import generate
from freqformer.cli.inspect import inspect
from freqformer.cli.sample import sample
from freqformer.cli.simulate import simulate
from freqformer.cli.train import train


class _TidyGroup(TyperGroup):
    """Commands whose errors are one line and an exit code, not a traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            with raising():
                return super().invoke(ctx)
        except KeyboardInterrupt as error:
            # Raised by a signal, it says what was kept and how to go on.
            text = str(error) or "stopped: nothing half-written is left"
            errors.print(text, style="yellow", markup=False, highlight=False)
            status = error.exit_status if isinstance(error, Interrupted) else INTERRUPTED
            raise typer.Exit(status) from None
        except (ValueError, OSError) as error:
            if ctx.params.get("traceback"):
                raise
            errors.print("error:", style="bold red", end=" ")
            errors.print(str(error), markup=False, highlight=False)
            raise typer.Exit(USER_ERROR) from error


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """As `warnings.showwarning`; what has a new name is told in one line, without a place in the
    code."""
    if not issubclass(category, FutureWarning):
        print(warnings.formatwarning(message, category, filename, lineno, line), file=sys.stderr)
        return
    errors.print("warning:", style="bold yellow", end=" ")
    errors.print(str(message), markup=False, highlight=False)


app = typer.Typer(
    cls=_TidyGroup,
    name="freqformer",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"freqformer {__version__}")
        raise typer.Exit


@app.callback()
def main(
    traceback: Annotated[
        bool, typer.Option("--traceback", help="Show where an error came from.")
    ] = False,
    verbose: Annotated[
        bool,
        typer.Option("--verbose", help="Log what is chosen, like the attention's implementation."),
    ] = False,
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """Frequency-banded attention for long video diffusion transformers.

    \b
    Examples:
      freqformer demo                                 a real video in, a generated one out
      freqformer inspect holiday.mp4                  what each band of a video holds
      freqformer train videos/ --output runs/first    train on a folder of videos
      freqformer cache videos/ --vae wan/ -o cache/   latents and text, to train on
      freqformer sample runs/first --output new.mp4   generate
      freqformer export runs/first -o model/          a small model folder with a card, to ship
      freqformer calibrate runs/dense -o table/       bands for a dense model, without training
      freqformer convert cache/ --pipeline wan/ ...   a dense model, trained to need less attention
      freqformer generate --pipeline wan/ ...         a pipeline of diffusers, sooner
      freqformer simulate --hardware h100             what attention costs on a GPU
      freqformer doctor                               what runs on this machine, and is it right
    """
    # OpenMP reads this when torch is imported, which no command has done yet. Threads that wait by
    # spinning take the cores from those that work: beside other load, `sample` used six times the
    # processor time.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    warnings.showwarning = _show_warning
    logging.basicConfig(
        level=logging.INFO if verbose else logging.WARNING,
        format="%(message)s",
        handlers=[RichHandler(console=errors, show_time=False, show_path=False)],
    )


app.command("cache")(cache)
app.command("train")(train)
app.command("sample")(sample)
app.command("calibrate")(calibrate)
app.command("convert")(convert)
app.command("generate")(generate)
app.command("inspect")(inspect)
app.command("demo")(demo)
app.command("export")(export)
app.command("doctor")(doctor)
app.command("simulate")(simulate)
app.command("fit-hardware")(fit_hardware)
app.command("calibrate-hardware", hidden=True)(calibrate_hardware)
