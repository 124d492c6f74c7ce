"""What `freqformer calibrate --pipeline` does."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import typer

Dtype = Literal["bfloat16", "float16", "float32"]
Offload = Literal["none", "model", "sequential"]


@dataclass(frozen=True)
class PipelineOptions:
    """The options of the command that are about a pipeline."""

    pipeline: str
    prompts: Path
    output: Path
    density: float | None
    tolerance: float | None
    frames: int | None
    size: tuple[int, int] | None
    steps: int
    start_percent: float
    trials: int
    guidance: float | None
    seed: int
    dtype: Dtype
    offload: Offload
    device: str | None

    def call(self) -> dict[str, Any]:
        """Arguments that all calls of the pipeline share, those that were given."""
        height, width = self.size or (None, None)
        given = {
            "num_frames": self.frames,
            "height": height,
            "width": width,
            "guidance_scale": self.guidance,
        }
        return {name: value for name, value in given.items() if value is not None}


def calibrate_a_pipeline(options: PipelineOptions) -> None:
    """Measure, choose, write the tables and the report, and say what to do with them.

    Raises:
        ValueError: as `calibrate_pipeline`, and for prompts that can't be read.
    """
    prompts = read_prompts(options.prompts)

    import torch

    from freqformer._files import output_folder
    from freqformer.calibration import CalibrationSettings, calibrate_pipeline
    from freqformer.calibration.pipelines.files import FILES, write_pipeline_report
    from freqformer.cli.devices import chosen_device, device_name
    from freqformer.generation.loading import load_pipeline

    settings = CalibrationSettings(
        steps=options.steps,
        start_percent=options.start_percent,
        trials=options.trials,
        seed=options.seed,
    )
    where = chosen_device(options.device)
    pipe = load_pipeline(
        options.pipeline,
        dtype=getattr(torch, options.dtype),
        device=where,
        offload=options.offload,
    )
    if hasattr(pipe, "set_progress_bar_config"):
        pipe.set_progress_bar_config(disable=True)
    typer.echo(f"calibrating on {device_name(where)}")
    with output_folder(options.output, "calibrate", FILES, earlier=("state",)):
        choice = calibrate_pipeline(
            pipe,
            prompts,
            density=options.density,
            tolerance=options.tolerance,
            call=options.call(),
            settings=settings,
            state=options.output / "state",
        )
        write_pipeline_report(choice, options.output)
    if choice.chosen is not None:
        typer.echo(
            f"nearest of {len(choice.tried)} tables: {choice.chosen.name}, "
            f"{choice.chosen.nearness:.2f} dB"
        )
    typer.echo(
        f"{100 * choice.density:.1f}% of dense attention's FLOPs; expected error of the final "
        f"latents {choice.expected_error:.3g}"
    )
    typer.echo(
        f"next: freqformer generate --pipeline {options.pipeline} --prompt ... --output new.mp4 "
        f"--table {options.output}"
    )


def read_prompts(path: Path) -> list[str]:
    """The prompts of a text file, one a line; empty lines are left out.

    Raises:
        ValueError: for a file that is missing, holds no text, or has none.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(
            f"--prompts is {path}, which can't be read ({error}); a text file with one prompt a "
            "line is allowed"
        ) from error
    prompts = [line.strip() for line in lines if line.strip()]
    if not prompts:
        raise ValueError(f"--prompts is {path}, which is empty; one prompt a line is allowed")
    return prompts
