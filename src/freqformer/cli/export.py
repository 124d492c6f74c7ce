"""`freqformer export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from freqformer.cli.outputs import check_folder


def export(
    run: Annotated[Path, typer.Argument(help="Output folder of a training run that is done.")],
    output: Annotated[
        Path,
        typer.Option("--output", "-o", help="Folder for the model; an earlier export is replaced."),
    ],
) -> None:
    """Make a model to ship of a finished run: averaged weights in bfloat16, at most 6 MB, with a
    card.

    The card (README.md) is filled from the run's own records, and from what is measured on the
    exported weights.

    \b
    Examples:
      freqformer export runs/first --output model/
    """
    check_folder(output)

    from freqformer.training.export import export_model

    typer.echo(
        f"wrote {export_model(run, output)}\nnext: freqformer sample {output} --output new.mp4"
    )
