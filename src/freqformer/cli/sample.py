"""`freqformer sample`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from freqformer.cli.console import errors
from freqformer.cli.options import Device, Model, Seed
from freqformer.cli.outputs import check_file
from freqformer.cli.run_folder import load_pipeline, model_folder, pipeline_folder, training_data

DEFAULT_FPS = 8.0
"""Frames per second of a model whose training run left no record."""


def sample(
    model: Model,
    output: Annotated[
        Path,
        typer.Option("--output", "-o", help="MP4 to write; a contact sheet (PNG) comes beside it."),
    ],
    size: Annotated[
        tuple[int, int, int] | None,
        typer.Option(
            metavar="FRAMES HEIGHT WIDTH",
            help="In pixels; the size it was trained at where left out.",
        ),
    ] = None,
    prompt: Annotated[
        str | None,
        typer.Option(help="What the videos shall show, for a model that was trained with text."),
    ] = None,
    negative_prompt: Annotated[
        str | None, typer.Option(help="What guidance leads away from; nothing where left out.")
    ] = None,
    guidance: Annotated[
        float | None,
        typer.Option(help="Scale of guidance by the prompt; 4 where left out, 1 for none."),
    ] = None,
    image: Annotated[
        Path | None,
        typer.Option(help="Picture to begin with, for a model trained with data.first_frame."),
    ] = None,
    fps: Annotated[
        float | None, typer.Option(help="Frames per second; as trained, or 8, where left out.")
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Denoising steps.")] = 30,
    seed: Seed = 0,
    count: Annotated[int, typer.Option(min=1, help="Videos to generate.")] = 1,
    enlarge: Annotated[
        int, typer.Option(min=1, help="Repeat every pixel so many times, to look at small videos.")
    ] = 1,
    routing_table: Annotated[
        Path | None,
        typer.Option(help="Folder of a routing table, like one that `freqformer calibrate` wrote."),
    ] = None,
    dense: Annotated[
        bool, typer.Option("--dense", help="Exact attention alone in every head, to compare.")
    ] = False,
    device: Device = None,
) -> None:
    """Generate videos with a trained model. Under torchrun all GPUs share each video.

    \b
    Examples:
      freqformer sample shipped --output cat.mp4       with the model that comes with the package
      freqformer sample runs/first --output new.mp4
      freqformer sample runs/first -o wide.mp4 --size 32 64 128 --steps 50 --seed 7
      freqformer sample runs/words -o red.mp4 --prompt "a red ball flies left" --guidance 4
      freqformer sample runs/dense -o banded.mp4 --routing-table table/
      freqformer sample runs/first -o compared.mp4 --dense
      torchrun --nproc-per-node 2 -m freqformer sample runs/first -o long.mp4 --size 256 96 160
    """
    folder = model_folder(model)
    pipeline_folder(folder)
    trained = training_data(folder)
    num_frames, height, width = _size(folder, size, trained)
    rate = fps if fps is not None else trained["fps"] if trained else DEFAULT_FPS
    check_file(output)
    if routing_table is not None and dense:
        raise ValueError(
            "--routing-table and --dense both say what heads do; one of them is allowed"
        )

    from freqformer.cli.devices import device_name
    from freqformer.cli.ranks import is_main_rank, rank_device, sharing_video
    from freqformer.media import check_target

    check_target(output, rate, enlarge * height, enlarge * width)
    where = rank_device(device)
    pipeline = load_pipeline(folder)

    import torch

    from freqformer.models.pipeline import FreqFormerPipelineOutput
    from freqformer.routing import RoutingTable
    from freqformer.training.cache.pictures import read_picture

    if routing_table is not None:
        pipeline.transformer.set_routing_table(RoutingTable.load(routing_table))
    pipeline.transformer.set_dense(dense)
    text = _text(pipeline.transformer, prompt, negative_prompt, guidance)
    pipeline.to(where)
    pipeline.set_progress_bar_config(disable=not is_main_rank())
    if is_main_rank():
        errors.print(f"generating on {device_name(where)}", highlight=False)
    with sharing_video(pipeline.transformer, where):
        made = pipeline(
            num_frames,
            height,
            width,
            num_inference_steps=steps,
            generator=torch.Generator().manual_seed(seed),
            batch_size=count,
            output_type="uint8",
            image=None if image is None else read_picture(image, height=height, width=width)[0],
            **text,
        ).frames.cpu()
    if not is_main_rank():
        return
    large = made.repeat_interleave(enlarge, 2).repeat_interleave(enlarge, 3)
    FreqFormerPipelineOutput(frames=large).save(output, rate)
    typer.echo(
        f"wrote {count} video{'s' * (count > 1)} of {num_frames} x {height} x {width} as {output}"
    )


def _text(
    transformer: Any, prompt: str | None, negative_prompt: str | None, guidance: float | None
) -> dict[str, Any]:
    """The arguments of a pipeline that say what is to be seen."""
    if transformer.config["cross_attention_dim"] is not None:
        if prompt is None:
            raise ValueError(
                "--prompt is missing, and the model was trained with text; give one, '' for none"
            )
        return {
            "prompt": prompt,
            "negative_prompt": negative_prompt or "",
            "guidance_scale": guidance,
        }
    options = {"--prompt": prompt, "--negative-prompt": negative_prompt, "--guidance": guidance}
    given = [name for name, value in options.items() if value is not None]
    if given:
        raise ValueError(
            f"{' and '.join(given)} is given, and the model was trained without text; leave it out"
        )
    return {}


def _size(
    model: Path, size: tuple[int, int, int] | None, trained: dict[str, Any] | None
) -> tuple[int, int, int]:
    """Frames, height and width that were asked for, or that the model was trained at."""
    if size is not None:
        if min(size) < 1:
            raise ValueError(
                f"--size is {' '.join(map(str, size))}; FRAMES HEIGHT WIDTH from 1 up are allowed"
            )
        return size
    if trained is None:
        raise ValueError(
            f"{model} does not say at which size it was trained; give --size FRAMES HEIGHT WIDTH"
        )
    return (trained["num_frames"], trained["height"], trained["width"])
