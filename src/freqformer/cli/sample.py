"""`freqformer sample`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from freqformer.cli.run_folder import load_pipeline, training_data


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
    import torch

    from freqformer.demo.shipped import dense_table
    from freqformer.models.pipeline import FreqFormerPipelineOutput
    from freqformer.routing import RoutingTable

    pipeline, trained = load_pipeline(model), training_data(model)
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
