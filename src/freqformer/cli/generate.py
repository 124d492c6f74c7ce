"""`freqformer generate`."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from freqformer.cli.console import errors
from freqformer.cli.options import Device, Seed
from freqformer.cli.outputs import check_file

if TYPE_CHECKING:
    from freqformer.generation.request import Made, Request

FPS = {"Wan": 16.0, "CogVideoX": 8.0}
"""Frames per second that models were trained at, by how their pipelines' names begin."""
OTHER_FPS = 24.0
LINE = 4
"""Pixels between two videos side by side."""


def generate(
    pipeline: Annotated[
        str,
        typer.Option(
            metavar="FOLDER|NAME", help="Folder of a pipeline of diffusers, or its name on the hub."
        ),
    ],
    prompt: Annotated[str, typer.Option(help="What the video shows.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="MP4 to write.")],
    frames: Annotated[
        int | None, typer.Option(min=1, help="Frames; the pipeline's own number, if left out.")
    ] = None,
    size: Annotated[
        tuple[int, int] | None,
        typer.Option(metavar="HEIGHT WIDTH", help="Pixels; the pipeline's own, if left out."),
    ] = None,
    density: Annotated[
        float | None,
        typer.Option(help="Share of dense attention's FLOPs in banded steps.  [default: 0.2]"),
    ] = None,
    density_schedule: Annotated[
        Literal["falling", "constant"] | None,
        typer.Option(help="How it is spread over these steps. [default: falling]"),
    ] = None,
    start_percent: Annotated[
        float | None, typer.Option(help="Share of the first steps that stay dense. [default: 0.2]")
    ] = None,
    end_percent: Annotated[
        float, typer.Option(help="Share of the steps after which they are dense again.")
    ] = 1.0,
    dense_blocks: Annotated[
        tuple[int, int],
        typer.Option(metavar="FIRST LAST", help="Attention layers that stay dense."),
    ] = (0, 0),
    min_tokens: Annotated[
        int | None,
        typer.Option(help="Video tokens below which nothing changes. [default: 12288]"),
    ] = None,
    table: Annotated[
        Path | None,
        typer.Option(help="Folder that calibrate wrote, in place of a density."),
    ] = None,
    adapter: Annotated[
        Path | None,
        typer.Option(help="Folder of an adapter that `freqformer convert` made of this model."),
    ] = None,
    lora: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FOLDER",
            help="LoRA of diffusers, as `freqformer train --pipeline` writes it; may be repeated.",
        ),
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Denoising steps.")] = None,
    guidance: Annotated[float | None, typer.Option(help="Guidance scale.")] = None,
    negative_prompt: Annotated[str | None, typer.Option(help="What it does not show.")] = None,
    image: Annotated[Path | None, typer.Option(help="Picture, of image to video.")] = None,
    seed: Seed = 0,
    fps: Annotated[
        float | None, typer.Option(help="Frames per second; as trained, if left out.")
    ] = None,
    compare: Annotated[
        bool,
        typer.Option("--compare", help="Also by dense attention, side by side, with a page."),
    ] = False,
    dtype: Annotated[
        Literal["bfloat16", "float16", "float32"], typer.Option(help="Of the weights.")
    ] = "bfloat16",
    offload: Annotated[
        Literal["none", "model", "sequential"],
        typer.Option(help="What waits in the computer's memory, where the GPU's is short."),
    ] = "none",
    device: Device = None,
) -> None:
    """Generate a video with a pipeline of diffusers, sooner by frequency attention.

    \b
    Examples:
      freqformer generate --pipeline Wan-AI/Wan2.1-T2V-1.3B-Diffusers --prompt "a cat" -o cat.mp4
      freqformer generate --pipeline wan/ --prompt "a lighthouse in a storm" \\
          --frames 81 --size 480 832 --density 0.2 --output storm.mp4 --compare
      freqformer generate --pipeline wan/ --lora runs/style/lora --prompt "a cat" -o cat.mp4
      freqformer generate --pipeline wan/ --prompt "a cat" -o cat.mp4 --offload model --steps 30
    """
    check_file(output)
    height, width = size or (None, None)
    from freqformer.media import check_target

    # What is wrong with a name shows before the weights are loaded.
    rate = OTHER_FPS if fps is None else fps
    check_target(output, rate, height or 1, (2 if compare else 1) * (width or 1) + LINE)

    import torch

    from freqformer.cli.devices import chosen_device, device_name
    from freqformer.generation.loading import load_pipeline
    from freqformer.generation.lora import load_loras
    from freqformer.generation.request import Request
    from freqformer.integrations.diffusers.converted.adapter import Adapter
    from freqformer.integrations.diffusers.tables import load_tables
    from freqformer.training_free.dials import checked_dials

    made = None if table is None else load_tables(table)
    trained = None if adapter is None else Adapter.load(adapter)
    percents = (start_percent, end_percent)
    checked_dials(
        made,
        density,
        percents,
        dense_blocks,
        min_tokens,
        density_schedule=density_schedule,
        adapter=trained is not None,
    )
    where = chosen_device(device)
    pipe = load_pipeline(pipeline, dtype=getattr(torch, dtype), device=where, offload=offload)
    load_loras(pipe, lora or [])
    errors.print(f"generating on {device_name(where)}", highlight=False)
    request = Request(
        prompt, frames, height, width, seed, steps, guidance, negative_prompt, image, fps
    )
    dials = {
        "table": made,
        "adapter": trained,
        "density": density,
        "density_schedule": density_schedule,
        "start_percent": start_percent,
        "end_percent": end_percent,
        "dense_blocks": dense_blocks,
        "min_tokens": min_tokens,
    }
    _generate(pipe, request, dials, where, output, fps=fps, compare=compare)


def _generate(
    pipe: Any,
    request: Request,
    dials: dict[str, Any],
    where: Any,
    output: Path,
    *,
    fps: float | None,
    compare: bool,
) -> None:
    """Make the video, and the dense one to compare it with, and say what they took."""
    from freqformer.generation.comparison import Compared
    from freqformer.generation.request import make
    from freqformer.integrations.diffusers import enable_frequency_attention
    from freqformer.integrations.diffusers.families import transformers_of
    from freqformer.media import write_video

    known = (rate for name, rate in FPS.items() if type(pipe).__name__.startswith(name))
    rate = fps if fps is not None else next(known, OTHER_FPS)
    transformers = transformers_of(pipe)
    request.arguments(pipe)
    dense = None
    if compare:
        _name_bar(pipe, "dense attention")
        dense = make(pipe, request, transformers, where)
        path = output.with_name(f"{output.stem}-dense.mp4")
        write_video(dense.frames, path, rate, dense.sound)
    with enable_frequency_attention(pipe, **dials) as handle:
        _name_bar(pipe, "frequency attention")
        banded = make(pipe, request, transformers, where)
        delivered = handle.describe()
        nothing = handle.density is None
    write_video(banded.frames, output, rate, banded.sound)
    count, height, width, _ = banded.frames.shape
    heard = "" if banded.sound is None else f" and {banded.sound.seconds:.1f} s of sound"
    typer.echo(f"wrote {count} frames of {height} x {width}{heard} as {output}: {_took(banded)}")
    if nothing:
        errors.print(
            "every step was dense: the video has fewer tokens than --min-tokens, or --density, "
            "--start-percent and --dense-blocks leave nothing to be banded",
            style="yellow",
        )
    else:
        typer.echo(delivered)
    if dense is not None:
        _compare(Compared(request, dense, banded, delivered, _command()), output, rate)


def _compare(compared: Any, output: Path, rate: float) -> None:
    from freqformer.generation.comparison import write_page
    from freqformer.media import write_video

    video = output.with_name(f"{output.stem}-compared.mp4")
    page = output.with_suffix(".html")
    write_video(compared.side_by_side(), video, rate)
    likeness = compared.likeness
    write_page(compared, likeness, page, video)
    distance = "" if likeness.lpips is None else f", LPIPS {likeness.lpips:.3f}"
    typer.echo(f"dense attention: {_took(compared.dense)}; {compared.speedup:.2f} times as long")
    typer.echo(
        f"PSNR {likeness.psnr:.1f} dB, SSIM {likeness.ssim:.3f}{distance} to the dense video"
    )
    typer.echo(f"side by side: {video}, {page}")


def _took(made: Made) -> str:
    peak = "" if made.peak_bytes is None else f", {made.peak_bytes / 1e9:.2f} GB at most"
    return f"{made.seconds:.1f} s{peak}"


def _name_bar(pipe: Any, title: str) -> None:
    """Before the progress bar of diffusers, which shows a pipeline's steps."""
    if hasattr(pipe, "set_progress_bar_config"):
        pipe.set_progress_bar_config(desc=title)


def _command() -> str:
    """As it was typed."""
    return shlex.join(["freqformer", *sys.argv[1:]])
