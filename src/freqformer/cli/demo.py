"""`freqformer demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from freqformer.cli.console import errors
from freqformer.cli.options import Seed
from freqformer.cli.outputs import check_folder
from freqformer.cli.run_folder import model_folder
from freqformer.demo import TRAIN_SECONDS


def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the report.")] = Path(
        "demo"
    ),
    video: Annotated[
        Path | None, typer.Option(help="A video of at least 2 seconds; one is shipped.")
    ] = None,
    train_steps: Annotated[
        int | None,
        typer.Option(
            min=1, help="Training steps; 300 from a model, 800 from scratch where left out."
        ),
    ] = None,
    train_seconds: Annotated[
        float, typer.Option(min=1, help="Seconds of training at most.")
    ] = TRAIN_SECONDS,
    model: Annotated[
        str | None,
        typer.Option(
            help="Folder of an exported model to start from; the shipped one where left out."
        ),
    ] = None,
    seed: Seed = 0,
) -> None:
    """From a real video to a generated one: inspect, train a small model for three to four minutes,
    generate, report.

    It begins with the shipped model, which generates first. A version without one trains from
    scratch, and says so. In the end it says how similar the video is to the clip that it should
    give back, and whether the machine was fast enough for all training steps. Everything is shown
    in OUTPUT/index.html, which opens from disk.

    \b
    Examples:
      freqformer demo
      freqformer demo --video holiday.mp4 --train-steps 1500 --train-seconds 900 \\
          --output holiday-demo
    """
    check_folder(output)

    from freqformer.demo.run import run_demo
    from freqformer.demo.shipped import shipped_model

    start = shipped_model() if model is None else model_folder(model)
    if start is None:
        errors.print("no model comes with this version: a small one is trained from scratch")
    page = run_demo(
        output,
        video=video,
        model=start,
        train_steps=train_steps,
        train_seconds=train_seconds,
        seed=seed,
        say=errors.print,
    )
    typer.echo(f"open {page.resolve().as_uri()}")
