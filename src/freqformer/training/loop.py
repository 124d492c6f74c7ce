"""The training loop."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import distributed as dist

from freqformer._interrupt import StopRequest, between_steps
from freqformer._optional import needs
from freqformer.training.cache.defaults import with_cache
from freqformer.training.config import TrainConfig
from freqformer.training.loader import ClipSource
from freqformer.training.processes import check_launch, only_run
from freqformer.training.profiling import StepProfiler
from freqformer.training.progress import ShownProgress, progress_shown
from freqformer.training.report import StepReport
from freqformer.training.starting import with_initial_model
from freqformer.training.tracking import check_tracker
from freqformer.training.trainer import Trainer
from freqformer.training.validation.validator import Validator

if TYPE_CHECKING:
    from accelerate import Accelerator

    from freqformer.models.transformer import FreqFormerTransformer3DModel


def train(
    config: TrainConfig,
    *,
    model: FreqFormerTransformer3DModel | None = None,
    clips: ClipSource | Iterable[Any] | None = None,
    on_step: Callable[[StepReport], None] | None = None,
) -> Path:
    """Train a model and save it as a pipeline folder; goes on from the newest checkpoint in
    `config.output`.

    Writes `checkpoints/`, TensorBoard's `logs/`, and in the end, of each session too, `pipeline/`
    with the averaged weights and `sessions.json` (see `freqformer.training.provenance`). Runs under
    `accelerate launch` on several devices too.

    Ctrl-C and SIGTERM end a session after the step that is being done, with all of that; a second
    one ends at once, and the newest checkpoint stays.

    Args:
        config: the run.
        model: to train instead of a fresh one of `config.model`; trained in place.
        clips: to train on instead of those of `config.data`, which still says their size: a dataset
            with `len` and indexing (shown in random order, each once an epoch), or an iterable
            (taken in its order, again and again), of float tensors (channels, frames, height,
            width), in [-1, 1] for pixels. Latents are allowed: the channels are the model's.
        on_step: called after every step, by the main process.

    Returns: the pipeline's folder, for `FreqFormerPipeline.from_pretrained`.

    Raises:
        ValueError: for a model that `config.model` can't make, one of another library, or clips
            that don't fit it.
        VideoError: for videos that can't be read; the steps before are kept.
        CheckpointError: for a checkpoint that can't be written, read, or resumed with this config,
            and where another run writes to the same folder.
        TrainingError: where the loss or its gradient is not finite; the last checkpoint stays.
        KeyboardInterrupt: (`Interrupted`) after a signal, once all is kept.
    """
    config = with_cache(with_initial_model(config))
    check_tracker(config.run.tracker)
    with (
        _accelerator(config) as accelerator,
        only_run(Path(config.output), accelerator),
        _progress(config, accelerator) as progress,
    ):
        trainer = Trainer(config, accelerator, model, clips)
        with closing(trainer.log):
            trainer.resume()
            return _trained(trainer, progress, on_step)


def _trained(
    trainer: Trainer, progress: ShownProgress, on_step: Callable[[StepReport], None] | None
) -> Path:
    """Train from where the run is, and save it; raises as `train`."""
    with between_steps("finishing the step") as stop:
        validator = Validator(trainer)
        _steps(trainer, validator, stop, progress, on_step)
        stopped = trainer.any_process(stop.asked)
        trainer.save()
        validator.after_step(last=trainer.clock.progress >= 1)
        # What was stopped before its first step has nothing to show.
        pipeline = trainer.save_pipeline() if trainer.step or not stopped else None
    if stop.asked:
        raise stop.interrupted(_what_is_kept(trainer, pipeline))
    assert pipeline is not None
    return pipeline


def _steps(
    trainer: Trainer,
    validator: Validator,
    stop: StopRequest,
    progress: ShownProgress,
    on_step: Callable[[StepReport], None] | None,
) -> None:
    """Train until the run or its session is over, or a signal came."""
    main = trainer.accelerator.is_main_process
    profiler = StepProfiler(trainer.config.run.profile, trainer.folder, main=main)
    with trainer.loader() as loader:
        progress.begin(trainer.clock.seconds)
        while trainer.clock.progress < 1 and not trainer.any_process(stop.asked):
            with profiler.around(trainer.step + 1):
                report = trainer.advance(loader)
            progress.show(report)
            if on_step is not None and main:
                on_step(report)
            if trainer.step % trainer.config.checkpoint.every_steps == 0:
                trainer.save()
            validator.after_step()
            if trainer.clock.session_is_over:
                break
    profiler.finish()


def _what_is_kept(trainer: Trainer, pipeline: Path | None) -> str:
    if pipeline is None:
        return " before the first step: the same command begins again"
    if trainer.clock.progress >= 1:
        return f", and the run was done: {pipeline}"
    return f" after step {trainer.step}, which {trainer.folder} keeps: the same command goes on"


def _progress(config: TrainConfig, accelerator: Accelerator) -> Any:
    enabled = config.run.progress and accelerator.is_main_process
    return progress_shown(config.run, accelerator.device, enabled=enabled)


@contextmanager
def _accelerator(config: TrainConfig) -> Iterator[Accelerator]:
    with needs("train"):
        import tensorboard  # noqa: F401 - without it accelerate keeps no metrics, in silence
        from accelerate import Accelerator, DistributedDataParallelKwargs
        from accelerate.state import AcceleratorState

    # Before accelerate waits for processes that it can't reach.
    check_launch()
    # accelerate holds one precision per Python process until it is reset; a caller's own
    # accelerator stays as it is.
    owned = not AcceleratorState._shared_state
    # Who made the group of processes has more to do with it than this run.
    joined = dist.is_available() and dist.is_initialized()
    accelerator = Accelerator(
        mixed_precision="bf16" if config.run.precision == "bf16" else "no",
        gradient_accumulation_steps=config.run.accumulation,
        cpu=config.run.device == "cpu",
        log_with="tensorboard",
        project_dir=config.output,
        # A router that does not train, or a band that no head is in, leaves parameters without
        # gradient.
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
    )
    failed = False
    try:
        yield accelerator
    except Exception:
        failed = True
        raise
    finally:
        # Others may wait for this process, which ends, and its launcher then stops them: to take
        # the group down would wait for them.
        if joined or (failed and accelerator.num_processes > 1):
            for tracker in accelerator.trackers:
                tracker.finish()
        else:
            accelerator.end_training()
        if owned:
            AcceleratorState._reset_state(reset_partial_state=True)
