"""The demo from end to end."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from freqformer._files import output_folder
from freqformer._interrupt import Interrupted, signal_name
from freqformer.demo import TRAIN_SECONDS
from freqformer.demo.report import measured_facts, planned_costs, write_page, write_pictures
from freqformer.demo.run_folder import RUN_MARK, fresh_run_folder
from freqformer.demo.settings import DemoSettings
from freqformer.demo.shipped import generate_shipped, load_shipped
from freqformer.demo.stages import INSPECTED, Generated, generate, inspect_video
from freqformer.demo.verdict import Verdict
from freqformer.media import VideoError, probe_video, read_clip, write_video
from freqformer.training.config import (
    DataConfig,
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
        run = fresh_run_folder(output)
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
        write_pictures(output, settings, trained.reports, generated)
        facts = measured_facts(settings, trained.reports, spectrum, generated) | planned_costs(
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
        page = write_page(output, facts)
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
