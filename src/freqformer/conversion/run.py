"""Turning a dense model into one of windows or best tiles, and LOW branches, from a folder to a
folder."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from freqformer._interrupt import StopRequest, between_steps
from freqformer.conversion.config import ConvertConfig
from freqformer.conversion.converter import CONVERT_FILE, Converter
from freqformer.conversion.feeds import Feed
from freqformer.conversion.loading import (
    clip_feed,
    load_called,
    load_pair,
    run_source,
    share_teacher,
    transformer_kind,
)
from freqformer.conversion.pairs import Pair
from freqformer.training.accelerator import run_accelerator
from freqformer.training.config import RunConfig
from freqformer.training.loader import ClipSource
from freqformer.training.processes import any_process, only_run
from freqformer.training.progress import ShownProgress, progress_shown
from freqformer.training.provenance import SESSIONS_FILE
from freqformer.training.report import StepReport
from freqformer.training.seeding import seed_everything
from freqformer.training.tracking import check_tracker

if TYPE_CHECKING:
    from accelerate import Accelerator

OnStep = Callable[[StepReport], None]


def convert(
    config: ConvertConfig,
    *,
    clips: ClipSource | Iterable[Any] | None = None,
    on_step: OnStep | None = None,
) -> Path:
    """Convert a dense model; goes on from the newest checkpoint in `config.output`.

    Stage one draws every attention layer's output to the dense one's, on the dense model's own
    inputs; stage two the model's velocity to the dense one's; stage three trains on clips. The
    dense model's weights stay as they are.

    Writes `checkpoints/`, TensorBoard's `logs/`, `sessions.json`, and in the end, of each session
    too, the result with averaged weights: `adapter/` for a model of diffusers, for
    `enable_frequency_attention(pipe, adapter=...)`; `pipeline/` for this package's own, for
    `FreqFormerPipeline.from_pretrained`.

    Ctrl-C and SIGTERM end a session after the step that is being done, with all of that. Under
    torchrun or `accelerate launch` each process asks about clips or calls of its own, and gradients
    are averaged: a step is that of one process with as many times the accumulation.

    Args:
        config: the run.
        clips: in place of those of `config.data`, as in `freqformer.training.loop.train`; for a
            model of pixels.
        on_step: called after every step, by the main process.

    Returns: the folder of the result.

    Raises:
        ValueError: for a folder, model or clips that can't be converted, with the remedy.
        CheckpointError: for a checkpoint that can't be written, read, or resumed with this config,
            and where another run writes to the same folder.
        TrainingError: where the loss or its gradient is not finite; the last checkpoint stays.
        KeyboardInterrupt: (`Interrupted`) after a signal, once all is kept.
    """

    transformer_kind(
        Path(config.pipeline), config.part
    )  # refuses other folders before anything is written

    def make(accelerator: Accelerator) -> tuple[Pair, Feed]:
        shards = config.shards(accelerator.num_processes, accelerator.process_index)
        device, processes = accelerator.device, accelerator.num_processes
        if config.calls is not None:
            pair, feed = load_called(config, device, shards)
        else:
            source = run_source(config, clips)
            pair = load_pair(config, device, source)
            feed = clip_feed(config, source, pair, device, shards)
        share_teacher(pair, config.run.parallel, processes, device.type)
        return pair, feed

    return run_conversion(config, make, on_step)


def run_conversion(
    config: ConvertConfig,
    make: Callable[[Accelerator], tuple[Pair, Feed]],
    on_step: OnStep | None = None,
) -> Path:
    """As `convert`, of any pair of models and what they are asked.

    Args:
        config: of the run.
        make: both, on the accelerator's device.
        on_step: called after every step, by the main process.
    """
    run = config.run.whole(config.stages.total)
    check_tracker(run.tracker)
    with (
        run_accelerator(config.output, run) as accelerator,
        only_run(Path(config.output), accelerator, "convert", (SESSIONS_FILE, CONVERT_FILE)),
        _progress(run, accelerator) as progress,
    ):
        seed_everything(config.run.seed, "model")
        converter = Converter(config, accelerator, *make(accelerator))
        with closing(converter.log):
            converter.resume()
            return _converted(converter, progress, on_step)


def _converted(converter: Converter, progress: ShownProgress, on_step: OnStep | None) -> Path:
    """Convert from where the run is, and save it."""
    with between_steps("finishing the step") as stop:
        _steps(converter, stop, progress, on_step)
        stopped = any_process(converter.accelerator, stop.asked)
        converter.save()
        result = converter.save_result() if converter.step or not stopped else None
    if stop.asked:
        raise stop.interrupted(_what_is_kept(converter))
    assert result is not None
    return result


def _steps(
    converter: Converter, stop: StopRequest, progress: ShownProgress, on_step: OnStep | None
) -> None:
    """Convert until the run or its session is over, or a signal came."""
    total, every = converter.config.stages.total, converter.config.checkpoint.every_steps
    accelerator = converter.accelerator
    with converter.feed.open(converter.step) as questions:
        progress.begin(converter.clock.seconds)
        while converter.step < total and not any_process(accelerator, stop.asked):
            report = converter.advance(questions)
            progress.show(report)
            if on_step is not None and accelerator.is_main_process:
                on_step(report)
            if converter.step % every == 0:
                converter.save()
            if converter.clock.session_is_over:
                break


def _progress(run: RunConfig, accelerator: Accelerator) -> Any:
    enabled = run.progress and accelerator.is_main_process
    return progress_shown(run, accelerator.device, enabled=enabled)


def _what_is_kept(converter: Converter) -> str:
    if not converter.step:
        return " before the first step: the same command begins again"
    if converter.step >= converter.config.stages.total:
        return f", and the run was done: {converter.folder}"
    return f" after step {converter.step}, which {converter.folder} keeps: the same command goes on"
