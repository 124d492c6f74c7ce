"""From a finished run to a model to ship: averaged weights in bfloat16, with a card filled from the
run's records."""

from __future__ import annotations

import time
from importlib.resources import files
from pathlib import Path
from statistics import fmean
from string import Template
from typing import TYPE_CHECKING, Any

import torch

from freqformer._files import (
    MANIFEST_NAME,
    read_json,
    read_manifest,
    write_json,
    write_manifest,
    write_text,
    writing_folder,
)
from freqformer.training.checkpoint import CheckpointError
from freqformer.training.config import DataConfig, TrainConfig
from freqformer.training.provenance import LOSS_STEPS, TRAIN_FILE, Session, read_sessions

if TYPE_CHECKING:
    from freqformer.models.pipeline import FreqFormerPipeline

RECORD_FILE, CARD_FILE, SAMPLES_FILE = "record.json", "README.md", "samples.png"
WEIGHTS = Path("transformer", "diffusion_pytorch_model.safetensors")
PLACE = "_name_or_path"
"""Under which diffusers notes in a config where it was loaded from."""
MOST_BYTES = 6_000_000
"""Weights that a package may carry."""
FRESH_CLIPS = 32
SAMPLES, COLUMNS, INFERENCE_STEPS = 4, 8, 30
"""Videos on the card, frames of each, and denoising steps."""


def export_model(run: Path, target: Path, *, most_bytes: int = MOST_BYTES) -> Path:
    """Write a finished run as a model folder: weights, configs, card, samples, and the run's
    records.

    Args:
        run: output folder of `freqformer train`, with its train.json, sessions.json and pipeline.
        target: folder to write; an earlier export is replaced once the new one is whole, and
            nothing else is.
        most_bytes: largest size of the weights.

    Returns: target, for `FreqFormerPipeline.from_pretrained`.

    Raises:
        ValueError: for a folder without a finished run, weights that are too large, photographs
            without attribution, or where clips like the run's can't be made here, on which the loss
            is measured.
        CheckpointError: for a folder that can't be written, holds anything but an earlier export,
            or is being written.
    """
    from freqformer.models.pipeline import FreqFormerPipeline

    config, sessions = _finished_run(run)
    told = _data_and_licence(config.data)
    with writing_folder(target, kind="export", error=CheckpointError) as folder:
        FreqFormerPipeline.from_pretrained(
            str(run / "pipeline"), dtype=torch.bfloat16
        ).save_pretrained(folder)
        _forget_places(folder)
        size = (folder / WEIGHTS).stat().st_size
        if size > most_bytes:
            raise ValueError(
                f"{run} has {size:,} bytes of weights in bfloat16; {most_bytes:,} at most are "
                "allowed: train a smaller one"
            )
        # What is measured is what was written: rounded weights, computed with in float32 as on any
        # CPU.
        pipeline = FreqFormerPipeline.from_pretrained(str(folder), dtype=torch.float32)
        facts = _facts(pipeline, config, folder / SAMPLES_FILE) | {
            "bytes": size,
            "sessions": [vars(session) for session in sessions],
        }
        write_json(folder / TRAIN_FILE, config.to_dict())
        write_json(folder / RECORD_FILE, facts)
        write_text(folder / CARD_FILE, _card(target, config.data, sessions, facts, told))
    return target


def _forget_places(folder: Path) -> None:
    """Take out of the configs where this machine keeps the run."""
    manifests = list(folder.rglob(MANIFEST_NAME))
    for path in folder.rglob("*.json"):
        if path not in manifests:
            config = read_json(path, remedy="export again")
            kept = {name: value for name, value in config.items() if name != PLACE}
            write_json(path, kept, indent=2)
    for path in manifests:
        if (record := read_manifest(path.parent, remedy="export again")) is not None:
            write_manifest(path.parent, record["kind"])


def fresh_loss(
    pipeline: FreqFormerPipeline, config: TrainConfig, *, clips: int = FRESH_CLIPS
) -> float:
    """Mean flow-matching loss on clips that another seed draws, or cuts from the run's videos.

    Args:
        pipeline: whose transformer is measured.
        config: of its training: the clips, and how noise levels are drawn.
        clips: how many.
    """
    from freqformer.training.loader import ClipLoader
    from freqformer.training.objective import batch_loss, resolution_shift, sample_timesteps
    from freqformer.training.seeding import derive_generator, derive_seed
    from freqformer.training.sources import clip_source

    settings, data, model = config.objective, config.data, pipeline.transformer
    seed = derive_seed(config.run.seed, "fresh")
    tokens = model.grid_for((data.num_frames, data.height, data.width)).num_tokens
    shift = resolution_shift(tokens) if settings.shift is None else settings.shift
    draw = derive_generator(seed, "timestep")
    options = {
        "mean": settings.logit_mean,
        "std": settings.logit_std,
        "stratified": settings.stratified,
    }
    losses = []
    with (
        ClipLoader(clip_source(data, seed), iter(range(2**62)), seed=seed) as loader,
        torch.no_grad(),
    ):
        for timestep in sample_timesteps(clips, shift, draw, **options):
            batch = loader.take(1)
            losses.append(float(batch_loss(model, batch, timestep[None])))
    return fmean(losses)


def _finished_run(run: Path) -> tuple[TrainConfig, list[Session]]:
    sessions, file = read_sessions(run), run / TRAIN_FILE
    if not (sessions and file.is_file() and (run / "pipeline" / "model_index.json").is_file()):
        raise ValueError(
            f"{run} holds no run that ended; give the output folder of `freqformer train`"
        )
    if sessions[-1].progress < 1:
        raise ValueError(
            f"{run} is {100 * sessions[-1].progress:.0f}% done; a whole run is allowed: train on, "
            "then export"
        )
    return TrainConfig.from_dict(read_json(file, remedy="train again to write it")), sessions


def _facts(pipeline: FreqFormerPipeline, config: TrainConfig, sheet: Path) -> dict[str, Any]:
    """What is measured on the exported weights; writes the samples' contact sheet."""
    from freqformer.media import contact_sheet

    data = config.data
    pipeline.set_progress_bar_config(disable=True)
    loss = fresh_loss(pipeline, config)
    began, stride = time.perf_counter(), -(-data.num_frames // COLUMNS)
    rows = []
    for seed in range(SAMPLES):
        generator = torch.Generator().manual_seed(seed)
        size = (data.num_frames, data.height, data.width)
        made = pipeline(
            *size, num_inference_steps=INFERENCE_STEPS, generator=generator, output_type="uint8"
        )
        rows.append(made.frames[0][::stride])
    seconds = (time.perf_counter() - began) / SAMPLES
    contact_sheet(torch.cat(rows), sheet, columns=len(rows[0]), scale=2)
    return {
        "parameters": sum(parameter.numel() for parameter in pipeline.transformer.parameters()),
        "fresh_clips": FRESH_CLIPS,
        "fresh_loss": loss,
        "sample_seconds": seconds,
        "sample_stride": stride,
        "inference_steps": INFERENCE_STEPS,
        "threads": torch.get_num_threads(),
    }


def _card(
    target: Path,
    data: DataConfig,
    sessions: list[Session],
    facts: dict[str, Any],
    told: tuple[str, str],
) -> str:
    last = sessions[-1]
    rows = [
        f"| {number} | {session.first_step:,} to {session.last_step:,} | {session.clips:,} | "
        f"{session.seconds:.0f} | {session.loss:.4f} | "
        f"{session.device} | {(session.commit or 'unknown')[:12]} | `{session.command}` |"
        for number, session in enumerate(sessions, 1)
    ]
    text = {
        "name": f"FreqFormer, {data.num_frames} x {data.height} x {data.width}",
        "place": target.as_posix(),
        "parameters": f"{facts['parameters'] / 1e6:.2f}",
        "megabytes": f"{facts['bytes'] / 1e6:.1f}",
        "minutes": f"{sum(session.seconds for session in sessions) / 60:.1f}",
        "frames": data.num_frames,
        "height": data.height,
        "width": data.width,
        "fps": f"{data.fps:g}",
        "samples": SAMPLES_FILE,
        "rows": SAMPLES,
        "last_seed": SAMPLES - 1,
        "stride": facts["sample_stride"],
        **{name: facts[name] for name in ("inference_steps", "threads")},
        "sample_seconds": f"{facts['sample_seconds']:.1f}",
        "sessions": "\n".join(rows),
        "loss_steps": LOSS_STEPS,
        "fresh": facts["fresh_clips"],
        "come": "drawn by another seed"
        if data.path is None
        else "that another seed cut from the same videos",
        "fresh_loss": f"{facts['fresh_loss']:.4f}",
        "torch": last.torch,
        "version": last.freqformer,
        **dict(zip(("data", "licence"), told, strict=True)),
    }
    return Template(
        (files("freqformer.training") / "card.md").read_text(encoding="utf-8")
    ).substitute(text)


def _data_and_licence(data: DataConfig) -> tuple[str, str]:
    """What the run was trained on, in words, and what follows for the use of what it makes."""
    if data.cache is not None:
        raise ValueError(
            f"the run was trained on the cache {data.cache}; export makes small models of pixels:"
            " the run's pipeline/ holds the model with its VAE and text encoder, ready to copy"
        )
    if data.photographs is not None:
        credits = Path(data.photographs) / "ATTRIBUTION.md"
        if not credits.is_file():
            raise ValueError(
                f"{credits} is missing; the card names authors and licences: write them there as a "
                "table"
            )
        # The table alone: the text around it is about what else the photographs serve.
        table = [
            line
            for line in credits.read_text(encoding="utf-8").splitlines()
            if line.startswith("|")
        ]
        told = (
            "Drawn clips, none shown twice: a camera pans and zooms over a photograph, with one to "
            "three striped balls "
            "that fly in front, bounce and hide one another. The photographs:\n\n"
            + "\n".join(table)
        )
        return (
            told,
            "Videos that it makes show the photographs above, whose licences ask to name their "
            "authors.",
        )
    if data.path is not None:
        return (
            f"Videos: `{data.path}`.",
            "The videos that it was trained on have licences of their own.",
        )
    return (
        "Drawn clips, none shown twice: textured discs that fly over a drifting background. No "
        "file is behind them.",
        "",
    )
