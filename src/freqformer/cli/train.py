"""`freqformer train`."""

from __future__ import annotations

import json
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from freqformer.cli.console import errors
from freqformer.cli.options import duration, renamed_option, step_range
from freqformer.cli.outputs import check_folder
from freqformer.cli.run_folder import SHIPPED, clip_fields, model_folder, run_config

if TYPE_CHECKING:
    from freqformer.training.config import TrainConfig
    from freqformer.training.report import StepReport


def train(
    data: Annotated[
        str | None,
        typer.Argument(
            help="A video, a folder of videos, or 'synthetic'; that of --config where left out."
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="Folder for checkpoints, log and the trained model, or that of --config.",
        ),
    ] = None,
    steps: Annotated[
        int | None, typer.Option(help="Optimizer steps; short for --set run.max_steps=...")
    ] = None,
    max_seconds: Annotated[
        float | None,
        typer.Option(help="Seconds of training of the whole run at most, as run.max_seconds."),
    ] = None,
    stop_after: Annotated[
        str | None,
        typer.Option(
            metavar="DURATION",
            help="Time that this call may take, like 540s, 9m or 1.5h; the same command goes on "
            "from there.",
        ),
    ] = None,
    config: Annotated[
        str | None,
        typer.Option(
            help=(
                "JSON file with fields of the run, as a run writes it; 'shipped' for the "
                "shipped model's."
            )
        ),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="A field, like data.height=64; may be repeated."),
    ] = None,
    init_from: Annotated[
        str | None,
        typer.Option(
            help="Model whose weights the run begins with: a run, a saved pipeline, or 'shipped'."
        ),
    ] = None,
    pipeline: Annotated[
        str | None,
        typer.Option(
            metavar="FOLDER",
            help="Pipeline of diffusers whose transformer is trained on a cache: LoRA, unless "
            "--set pipeline.weights=full.",
        ),
    ] = None,
    profile: Annotated[
        str | None,
        typer.Option(
            metavar="FIRST-LAST",
            help="Steps, like 10-12, of which OUTPUT/profile gets a trace for ui.perfetto.dev.",
        ),
    ] = None,
    accept_changes: Annotated[
        bool,
        typer.Option(
            "--accept-changes",
            help=(
                "Go on with other settings (optimizer, objective, routing, precision) than the "
                "run began with."
            ),
        ),
    ] = False,
    seconds: Annotated[float | None, typer.Option(hidden=True)] = None,
    minutes: Annotated[float | None, typer.Option(hidden=True)] = None,
) -> None:
    """Train a video diffusion transformer; the same command again goes on where it stopped.

    A GPU is meant: on a CPU the defaults take a minute a step and most of a day. The first steps
    measure how long it will take, and say so. Ctrl-C ends after the step that is being done and
    keeps it.

    Every field of a run is set by --config or --set: model (num_layers, num_attention_heads,
    attention_head_dim, patch_size, frequency, ...), pipeline (rank, alpha, density, ...), data
    (num_frames, height, width, fps, ...), optimizer, objective, routing, run (batch_size,
    precision, seed, ...) and checkpoint. The whole of them is written to OUTPUT/train.json.
    TensorBoard shows OUTPUT/logs.

    \b
    Examples:
      freqformer train videos/ --output runs/first
      freqformer train videos/ -o runs/second --steps 20000 --set data.height=96 \\
          --set data.width=160 --set model.num_layers=8 --set run.precision=bf16
      freqformer train synthetic -o runs/dense --set model.frequency.preset=dense
      freqformer train videos/ -o runs/third --config runs/second/train.json
      freqformer train videos/ -o runs/fourth --config shipped --stop-after 9m
      freqformer train holiday.mp4 -o runs/own --init-from shipped --set data.height=64 \\
          --set data.width=96
      freqformer train videos/ -o runs/first --set optimizer.learning_rate=3e-4 --accept-changes
      freqformer train cache/ -o runs/style --pipeline wan/ --steps 2000 \\
          --set run.precision=bf16 --set run.gradient_checkpointing=true
      torchrun --nproc-per-node 4 -m freqformer train videos/ -o runs/long \\
          --set run.parallel.cp=2 --set run.parallel.dp_shard=2
    """
    values = run_config(config) if config is not None else {}
    for setting in settings or []:
        _apply_setting(values, setting)
    if (output is None and "output" not in values) or (data is None and "data" not in values):
        raise ValueError("DATA or --output is missing; give both, or a --config that has them")
    if config == SHIPPED and data is None and not Path(values["data"]["photographs"]).is_dir():
        raise ValueError(
            "DATA is missing: the photographs that the shipped model learned from do not come with "
            "the package; name a "
            "video or a folder of videos, like `freqformer train videos/ --output runs/own "
            "--config shipped`"
        )
    if output is not None:
        values["output"] = str(output)
    if seconds is not None:
        max_seconds = renamed_option("--seconds", seconds, "--max-seconds", max_seconds)
    if minutes is not None:
        stop_after = renamed_option("--minutes", f"{60 * minutes:.9g}s", "--stop-after", stop_after)
    shortcuts = {
        "max_steps": steps,
        "max_seconds": max_seconds,
        "stop_after_seconds": None if stop_after is None else duration("--stop-after", stop_after),
        "init_from": None if init_from is None else str(model_folder(init_from)),
        "profile": None if profile is None else step_range("--profile", profile),
    }
    _update(values, "data", {} if data is None else clip_fields(data))
    _update(values, "run", {name: value for name, value in shortcuts.items() if value is not None})
    _update(values, "pipeline", {} if pipeline is None else {"folder": pipeline})
    _update(values, "checkpoint", {"accept_changes": True} if accept_changes else {})
    with errors.status("starting"):
        from freqformer.cli.ranks import is_main_rank
        from freqformer.training.config import TrainConfig
        from freqformer.training.loop import train as run_training

    made = TrainConfig.from_dict(values)
    check_folder(Path(made.output))
    last: deque[StepReport] = deque(maxlen=1)
    trained = run_training(made, on_step=last.append)
    if not is_main_rank():
        return
    if last and last[-1].progress < 1:
        typer.echo(f"{100 * last[-1].progress:.0f}% of the run is done: the same command goes on")
    typer.echo(f"trained model: {trained}\n{_next(made, trained)}")


def _next(config: TrainConfig, trained: Path) -> str:
    """What to do with what was trained."""
    folder, tuned = config.output, config.pipeline
    if tuned.folder is None:
        return f"next: freqformer sample {folder} --output {folder}/sample.mp4"
    if tuned.weights == "lora":
        return (
            f"next: freqformer generate --pipeline {tuned.folder} --lora {trained} --prompt ..."
            f" --output {folder}/sample.mp4"
        )
    return f"next: copy {tuned.folder}, with {trained} in place of its {tuned.part}"


def _update(values: dict[str, Any], section: str, fields: dict[str, Any]) -> None:
    """Put fields into a section. One that is no object stays as it is, for TrainConfig to
    refuse."""
    inner = values.setdefault(section, {})
    if isinstance(inner, dict):
        inner.update(fields)


def _apply_setting(values: dict[str, Any], setting: str) -> None:
    """Put `section.field=value`, or a field of a field, into nested dicts; the value is JSON, or
    else text."""
    name, found, text = setting.partition("=")
    *sections, field = name.split(".")
    if not (found and sections and all((*sections, field))):
        raise ValueError(
            f"--set is {setting!r}; section.field=value is allowed, like data.height=64"
        )
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = text
    inner = values
    for place, section in enumerate(sections):
        inner = inner.setdefault(section, {})
        if not isinstance(inner, dict):
            holds = ".".join(sections[: place + 1])
            raise ValueError(
                f"--set is {setting!r} and {holds} holds {inner!r}; fields of a section are allowed"
            )
    inner[field] = value
