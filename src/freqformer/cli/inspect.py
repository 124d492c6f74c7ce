"""`freqformer inspect`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from freqformer.cli.console import errors
from freqformer.cli.outputs import check_folder


def inspect(
    video: Annotated[Path, typer.Argument(help="Any video that FFmpeg reads.")],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Folder for the results; by default VIDEO-bands."),
    ] = None,
    start: Annotated[float, typer.Option(min=0, help="Seconds from the beginning.")] = 0,
    seconds: Annotated[float, typer.Option(min=0, help="Length to look at.")] = 5,
    side: Annotated[
        int, typer.Option(min=8, help="Longest side in pixels that it is reduced to.")
    ] = 384,
    patch: Annotated[int, typer.Option(min=1, help="Side of a token in pixels.")] = 4,
) -> None:
    """Show what the low, mid and high band of a video hold.

    Writes band_energies.png (share of the energy per band over time), bands.mp4 (the video and each
    band) and band_energies.json.

    \b
    Examples:
      freqformer inspect holiday.mp4
      freqformer inspect holiday.mp4 --start 12 --seconds 3 --patch 2 --output bands/
    """
    folder = video.with_name(f"{video.stem}-bands") if output is None else output
    check_folder(folder)

    from freqformer._files import output_folder
    from freqformer.demo.stages import ENERGIES, INSPECTED, inspect_video

    writing = output_folder(folder, "inspect", INSPECTED, earlier=(ENERGIES,))
    with writing, errors.status("splitting the video into its bands"):
        found = inspect_video(
            video, folder, start=start, seconds=seconds, side=side, patch=(1, patch, patch)
        )
    for name, share in zip(("low", "mid", "high"), found.total_shares, strict=True):
        typer.echo(f"{name:>5}  {100 * share:5.1f}% of the energy")
    typer.echo(f"wrote band_energies.png, band_energies.json and bands.mp4 in {folder}")
