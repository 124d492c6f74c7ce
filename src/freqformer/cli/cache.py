"""`freqformer cache`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from freqformer.cli.console import errors
from freqformer.cli.options import LARGEST_SEED, Device
from freqformer.cli.outputs import check_folder


def cache(
    videos: Annotated[Path, typer.Argument(help="A folder of videos and pictures, or one file.")],
    vae: Annotated[
        Path, typer.Option(help="Folder of a diffusers video VAE, or of a pipeline with one.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the cache.")],
    text_encoder: Annotated[
        Path | None,
        typer.Option(
            help="Folder of a transformers text encoder and its tokenizer, or of a pipeline with"
            " both; a cache without text where left out."
        ),
    ] = None,
    size: Annotated[
        list[str] | None,
        typer.Option(
            metavar="HEIGHTxWIDTH",
            help="Pixels; gives a row of buckets of this area in several aspects. May be repeated;"
            " 480x832 where left out.",
        ),
    ] = None,
    frames: Annotated[
        list[int] | None,
        typer.Option(help="Frames of a clip; may be repeated. 81 where left out."),
    ] = None,
    fps: Annotated[float, typer.Option(help="Frames per second of a clip.")] = 16.0,
    multiple: Annotated[
        int | None,
        typer.Option(help="Pixels that sides are multiples of; two latents where left out."),
    ] = None,
    latents: Annotated[
        str, typer.Option(help="What is kept of a clip: distribution, sample or mean.")
    ] = "distribution",
    text_tokens: Annotated[int, typer.Option(help="Tokens of a caption at most.")] = 512,
    precision: Annotated[str, typer.Option(help="To compute in: fp32 or bf16.")] = "fp32",
    tiling: Annotated[
        bool, typer.Option("--tiling", help="Code large videos in pieces, with less memory.")
    ] = False,
    shard_mib: Annotated[float, typer.Option(help="Size of a file of latents.")] = 256.0,
    skip_unmatched: Annotated[
        bool,
        typer.Option(
            "--skip-unmatched",
            help="Leave out videos without caption, and captions without video, and name them.",
        ),
    ] = False,
    seed: Annotated[int, typer.Option(min=0, max=LARGEST_SEED, help="Of samples.")] = 0,
    device: Device = None,
) -> None:
    """Code videos by a VAE and captions by a text encoder, once, for `freqformer train`.

    Captions are .txt files beside the videos, captions.jsonl, or videos2caption.json. The same
    command goes on where it was stopped, and adds files that came since. Under torchrun several
    GPUs share the work. Files that can't be read are named and left out.

    \b
    Examples:
      freqformer cache videos/ --vae wan/ --text-encoder wan/ --output cache/
      freqformer cache videos/ --vae wan/ -o cache/ --size 480x832 --size 240x416 \\
          --frames 81 --frames 33
      torchrun --nproc-per-node 8 -m freqformer cache videos/ --vae wan/ -o cache/
    """
    check_folder(output)
    with errors.status("starting"):
        from freqformer.cli.devices import chosen_device
        from freqformer.training.cache.making import make_cache
        from freqformer.training.cache.settings import CacheConfig

    sizes = [_size(text) for text in size or ["480x832"]]
    config = CacheConfig(
        videos=str(videos),
        vae=str(vae),
        output=str(output),
        text_encoder=None if text_encoder is None else str(text_encoder),
        sizes=tuple(sizes),
        frames=tuple(frames or [81]),
        fps=fps,
        multiple=multiple,
        latents=latents,  # type: ignore[arg-type]
        text_tokens=text_tokens,
        precision=precision,  # type: ignore[arg-type]
        tiling=tiling,
        shard_mib=shard_mib,
        skip_unmatched=skip_unmatched,
        seed=seed,
        device=None if device is None else str(chosen_device(device)),
    )
    index = make_cache(config)
    for one in index.skipped:
        errors.print(f"left out: {one.reason}", style="yellow", markup=False, highlight=False)
    counts = [len(clips) for clips in index.clips_by_bucket()]
    for bucket, count in zip(index.buckets, counts, strict=True):
        typer.echo(f"{count:>7} clips of {bucket} (frames, height, width)")
    typer.echo(
        f"cached {len(index.clips)} clips and {len(index.texts)} captions, the empty one included,"
        f" as {output}; {len(index.skipped)} left out\n"
        f"next: freqformer train {output} --output runs/first"
    )


def _size(text: str) -> tuple[int, int]:
    height, _, width = text.lower().partition("x")
    if not (height.isdecimal() and width.isdecimal()):
        raise ValueError(f"--size is {text[:80]!r}; HEIGHTxWIDTH is allowed, like 480x832")
    return int(height), int(width)
