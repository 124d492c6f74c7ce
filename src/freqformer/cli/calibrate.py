"""`freqformer calibrate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from freqformer.cli.calibrate_pipeline import PipelineOptions, calibrate_a_pipeline
from freqformer.cli.options import Device, Seed
from freqformer.cli.outputs import check_folder
from freqformer.cli.run_folder import clip_fields, load_pipeline, model_folder, training_data


def calibrate(
    model: Annotated[
        str | None, typer.Argument(help="Output folder of a training run of dense attention.")
    ] = None,
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
    pipeline: Annotated[
        str | None,
        typer.Option(
            metavar="FOLDER|NAME",
            help="In place of MODEL: a pipeline of diffusers, or its name on the hub.",
        ),
    ] = None,
    prompts: Annotated[
        Path | None, typer.Option(help="Of a pipeline: a text file, one prompt a line.")
    ] = None,
    density: Annotated[
        float | None,
        typer.Option(help="Of a pipeline: share of dense attention's FLOPs.  [default: 0.2]"),
    ] = None,
    frames: Annotated[int | None, typer.Option(min=1, help="Of a pipeline: frames.")] = None,
    size: Annotated[
        tuple[int, int] | None,
        typer.Option(metavar="HEIGHT WIDTH", help="Of a pipeline: pixels."),
    ] = None,
    steps: Annotated[
        int | None, typer.Option(min=2, help="Of a pipeline: denoising steps.  [default: 8]")
    ] = None,
    start_percent: Annotated[
        float | None,
        typer.Option(help="Of a pipeline: share of the first steps that stay dense. [default: 0]"),
    ] = None,
    trials: Annotated[
        int | None,
        typer.Option(min=0, help="Of a pipeline: tables that are tried.  [default: 16]"),
    ] = None,
    guidance: Annotated[float | None, typer.Option(help="Of a pipeline: guidance scale.")] = None,
    dtype: Annotated[
        Literal["bfloat16", "float16", "float32"] | None,
        typer.Option(help="Of a pipeline's weights.  [default: bfloat16]"),
    ] = None,
    offload: Annotated[
        Literal["none", "model", "sequential"] | None,
        typer.Option(help="Of a pipeline: what waits in the computer's memory. [default: none]"),
    ] = None,
    device: Device = None,
) -> None:
    """Choose an operator for every head of a trained dense model, without training.

    A pipeline of diffusers is measured on prompts: density goes to the steps, layers and heads
    whose errors move the video most, and the nearest of several tables is taken. A training run of
    this library is measured on clips: every head the cheapest operator within a tolerance. Writes
    routing tables, a record and figures. The same command goes on where it stopped; with all
    measured, another budget takes seconds, of a pipeline its trials.

    \b
    Examples:
      freqformer calibrate runs/dense --output table/ --flops 0.1
      freqformer calibrate runs/dense videos/ -o table/ --tolerance 0.2 --clips 16 \\
          --mid-tiles 8,16,32,64
      freqformer calibrate --pipeline wan/ --prompts prompts.txt --density 0.2 -o table/ \\
          --frames 81 --size 480 832
      freqformer sample runs/dense -o new.mp4 --routing-table table/
    """
    check_folder(output)
    if pipeline is not None:
        _refuse(
            {"MODEL": model, "--flops": flops, "--mid-tiles": mid_tiles, "--window": window},
            "with --pipeline",
        )
        if prompts is None:
            raise ValueError("--pipeline is given without --prompts; name a file with prompts")
        calibrate_a_pipeline(
            PipelineOptions(
                pipeline,
                prompts,
                output,
                density=density,
                tolerance=tolerance,
                frames=frames,
                size=size,
                steps=8 if steps is None else steps,
                start_percent=0.0 if start_percent is None else start_percent,
                trials=16 if trials is None else trials,
                guidance=guidance,
                seed=seed,
                dtype=dtype or "bfloat16",
                offload=offload or "none",
                device=device,
            )
        )
        return
    if model is None:
        raise ValueError("MODEL is missing; name a training run, or a pipeline by --pipeline")
    _refuse(
        {
            "--prompts": prompts,
            "--density": density,
            "--frames": frames,
            "--size": size,
            "--guidance": guidance,
            "--steps": steps,
            "--start-percent": start_percent,
            "--trials": trials,
            "--dtype": dtype,
            "--offload": offload,
            "--device": device,
        },
        "without --pipeline",
    )
    _calibrate_run(
        model,
        data,
        output,
        tolerance=tolerance,
        flops=flops,
        clips=clips,
        buckets=buckets,
        mid_tiles=mid_tiles,
        window=window,
        seed=seed,
    )


def _calibrate_run(
    model: str,
    data: str,
    output: Path,
    *,
    tolerance: float | None,
    flops: float | None,
    clips: int,
    buckets: int,
    mid_tiles: str | None,
    window: list[str] | None,
    seed: int,
) -> None:
    """Calibrate the model of a training run on clips."""
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


def _refuse(given: dict[str, Any], where: str) -> None:
    """Raise ValueError for options that mean nothing here."""
    for name, value in given.items():
        if value is not None:
            raise ValueError(f"{name} is {value}, and means nothing {where}: leave it out")


def _whole_numbers(option: str, text: str) -> tuple[int, ...]:
    """The whole numbers between commas."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts):
        raise ValueError(
            f"{option} is {text!r}; whole numbers between commas are allowed, like 3,3,3"
        )
    return tuple(int(part) for part in parts)
