"""The command line: `freqformer train`, `sample`, `export`, `calibrate`, `inspect`, `demo` and two of the simulator."""

from __future__ import annotations

import json
import logging
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import torch
import typer
from rich.console import Console
from rich.logging import RichHandler
from typer.core import TyperGroup

from freqformer import __version__
from freqformer.simulate.commands import calibrate_command, simulate_command
from freqformer.training.commands import export_command

if TYPE_CHECKING:
    from freqformer.models.pipeline import FreqFormerPipeline
    from freqformer.training.run import StepReport

USER_ERROR = 2
TRAIN_FILE = "train.json"
INTERRUPTED = 130
"""Exit code of a command that Ctrl-C ended, as shells count it."""

_errors = Console(stderr=True, soft_wrap=True)


class _TidyGroup(TyperGroup):
    """Commands whose errors are one line and an exit code, not a traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            _errors.print("stopped; files that were not whole were removed", style="yellow")
            raise typer.Exit(INTERRUPTED) from None
        except (ValueError, OSError) as error:
            if ctx.params.get("traceback"):
                raise
            _errors.print("error:", style="bold red", end=" ")
            _errors.print(str(error), markup=False, highlight=False)
            raise typer.Exit(USER_ERROR) from error


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
    traceback: Annotated[bool, typer.Option("--traceback", help="Show where an error came from.")] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", help="Log what is chosen, like the attention's implementation.")
    ] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Frequency-banded attention for long video diffusion transformers.

    \b
    Examples:
      freqformer demo                                  a real video in, a generated video and a report out
      freqformer inspect holiday.mp4                   what the low, mid and high band of a video hold
      freqformer train videos/ --output runs/first     train on a folder of videos
      freqformer sample runs/first --output new.mp4    generate
      freqformer export runs/first -o model/           a small model folder with a card, to ship
      freqformer calibrate runs/dense -o table/        give a trained dense model bands, without training
      freqformer simulate --hardware h100              what attention costs on a GPU, 64K to 1M tokens
    """
    logging.basicConfig(
        level=logging.INFO if verbose else logging.WARNING,
        format="%(message)s",
        handlers=[RichHandler(console=_errors, show_time=False, show_path=False)],
    )


@app.command()
def train(
    data: Annotated[
        str | None, typer.Argument(help="A video, a folder of videos, or 'synthetic'; that of --config where left out.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Folder for checkpoints, log and the trained model, or that of --config."),
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Optimizer steps; short for --set run.max_steps=...")] = None,
    seconds: Annotated[float | None, typer.Option(help="Seconds to train for at most.")] = None,
    minutes: Annotated[
        float | None, typer.Option(help="Minutes that this call may take; the same command goes on from there.")
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="JSON file with fields of the run, like one that a run wrote.")
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="A field, like data.height=64; may be repeated.")
    ] = None,
) -> None:
    """Train a video diffusion transformer; the same command again goes on where it stopped.

    Every field of a run is set by --config or --set: model (num_layers, num_heads, head_dim, patch_size, attention, ...),
    data (num_frames, height, width, fps, ...), optimizer, objective, routing, run (batch_size, precision, seed, ...) and
    checkpoint. The whole of them is written to OUTPUT/train.json. TensorBoard shows OUTPUT/logs.

    \b
    Examples:
      freqformer train videos/ --output runs/first
      freqformer train videos/ -o runs/second --steps 20000 --set data.height=96 --set data.width=160 \\
          --set model.num_layers=8 --set run.precision=bf16
      freqformer train synthetic -o runs/dense --set model.attention=dense
      freqformer train videos/ -o runs/third --config runs/second/train.json
      freqformer train --config configs/shipped.json --minutes 9
    """
    from freqformer.training.config import TrainConfig
    from freqformer.training.loop import train as run_training

    values = _read_config(config) if config is not None else {}
    for setting in settings or []:
        _apply_setting(values, setting)
    if (output is None and "output" not in values) or (data is None and "data" not in values):
        raise ValueError("DATA or --output is missing; give both, or a --config that has them")
    if output is not None:
        values["output"] = str(output)
    if data is not None:
        values.setdefault("data", {}).update(_source(data))
    part_seconds = None if minutes is None else 60 * minutes
    shortcuts = {"max_steps": steps, "max_seconds": seconds, "part_seconds": part_seconds}
    values.setdefault("run", {}).update({name: value for name, value in shortcuts.items() if value is not None})
    made = TrainConfig.from_dict(values)
    last: deque[StepReport] = deque(maxlen=1)
    try:
        pipeline = run_training(made, on_step=last.append)
    finally:
        # A run that did not get to a step leaves an earlier run's record alone.
        folder = Path(made.output)
        if last:
            (folder / TRAIN_FILE).write_text(json.dumps(made.to_dict(), indent=2), encoding="utf-8")
    if last and last[-1].progress < 1:
        typer.echo(f"{100 * last[-1].progress:.0f}% of the run is done: the same command goes on")
    typer.echo(f"trained model: {pipeline}\nnext: freqformer sample {folder} --output {folder}/sample.mp4")


def _source(data: str) -> dict[str, Any]:
    """The fields of `data` that say where clips come from: videos, or what the rest of the fields make."""
    return {"path": None} if data == "synthetic" else {"path": data, "photographs": None}


def _read_config(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON: {error}; give a file like the train.json that a run writes") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} holds {type(values).__name__}; an object with the fields of a run is allowed")
    return values


def _apply_setting(values: dict[str, Any], setting: str) -> None:
    """Put `section.field=value` into nested dicts; the value is JSON, or else text."""
    name, found, text = setting.partition("=")
    section, dot, field = name.partition(".")
    if not (found and dot and field):
        raise ValueError(f"--set is {setting!r}; section.field=value is allowed, like data.height=64")
    try:
        value = json.loads(text)
    except ValueError:
        value = text
    inner = values.setdefault(section, {})
    if not isinstance(inner, dict):
        raise ValueError(f"--set is {setting!r} and {section} holds {inner!r}; fields of a section are allowed")
    inner[field] = value


@app.command()
def sample(
    model: Annotated[Path, typer.Argument(help="Output folder of a training run, or a saved pipeline.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="MP4 to write; a contact sheet (PNG) comes beside it.")],
    size: Annotated[
        tuple[int, int, int] | None,
        typer.Option(metavar="FRAMES HEIGHT WIDTH", help="In pixels; the size it was trained at where left out."),
    ] = None,
    fps: Annotated[float | None, typer.Option(help="Frames per second; as trained, or 8, where left out.")] = None,
    steps: Annotated[int, typer.Option(min=1, help="Denoising steps.")] = 30,
    seed: Annotated[int, typer.Option(help="The same seed gives the same video.")] = 0,
    count: Annotated[int, typer.Option(min=1, help="Videos to generate.")] = 1,
    enlarge: Annotated[int, typer.Option(min=1, help="Repeat every pixel so many times, to look at small videos.")] = 1,
    routing_table: Annotated[
        Path | None, typer.Option(help="Folder of a routing table, like one that `freqformer calibrate` wrote.")
    ] = None,
    dense: Annotated[bool, typer.Option("--dense", help="Dense attention in every head, to compare.")] = False,
) -> None:
    """Generate videos with a trained model.

    \b
    Examples:
      freqformer sample runs/first --output new.mp4
      freqformer sample runs/first -o wide.mp4 --size 32 64 128 --steps 50 --seed 7
      freqformer sample runs/dense -o banded.mp4 --routing-table table/
      freqformer sample runs/first -o compared.mp4 --dense
    """
    from freqformer.demo.shipped import dense_table
    from freqformer.models.pipeline import FreqFormerPipelineOutput
    from freqformer.routing import RoutingTable

    pipeline, trained = _load_pipeline(model), _training_data(model)
    num_frames, height, width = _size(model, size, trained)
    if routing_table is not None and dense:
        raise ValueError("--routing-table and --dense both say what heads do; one of them is allowed")
    if routing_table is not None or dense:
        table = RoutingTable.load(routing_table) if routing_table is not None else dense_table(pipeline.transformer)
        pipeline.transformer.set_routing_table(table)
    made = pipeline(
        num_frames,
        height,
        width,
        num_inference_steps=steps,
        generator=torch.Generator().manual_seed(seed),
        batch_size=count,
        output_type="uint8",
    ).frames
    large = made.repeat_interleave(enlarge, 2).repeat_interleave(enlarge, 3)
    FreqFormerPipelineOutput(frames=large).save(output, fps or (trained["fps"] if trained else 8.0))
    typer.echo(f"wrote {count} video{'s' * (count > 1)} of {num_frames} x {height} x {width} as {output}")


def _size(model: Path, size: tuple[int, int, int] | None, trained: dict[str, Any] | None) -> tuple[int, int, int]:
    """Frames, height and width that were asked for, or that the model was trained at."""
    if size is not None:
        return size
    if trained is None:
        raise ValueError(f"{model} does not say at which size it was trained; give --size FRAMES HEIGHT WIDTH")
    return (trained["num_frames"], trained["height"], trained["width"])


def _load_pipeline(folder: Path) -> FreqFormerPipeline:
    """The pipeline of a run's output folder, or of a folder that holds a pipeline itself."""
    from freqformer.models.pipeline import FreqFormerPipeline

    place = folder / "pipeline" if (folder / "pipeline").is_dir() else folder
    if not (place / "model_index.json").is_file():
        what = "holds no trained model" if folder.is_dir() else "does not exist"
        raise ValueError(f"{folder} {what}; give the output folder of a training run that has ended, or a saved pipeline")
    return FreqFormerPipeline.from_pretrained(str(place))


def _training_data(folder: Path) -> dict[str, Any] | None:
    """The `data` section of the run that a model came from; None where its train.json is gone."""
    for place in (folder, folder.parent):
        if (place / TRAIN_FILE).is_file():
            return _read_config(place / TRAIN_FILE).get("data")
    return None


@app.command()
def calibrate(
    model: Annotated[Path, typer.Argument(help="Output folder of a training run with model.attention=dense.")],
    data: Annotated[
        str, typer.Argument(help="A video, a folder of videos, or 'synthetic' for moving sprites.")
    ] = "synthetic",
    *,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the routing table and the report.")],
    tolerance: Annotated[float | None, typer.Option(help="Largest error of a head's output; 0.1 by default.")] = None,
    flops: Annotated[float | None, typer.Option(help="Share of dense attention's FLOPs, and no tolerance.")] = None,
    clips: Annotated[int, typer.Option(min=1, help="Clips to measure on, each in every part of the noise levels.")] = 8,
    buckets: Annotated[int, typer.Option(min=1, help="Equal parts of the noise levels, each with its own bands.")] = 10,
    mid_tiles: Annotated[str | None, typer.Option(help="Tile counts of MID to try; 8,16,32 where left out.")] = None,
    window: Annotated[list[str] | None, typer.Option(help="A window of HIGH to try, like 3,3,3; may be repeated.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the clips and the noise.")] = 0,
) -> None:
    """Choose an operator for every head of a trained dense model: the cheapest within a tolerance, without training.

    Writes a routing table, calibration.json and figures. The same command goes on where it stopped; with all clips
    measured, another --tolerance or --flops takes seconds.

    \b
    Examples:
      freqformer calibrate runs/dense --output table/ --flops 0.1
      freqformer calibrate runs/dense videos/ -o table/ --tolerance 0.2 --clips 16 --mid-tiles 8,16,32,64
      freqformer sample runs/dense -o new.mp4 --routing-table table/
    """
    from freqformer.calibration import Candidates
    from freqformer.calibration.command import calibrate_on_clips
    from freqformer.training.config import TrainConfig

    pipeline, trained = _load_pipeline(model), _training_data(model)
    if pipeline.vae is not None or trained is None:
        raise ValueError(f"{model} is no training run on pixels; call freqformer.calibration.calibrate with your own clips")
    usual = Candidates.usual(pipeline.transformer.band_config)
    counts = _whole_numbers("--mid-tiles", mid_tiles) if mid_tiles else usual.mid_tiles
    windows: Any = tuple(_whole_numbers("--window", text) for text in window or ()) or usual.windows
    record = {"output": str(model), "data": {**trained, **_source(data)}}
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
    typer.echo(f"{100 * choice.cost:.1f}% of dense attention's FLOPs; no head's error was above {choice.errors.max():.3g}")
    typer.echo(f"next: freqformer sample {model} --output new.mp4 --routing-table {output}")


def _whole_numbers(option: str, text: str) -> tuple[int, ...]:
    """The whole numbers between commas."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts):
        raise ValueError(f"{option} is {text!r}; whole numbers between commas are allowed, like 3,3,3")
    return tuple(int(part) for part in parts)


@app.command()
def inspect(
    video: Annotated[Path, typer.Argument(help="Any video that FFmpeg reads.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder for the results; by default VIDEO-bands.")
    ] = None,
    start: Annotated[float, typer.Option(min=0, help="Seconds from the beginning.")] = 0,
    seconds: Annotated[float, typer.Option(min=0, help="Length to look at.")] = 5,
    side: Annotated[int, typer.Option(min=8, help="Longest side in pixels that it is reduced to.")] = 384,
    patch: Annotated[int, typer.Option(min=1, help="Side of a token in pixels.")] = 4,
) -> None:
    """Show what the low, mid and high band of a video hold.

    Writes band_energies.png (share of the energy per band over time), bands.mp4 (the video and each band) and
    band_energies.json.

    \b
    Examples:
      freqformer inspect holiday.mp4
      freqformer inspect holiday.mp4 --start 12 --seconds 3 --patch 2 --output bands/
    """
    from freqformer.demo.stages import inspect_video

    folder = output or video.with_name(f"{video.stem}-bands")
    with _errors.status("splitting the video into its bands"):
        found = inspect_video(video, folder, start=start, seconds=seconds, side=side, patch=(1, patch, patch))
    for name, share in zip(("low", "mid", "high"), found.total_shares, strict=True):
        typer.echo(f"{name:>5}  {100 * share:5.1f}% of the energy")
    typer.echo(f"wrote band_energies.png, band_energies.json and bands.mp4 in {folder}")


@app.command()
def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the report.")] = Path("demo"),
    video: Annotated[Path | None, typer.Option(help="A video of at least 2 seconds; one is shipped.")] = None,
    train_seconds: Annotated[float, typer.Option(min=1, help="Seconds of training.")] = 120,
    model: Annotated[
        Path | None, typer.Option(help="An exported model to start from; the shipped one where left out.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the weights, the noise and all else.")] = 0,
) -> None:
    """From a real video to a generated one: inspect, train a small model for two minutes, generate, report.

    It begins with the shipped model, which generates first. A version without one trains from scratch, and says so.
    Everything is shown in OUTPUT/index.html, which opens from disk.

    \b
    Examples:
      freqformer demo
      freqformer demo --video holiday.mp4 --train-seconds 600 --output holiday-demo
    """
    from freqformer.demo.run import run_demo
    from freqformer.demo.shipped import shipped_model

    start = model or shipped_model()
    if start is None:
        _errors.print("no model comes with this version: a small one is trained from scratch")
    page = run_demo(output, video=video, model=start, train_seconds=train_seconds, seed=seed, say=_errors.print)
    typer.echo(f"open {page.resolve().as_uri()}")


app.command("export")(export_command)
app.command("simulate")(simulate_command)
app.command("calibrate-hardware")(calibrate_command)
