"""The demo from end to end."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from freqformer import __version__
from freqformer._files import output_folder, read_json, write_json, write_text
from freqformer._interrupt import Interrupted, signal_name
from freqformer.analysis.figures import allocation_figure, loss_figure, weights_figure
from freqformer.analysis.spectra import Spectrum
from freqformer.config import Band, FreqFormerConfig
from freqformer.demo import TRAIN_SECONDS
from freqformer.demo.page import render_page
from freqformer.demo.shipped import generate_shipped, load_shipped
from freqformer.demo.stages import INSPECTED, Generated, generate, inspect_video
from freqformer.demo.verdict import Verdict
from freqformer.grid import Grid, tile_layout
from freqformer.media import VideoError, contact_sheet, enlarge, probe_video, read_clip, write_video
from freqformer.plan import build_plan
from freqformer.training.config import (
    DataConfig,
    ObjectiveConfig,
    OptimizerConfig,
    RoutingConfig,
    RunConfig,
    TrainConfig,
)

if TYPE_CHECKING:
    from freqformer.models.transformer import FreqFormerTransformer3DModel
    from freqformer.training.report import StepReport

SHIPPED_CLIP = Path(__file__).parents[1] / "assets" / "pagoda.mp4"
SHIPPED_CREDIT = (
    "The pagoda was photographed by danielbuechele, the dahlia by vultilion (both CC BY 2.0)."
)
GRID_720P = Grid(21, 45, 80)
"""Tokens of 5 s of 720p in the latents of a usual video VAE."""

FINE_TUNING_RATE = 3e-3
"""Learning rate where the weights are trained already. After 300 steps on the shipped clip the
video was 23.7 dB similar to it, and 19.4 dB at a third of this rate."""

RUN_MARK = "made-by-the-demo"
OF_A_RUN = {
    *(RUN_MARK, "checkpoints", "logs", "pipeline", "parts.json", "train.json"),
    *(".freqformer.lock", ".freqformer.lock.json", ".freqformer-output.json"),
}
FILES = (
    *(
        "index.html",
        "summary.json",
        "input.mp4",
        "generated.mp4",
        "contact_sheet.png",
        "loss.png",
        "routing.png",
    ),
    *(*INSPECTED, "shipped.mp4", "long.mp4", "long.png"),
)
"""What a demo writes beside OUTPUT/run."""

Say = Callable[[str], Any]


@dataclass(frozen=True)
class DemoSettings:
    """Sizes of the demo from scratch, chosen so that about two minutes on two CPU cores show the
    clip's content.

    Steps are worth more than size here: large patches make a clip few tokens, so a step is short,
    and small tiles still cut it into 32 tiles, so that the bands' operators leave something out.
    """

    num_frames: int = 16
    height: int = 48
    width: int = 80
    fps: float = 8.0
    model: dict[str, Any] = field(
        default_factory=lambda: {
            "patch_size": [2, 8, 8],
            "num_layers": 3,
            "num_attention_heads": 6,
            "attention_head_dim": 32,
            "frequency": {
                "preset": "paper",
                "tile": [1, 3, 5],
                "mid_tiles": 8,
                "compression": 128,
            },
            "absolute_positions": True,
            "prediction_type": "sample",
        }
    )
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(
            learning_rate=2.5e-3, warmup_steps=20, weight_decay=0.0
        )
    )
    # Much noise is where a clip has to be known by heart.
    objective: ObjectiveConfig = field(
        default_factory=lambda: ObjectiveConfig(logit_mean=1.2, logit_std=0.8)
    )
    batch_size: int = 1
    max_steps: int = 800
    fine_tuning_steps: int = 300
    """Steps where the weights are trained already."""
    inference_steps: int = 30
    inspect_side: int = 384
    enlarge: int = 4
    """Pixels that are shown for a pixel of the model."""

    @property
    def seconds(self) -> float:
        """Length of a clip."""
        return self.num_frames / self.fps

    @property
    def size(self) -> tuple[int, int, int]:
        """(frames, height, width) of a clip."""
        return (self.num_frames, self.height, self.width)

    def of_model(self, folder: Path) -> DemoSettings:
        """These settings for fine-tuning an exported model: its sizes, and smaller steps than from
        scratch.

        Raises:
            ValueError: for a folder that holds none.
        """
        place = folder / "train.json"
        if not place.is_file():
            raise ValueError(
                f"{folder} holds no exported model; give a folder that `freqformer export` wrote"
            )
        record = read_json(place, remedy="export the model again")
        sizes = {name: record["data"][name] for name in ("num_frames", "height", "width", "fps")}
        optimizer = replace(self.optimizer, learning_rate=FINE_TUNING_RATE, ema_decay=0.98)
        return replace(
            self,
            model=record["model"],
            optimizer=optimizer,
            max_steps=self.fine_tuning_steps,
            **sizes,
        )


@dataclass(frozen=True)
class _Trained:
    folder: Path
    reports: list[StepReport]


def run_demo(
    output: Path,
    *,
    video: Path | None = None,
    model: Path | None = None,
    train_steps: int | None = None,
    train_seconds: float = TRAIN_SECONDS,
    seed: int = 0,
    say: Say = print,
    settings: DemoSettings | None = None,
) -> Path:
    """Inspect a video, train a small model on its first seconds, generate, and write a report.

    With an exported model it is that one which is trained on, after it has generated a video, and a
    long one, as it came. The generated video is judged by the clip that it should give back.

    Args:
        output: folder for the report. What an earlier demo left there is replaced; other files are
            kept.
        video: at least as long as a clip of the settings; None takes the shipped one.
        model: folder that `export_model` wrote; None trains a fresh model.
        train_steps: training steps; None takes those of the settings.
        train_seconds: time to train at most. A machine that is too slow for all steps says so.
        seed: of the weights, the noise and all else.
        say: told what is being done.
        settings: sizes; None takes those of the demo. With a model, its own sizes are taken.

    Returns: the path of index.html.

    Raises:
        VideoError: for a video that can't be read or is too short.
        ValueError: where `output` holds files of the same names that no demo made, another process
            is writing there, or for a model that can't be loaded.
        KeyboardInterrupt: (`Interrupted`) after a signal.
    """
    try:
        with output_folder(output, "demo", FILES, earlier=(f"run/{RUN_MARK}",)):
            return _run(
                output,
                video,
                model,
                train_steps,
                train_seconds,
                seed,
                say,
                settings or DemoSettings(),
            )
    except Interrupted as stop:
        # Training says that it goes on from its checkpoint, which a demo does not.
        raise Interrupted(
            stop.signal,
            f"stopped by {signal_name(stop.signal)}: {output} keeps what was made so far, and the"
            " same command begins again",
        ) from None


def _run(
    output: Path,
    video: Path | None,
    model: Path | None,
    train_steps: int | None,
    train_seconds: float,
    seed: int,
    say: Say,
    settings: DemoSettings,
) -> Path:
    # Imported late: diffusers takes seconds, and the demo's first words should not wait for it.
    began, source = time.perf_counter(), video or SHIPPED_CLIP
    settings = settings if model is None else settings.of_model(model)
    settings = settings if train_steps is None else replace(settings, max_steps=train_steps)
    stage, start, shipped = _Stages(say, 4 if model is None else 5), None, None
    with stage(f"inspecting {source.name}"):
        _check_length(source, settings)
        run = _fresh_run_folder(output)
        spectrum = inspect_video(source, output, side=settings.inspect_side, patch=(1, 4, 4))
        clip = _write_clip(source, output / "input.mp4", settings)
    if model is not None:
        with stage("generating with the model as it came, a clip and one 4 times as long"):
            start = load_shipped(model)
            shipped = generate_shipped(
                start, settings.size, steps=settings.inference_steps, seed=seed
            )
    how = "training a small" if model is None else "fine-tuning the"
    with stage(f"{how} model: {settings.max_steps} steps, {train_seconds:g} s at most"):
        trained = _train(
            clip, run, train_seconds, seed, settings, None if start is None else start.transformer
        )
    with stage("generating"):
        from freqformer.models.pipeline import FreqFormerPipeline

        pipeline = FreqFormerPipeline.from_pretrained(str(trained.folder))
        pipeline.set_progress_bar_config(desc="generating")
        generated = generate(pipeline, settings.size, steps=settings.inference_steps, seed=seed)
    verdict = _judge(generated, clip, trained.reports, settings)
    with stage("writing the report"):
        _write_pictures(output, settings, trained.reports, generated)
        facts = _facts(settings, trained.reports, spectrum, generated) | _costs(
            settings, pipeline.transformer, generated
        )
        facts["verdict"] = asdict(verdict) | {
            name: getattr(verdict, name) for name in ("similarity", "judgement", "shortfall")
        }
        facts["shipped"] = (
            None if shipped is None else shipped.write(output, settings.fps, settings.enlarge)
        )
        facts["credit"] = SHIPPED_CREDIT if video is None else ""
        facts["total_seconds"] = time.perf_counter() - began
        page = _write_page(output, facts)
    for line in verdict.lines():
        say(line)
    return page


class _Stages:
    """Says which of how many stages begins, and how long it took."""

    def __init__(self, say: Say, count: int) -> None:
        self.say, self.count, self.begun = say, count, 0

    @contextmanager
    def __call__(self, title: str) -> Iterator[None]:
        began, self.begun = time.perf_counter(), self.begun + 1
        self.say(f"[{self.begun}/{self.count}] {title}")
        yield
        self.say(f"      done in {time.perf_counter() - began:.1f} s")


def _check_length(video: Path, settings: DemoSettings) -> None:
    duration = probe_video(video).duration
    if duration <= (settings.num_frames - 1) / settings.fps:
        raise VideoError(
            f"{video} lasts {duration:.2f} s; the demo needs {settings.seconds:g} s: choose a "
            "longer one"
        )


def _fresh_run_folder(output: Path) -> Path:
    """OUTPUT/run, empty but for a mark that the demo may replace it."""
    run = output / "run"
    mark = run / RUN_MARK
    foreign = (
        [path.name for path in run.iterdir() if path.name not in OF_A_RUN] if run.is_dir() else []
    )
    if os.path.lexists(run) and (foreign or run.is_symlink() or not mark.is_file()):
        what = (
            f"holds {', '.join(foreign[:3])}, which no demo made,"
            if foreign
            else "was not made by a demo"
        )
        raise ValueError(f"{run} {what} and is kept; choose another --output, or move it away")
    shutil.rmtree(run, ignore_errors=True)
    run.mkdir(parents=True)
    mark.touch()
    return run


def _write_clip(video: Path, path: Path, settings: DemoSettings) -> Path:
    """The part of the video that is trained on, larger than the model's pixels so that little is
    lost by coding it."""
    height, width = settings.height * settings.enlarge, settings.width * settings.enlarge
    frames = read_clip(
        video, start=0, num_frames=settings.num_frames, fps=settings.fps, height=height, width=width
    )
    write_video(frames, path, settings.fps)
    return path


def _train(
    clip: Path,
    run: Path,
    seconds: float,
    seed: int,
    settings: DemoSettings,
    start: FreqFormerTransformer3DModel | None,
) -> _Trained:
    from freqformer.training.loop import train

    size = {
        "num_frames": settings.num_frames,
        "height": settings.height,
        "width": settings.width,
        "fps": settings.fps,
    }
    config = TrainConfig(
        output=str(run),
        model=settings.model,
        data=DataConfig(path=str(clip), **size),  # type: ignore[arg-type]
        optimizer=settings.optimizer,
        objective=settings.objective,
        # A trained router has chosen already; computing other bands beside its choice would double
        # attention's time.
        routing=RoutingConfig(mode="sampled" if start is None else "off"),
        run=RunConfig(
            max_steps=settings.max_steps,
            max_seconds=seconds,
            batch_size=settings.batch_size,
            seed=seed,
            device="cpu",
        ),
    )
    reports: list[StepReport] = []
    folder = train(config, model=start, on_step=reports.append)
    return _Trained(folder, reports)


def _judge(
    generated: Generated, clip: Path, reports: list[StepReport], settings: DemoSettings
) -> Verdict:
    """Compare with the clip as training reads it."""
    num_frames, height, width = settings.size
    size = {"num_frames": num_frames, "height": height, "width": width}
    frames = read_clip(clip, start=0, fps=settings.fps, **size)
    return Verdict.of(
        generated.frames,
        frames,
        steps=len(reports),
        planned_steps=settings.max_steps,
        seconds=reports[-1].seconds,
    )


def _write_pictures(
    output: Path, settings: DemoSettings, reports: list[StepReport], generated: Generated
) -> None:
    large = enlarge(generated.frames, settings.enlarge)
    write_video(large, output / "generated.mp4", settings.fps)
    contact_sheet(large, output / "contact_sheet.png", columns=4)
    loss_figure(
        [report.step for report in reports],
        [report.loss for report in reports],
        output / "loss.png",
    )
    if generated.low_weights is None:
        allocation_figure(generated.allocations, generated.timesteps, output / "routing.png")
    else:
        weights_figure(generated.low_weights, generated.timesteps, output / "routing.png")


def _facts(
    settings: DemoSettings, reports: list[StepReport], spectrum: Spectrum, generated: Generated
) -> dict[str, Any]:
    """What the run measured."""
    tenth = max(len(reports) // 10, 1)
    losses = [report.loss for report in reports]
    return {
        "version": __version__,
        "torch_version": torch.__version__,
        "threads": torch.get_num_threads(),
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "clip": {
            "frames": settings.num_frames,
            "height": settings.height,
            "width": settings.width,
            "fps": settings.fps,
        },
        "compression": spectrum.layout.grid.num_tokens / spectrum.num_low_tokens,
        "band_shares": dict(zip(("low", "mid", "high"), spectrum.total_shares, strict=True)),
        "train_steps": len(reports),
        "train_seconds": reports[-1].seconds,
        "first_loss": sum(losses[:tenth]) / tenth,
        "last_loss": sum(losses[-tenth:]) / tenth,
        "inference_steps": settings.inference_steps,
        "generate_seconds": generated.seconds,
    }


def _costs(
    settings: DemoSettings, model: FreqFormerTransformer3DModel, generated: Generated
) -> dict[str, Any]:
    """What the plan says that the chosen allocation costs, relative to dense attention."""
    grid = model.grid_for((settings.num_frames, settings.height, settings.width))
    shares = [float((generated.allocations == band).double().mean()) for band in Band]
    # The demo's tiles are small for the sake of a small clip; what matters at 720p is what one
    # would use there.
    large = build_plan(
        GRID_720P, FreqFormerConfig.paper(), num_heads=1, head_dim=64, learned_summaries=True
    )
    costs = {}
    for name, where, flops in (
        ("here", grid, model.routing_costs(grid)),
        ("720p", GRID_720P, large.band_costs()),
    ):
        of_band = [cost / flops[Band.DENSE] for cost in flops]
        density = sum(share * cost for share, cost in zip(shares, of_band, strict=True))
        costs[name] = {"tokens": where.num_tokens, "bands": of_band[:3], "density": density}
    return {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "tiles": tile_layout(grid, model.frequency_config.tile).num_tiles,
        "head_shares": shares[:3],
        "routing": model.frequency_config.routing,
        "attention_flops_of_dense": costs,
    }


def _write_page(output: Path, facts: dict[str, Any]) -> Path:
    write_json(output / "summary.json", facts)
    page = output / "index.html"
    write_text(page, render_page(facts))
    return page
