"""The training loop."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from freqformer.training.config import TrainConfig
from freqformer.training.processes import check_launch, only_run
from freqformer.training.record import LOSS_STEPS, Part, describe_part
from freqformer.training.run import StepReport, TrainingRun

if TYPE_CHECKING:
    from accelerate import Accelerator

    from freqformer.models.transformer import FreqFormerTransformer3DModel


def train(
    config: TrainConfig,
    *,
    model: FreqFormerTransformer3DModel | None = None,
    on_step: Callable[[StepReport], None] | None = None,
) -> Path:
    """Train a model and save it as a pipeline folder; goes on from the newest checkpoint in `config.output`.

    Writes `checkpoints/`, TensorBoard's `logs/`, and in the end, of each part too, `pipeline/` with the averaged weights
    and `parts.json` (see `freqformer.training.record`). Runs under `accelerate launch` on several devices too.

    Args:
        config: the run.
        model: to train instead of a fresh one of `config.model`; trained in place.
        on_step: called after every step, by the main process.

    Returns: the pipeline's folder, for `FreqFormerPipeline.from_pretrained`.

    Raises:
        ValueError: for a model that `config.model` can't make, or clips that don't fit it.
        VideoError: for videos that can't be read.
        CheckpointError: for a checkpoint that can't be written, read, or resumed with this config, and where another run
            writes to the same folder.
        TrainingError: where the loss or its gradient is not finite; the last checkpoint stays.
    """
    with _accelerator(config) as accelerator, only_run(Path(config.output), accelerator):
        run = TrainingRun(config, accelerator, model)
        run.resume()
        main, begun = accelerator.is_main_process, (run.step, run.seconds)
        last: deque[StepReport] = deque(maxlen=LOSS_STEPS)

        def part() -> Part | None:
            return describe_part(last, begun, run.clips_per_step, accelerator.device) if last else None

        with run.loader() as loader, _progress_bar(config.run.progress and main) as show:
            while run.progress < 1:
                report = run.advance(loader)
                show(report)
                last.append(report)
                if on_step is not None and main:
                    on_step(report)
                if run.step % config.checkpoint.every_steps == 0:
                    run.save(part())
                if run.part_is_over:
                    break
        run.save(part())
        return run.save_pipeline()


@contextmanager
def _accelerator(config: TrainConfig) -> Iterator[Accelerator]:
    from accelerate import Accelerator, DistributedDataParallelKwargs
    from accelerate.state import AcceleratorState

    # Before accelerate waits for processes that it can't reach.
    check_launch()
    # accelerate holds one precision per Python process until it is reset; a caller's own accelerator stays as it is.
    owned = not AcceleratorState._shared_state
    accelerator = Accelerator(
        mixed_precision="bf16" if config.run.precision == "bf16" else "no",
        gradient_accumulation_steps=config.run.accumulation,
        cpu=config.run.device == "cpu",
        log_with="tensorboard",
        project_dir=config.output,
        # A router that does not train, or a band that no head is in, leaves parameters without gradient.
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
    )
    try:
        yield accelerator
    finally:
        accelerator.end_training()
        if owned:
            AcceleratorState._reset_state(reset_partial_state=True)


@contextmanager
def _progress_bar(enabled: bool) -> Iterator[Callable[[StepReport], None]]:
    """What shows a step's report as a bar on standard error, with the running mean of the loss."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    mean = math.nan
    columns = (TextColumn("training"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    text = TextColumn("step {task.fields[step]}  loss {task.fields[loss]:.4f}")
    with Progress(*columns, text, console=Console(stderr=True), disable=not enabled) as bar:
        task = bar.add_task("training", total=1.0, step=0, loss=mean)

        def show(report: StepReport) -> None:
            nonlocal mean
            mean = report.loss if math.isnan(mean) else 0.95 * mean + 0.05 * report.loss
            bar.update(task, completed=report.progress, step=report.step, loss=mean)

        yield show
