"""`freqformer calibrate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from freqformer.cli.options import Seed
from freqformer.cli.outputs import check_folder
from freqformer.cli.run_folder import clip_fields, load_pipeline, model_folder, training_data


def calibrate(
    model: Annotated[
        str, typer.Argument(help="Output folder of a training run of dense attention.")
    ],
    data: Annotated[
        str, typer.Argument(help="A video, a folder of videos, or 'synthetic' for moving sprites.")
    ] = "synthetic",
    *,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder for the routing table and the report.")
    ],
    tolerance: Annotated[
        float | None, typer.Option(help="Largest error of a head's output; 0.1 by default.")
    ] = None,
    flops: Annotated[
        float | None, typer.Option(help="Share of dense attention's FLOPs, and no tolerance.")
    ] = None,
    clips: Annotated[
        int,
        typer.Option(min=1, help="Clips to measure on, each in every part of the noise levels."),
    ] = 8,
    buckets: Annotated[
        int, typer.Option(min=1, help="Equal parts of the noise levels, each with its own bands.")
    ] = 10,
    mid_tiles: Annotated[
        str | None, typer.Option(help="Tile counts of MID to try; 8,16,32 where left out.")
    ] = None,
    window: Annotated[
        list[str] | None, typer.Option(help="A window of HIGH to try, like 3,3,3; may be repeated.")
    ] = None,
    seed: Seed = 0,
) -> None:
    """Choose an operator for every head of a trained dense model: the cheapest within a tolerance,
    without training.

    Writes a routing table, calibration.json and figures. The same command goes on where it stopped;
    with all clips measured, another --tolerance or --flops takes seconds.

    \b
    Examples:
      freqformer calibrate runs/dense --output table/ --flops 0.1
      freqformer calibrate runs/dense videos/ -o table/ --tolerance 0.2 --clips 16 \\
          --mid-tiles 8,16,32,64
      freqformer sample runs/dense -o new.mp4 --routing-table table/
    """
    check_folder(output)
    folder = model_folder(model)
    pipeline = load_pipeline(folder)
    trained = training_data(folder)

    from freqformer.calibration import Candidates
    from freqformer.calibration.command import calibrate_on_clips
    from freqformer.training.config import TrainConfig

    if pipeline.vae is not None or trained is None:
        raise ValueError(
            f"{model} is no training run on pixels; call freqformer.calibration.calibrate with "
            "your own clips"
        )
    usual = Candidates.usual(pipeline.transformer.frequency_config)
    counts = _whole_numbers("--mid-tiles", mid_tiles) if mid_tiles is not None else usual.mid_tiles
    windows: Any = tuple(_whole_numbers("--window", text) for text in window or ()) or usual.windows
    record = {"output": str(folder), "data": {**trained, **clip_fields(data)}}
    choice = calibrate_on_clips(
        pipeline.transformer,
        TrainConfig.from_dict(record).data,
        output,
        tolerance=tolerance,
        budget=flops,
        num_clips=clips,
        candidates=Candidates(usual.config, counts, windows),
        num_buckets=buckets,
        seed=seed,
    )
    for name, share in choice.table.shares.items():
        typer.echo(f"{name:>5}  {100 * share:5.1f}% of the heads")
    typer.echo(
        f"{100 * choice.cost:.1f}% of dense attention's FLOPs; no head's error was above "
        f"{choice.errors.max():.3g}"
    )
    typer.echo(f"next: freqformer sample {model} --output new.mp4 --routing-table {output}")


def _whole_numbers(option: str, text: str) -> tuple[int, ...]:
    """The whole numbers between commas."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts):
        raise ValueError(
            f"{option} is {text!r}; whole numbers between commas are allowed, like 3,3,3"
        )
    return tuple(int(part) for part in parts)
