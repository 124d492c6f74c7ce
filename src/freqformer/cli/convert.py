"""`freqformer convert`."""

from __future__ import annotations

from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from freqformer.cli.console import errors
from freqformer.cli.options import duration
from freqformer.cli.outputs import check_folder
from freqformer.cli.run_folder import clip_fields, read_config
from freqformer.cli.settings import apply_setting, update

if TYPE_CHECKING:
    from freqformer.conversion.config import ConvertConfig
    from freqformer.training.report import StepReport

CALLS_FOLDER = "calls"


def convert(
    data: Annotated[
        str | None,
        typer.Argument(
            help="A cache, recorded calls, or, for this package's own models of pixels, videos."
        ),
    ] = None,
    *,
    pipeline: Annotated[
        Path | None, typer.Option(help="Folder of the dense model's pipeline.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Folder for checkpoints, log and the result."),
    ] = None,
    density: Annotated[
        float | None,
        typer.Option(help="Attention FLOPs over those of dense attention; 0.15 by default."),
    ] = None,
    rank: Annotated[
        int | None, typer.Option(help="Rank of LoRA on the projections; 32 by default.")
    ] = None,
    full: Annotated[
        bool, typer.Option("--full", help="Learn whole projections in place of LoRA.")
    ] = False,
    layer_steps: Annotated[
        int | None, typer.Option(help="Steps of stage one, by layers; 1000 by default.")
    ] = None,
    velocity_steps: Annotated[
        int | None, typer.Option(help="Steps of stage two, by velocities; 1000 by default.")
    ] = None,
    data_steps: Annotated[
        int | None, typer.Option(help="Steps of stage three, on clips; none by default.")
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(
            help="Text file with a prompt on each line: the pipeline's own calls are recorded, and "
            "asked in place of clips."
        ),
    ] = None,
    frames: Annotated[int | None, typer.Option(min=1, help="Frames of recorded videos.")] = None,
    size: Annotated[
        tuple[int, int] | None,
        typer.Option(metavar="HEIGHT WIDTH", help="Pixels of recorded videos."),
    ] = None,
    stop_after: Annotated[
        str | None,
        typer.Option(
            metavar="DURATION",
            help="Time that this call may take, like 540s or 9m; the same command goes on.",
        ),
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="JSON file with fields of the run, as a run writes it.")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="A field, like optimizer.learning_rate=1e-4; may be repeated."),
    ] = None,
) -> None:
    """Turn a trained dense model into a FreqFormer: windows, or each head's best tiles, and gated
    LOW branches in place of dense self-attention, which learn to give what it gave.

    Stage one draws every layer's output to the dense one's, stage two the model's velocity, stage
    three trains on clips. The same command goes on where it stopped. A model of diffusers gets an
    adapter, OUTPUT/adapter, and stays as it is; a model of this package becomes OUTPUT/pipeline.

    Models that read more than a cache holds (LTX-2, CogVideoX, Wan VACE) learn from
    calls of their own pipeline, by --prompts.

    \b
    Examples:
      freqformer convert cache/ --pipeline wan/ --output converted/
      freqformer convert cache/ --pipeline wan/ -o converted/ --density 0.1 --rank 64 \\
          --set run.gradient_checkpointing=true --stop-after 9m
      freqformer convert cache/ --pipeline wan/ -o converted/ --set windows.pattern=tiles
      freqformer convert --pipeline hunyuan/ --prompts prompts.txt --frames 61 -o converted/
      freqformer convert videos/ --pipeline runs/dense/pipeline -o converted/ --full
      torchrun --nproc-per-node 8 -m freqformer convert cache/ --pipeline wan/ -o converted/
    """
    values: dict[str, Any] = {} if config is None else read_config(config)
    for setting in settings or []:
        apply_setting(values, setting)
    for name, given in (("pipeline", pipeline), ("output", output)):
        if given is not None:
            values[name] = str(given)
        if name not in values:
            raise ValueError(f"--{name} is missing; give a folder, or a --config that has it")
    _data(values, data, prompts)
    if full:
        update(values, "weights", {"change": "full"})
    fields = {
        "windows": {"density": density},
        "weights": {"rank": rank},
        "stages": {
            "layer_steps": layer_steps,
            "velocity_steps": velocity_steps,
            "data_steps": data_steps,
        },
        "run": {
            "stop_after_seconds": None
            if stop_after is None
            else duration("--stop-after", stop_after)
        },
    }
    for section, options in fields.items():
        update(values, section, {key: x for key, x in options.items() if x is not None})
    with errors.status("starting"):
        from freqformer.conversion import ConvertConfig

    made = ConvertConfig.from_dict(values)
    check_folder(Path(made.output))
    if prompts is not None:
        _record(made, prompts, frames, size)
    elif frames is not None or size is not None:
        raise ValueError(
            "--frames or --size is given without --prompts, of whose videos they are; leave them "
            "out: clips of a cache have their own size"
        )
    _convert(made)


def _data(values: dict[str, Any], data: str | None, prompts: Path | None) -> None:
    """Put where questions come from into the config's fields."""
    if data is not None and prompts is not None:
        raise ValueError(
            f"DATA is {data} and --prompts {prompts}; one of the two is allowed: leave one out"
        )
    if prompts is not None:
        values["calls"] = str(Path(values["output"]) / CALLS_FOLDER)
    elif data is not None and (Path(data) / "calls.json").is_file():
        values["calls"] = data
    elif data is not None:
        update(values, "data", clip_fields(data))
    elif "data" not in values and "calls" not in values:
        raise ValueError(
            "DATA is missing; give a cache, recorded calls, videos, or --prompts, or a --config "
            "that has them"
        )


def _record(
    config: ConvertConfig, prompts: Path, frames: int | None, size: tuple[int, int] | None
) -> None:
    """Record calls of the pipeline, as far as they aren't there; under torchrun the first rank
    does, and the others wait."""
    import torch

    from freqformer.cli.devices import chosen_device
    from freqformer.cli.ranks import is_main_rank
    from freqformer.conversion.recording import RecordConfig, await_calls, read_prompts, record
    from freqformer.generation.request import Request

    told = read_prompts(prompts)
    if not is_main_rank():
        await_calls(Path(str(config.calls)), len(told))
        return
    height, width = size or (None, None)
    request = Request("", frames, height, width, 0)
    device = chosen_device("cpu" if config.run.device == "cpu" else None)
    record(
        Path(config.pipeline),
        Path(str(config.calls)),
        RecordConfig(told, request),
        dtype=torch.bfloat16 if config.run.precision == "bf16" else torch.float32,
        device=device,
        part=config.part,
        progress=config.run.progress,
    )


def _convert(config: ConvertConfig) -> None:
    """Convert, and say what came of it and what to do next."""
    from freqformer.cli.ranks import is_main_rank
    from freqformer.conversion import convert as run_conversion

    last: deque[StepReport] = deque(maxlen=1)
    result = run_conversion(config, on_step=last.append)
    if not is_main_rank():
        return
    if last and last[-1].progress < 1:
        typer.echo(f"{100 * last[-1].progress:.0f}% of the run is done: the same command goes on")
    typer.echo(f"converted model: {result}")
    if result.name == "adapter":
        typer.echo(f"next: freqformer generate --pipeline {config.pipeline} --adapter {result} ...")
    else:
        typer.echo(f"next: freqformer sample {result} --output new.mp4")
