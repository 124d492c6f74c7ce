"""One run of the study: training, which stops and goes on, and validation."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from benchmarks.quality import state
from benchmarks.quality.building import used_parameters
from benchmarks.quality.costs import attention_flops, density
from benchmarks.quality.runs import How, Run
from benchmarks.quality.trainer import Batches, Trainer, study_batches
from benchmarks.quality.validation import validate
from torch import Tensor

CURVE_STEPS = 20
"""Steps over which the training curve is averaged."""
SAVE_SECONDS = 240.0
"""Seconds of training after which what has come of it is noted, in case the process is killed."""


class Trained(NamedTuple):
    """A trained model, and what is said of its training."""

    model: Any
    told: dict[str, Any]


def execute(run: Run, how: How, *, keep: bool = False) -> dict[str, Any] | None:
    """Train and validate; go on where an earlier call stopped.

    Args:
        run: what to run.
        how: where and how long.
        keep: whether the trained weights are left in the folder too.

    Returns: what the result file says of it, JSON-able; None where the time was up and its state
        waits in the folder.

    Raises:
        RuntimeError: where the loss is not finite.
    """
    began = time.perf_counter()
    if how.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    trained = train(run, how)
    if trained is None:
        _free(how.device)
        return None
    model, told = trained
    if keep and how.folder is not None:
        path = how.folder / state.KEPT / f"{run.stem}.safetensors"
        state.write(path, state.weights_of(model), run.record)
    with torch.compiler.set_stance("force_eager"):
        result = told | validate(model, run.variant, run.size, how.device)
    earlier = result["seconds"]
    result["seconds"] = round(earlier + time.perf_counter() - began, 2)
    if how.device.type == "cuda":
        result["peak_gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 2)
    result["attention_flops"] = attention_flops(result["density"], run.size)
    del model, trained
    _free(how.device)
    return result


def stopped_at(run: Run, folder: Path) -> Path:
    """Where the state of a run is that stopped."""
    return folder / state.STOPPED / f"{run.stem}.safetensors"


def train(
    run: Run,
    how: How,
    *,
    batches: Batches | None = None,
    weights: dict[str, Tensor] | None = None,
) -> Trained | None:
    """Train, from where an earlier call stopped.

    Args:
        run: what to train.
        how: where and how long.
        batches: the clips and noise of every step; None for those of the study.
        weights: parameters to begin with; None for the seed's.

    Returns: the model in evaluation mode; None where the time was up first.

    Raises:
        RuntimeError: where the loss is not finite.
    """
    began = time.perf_counter()
    trainer = Trainer(run, how.device)
    if weights is not None:
        state.load_weights(trainer.model, weights)
    if how.compiled:
        torch.compiler.reset()  # of the last run's model
        trainer.model.compile_repeated_blocks(fullgraph=True, dynamic=False)
    step = trainer.captured() if how.graph else trainer.advance
    earlier = 0.0
    if how.folder is not None and stopped_at(run, how.folder).exists():
        earlier = trainer.go_on(stopped_at(run, how.folder))
    progress = trainer.progress
    progress.calls += 1
    progress.start_seconds += time.perf_counter() - began

    def note() -> None:
        _check_losses(trainer.losses[: progress.steps], run)
        assert how.folder is not None
        trainer.stop(stopped_at(run, how.folder), earlier + time.perf_counter() - began)

    _train(trainer, step, how, batches or study_batches, note)
    _check_losses(trainer.losses[: progress.steps], run)
    if progress.steps < run.steps:
        note()
        return None
    losses = trainer.losses.double().cpu()
    model = trainer.model.eval()
    told = run.record | {
        "tokens": run.size.grid.num_tokens,
        "compiled": how.compiled,
        "step_ms": 1e3 * progress.seconds / run.steps,
        "parameters": used_parameters(model),
        "density": density(run.variant, run.size),
        "training_curve": [round(float(part.mean()), 5) for part in losses.split(CURVE_STEPS)],
        "calls": progress.calls,
        "start_seconds": round(progress.start_seconds, 2),
        "seconds": earlier,
    }
    return Trained(model, told)


def _check_losses(losses: Tensor, run: Run) -> None:
    finite = losses.isfinite()
    if not bool(finite.all()):
        first = int((~finite).nonzero().min())
        raise RuntimeError(
            f"the loss of {run.name}, seed {run.seed}, is not finite from step {first + 1} of "
            f"{run.steps} on"
        )


def _free(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _train(
    trainer: Trainer,
    step: Callable[[], None],
    how: How,
    source: Batches,
    note: Callable[[], None],
) -> None:
    """Steps until the run or the time ends; what has come of them is noted now and then."""
    progress, noted = trainer.progress, time.perf_counter()
    batches = source(trainer.run, how.device, progress.steps)
    while progress.steps < trainer.run.steps and not (how.folder is not None and how.over):
        pairs = next(batches)
        _wait(how.device)
        began = time.perf_counter()
        for clip, noise in pairs:
            trainer.clip.copy_(clip)
            trainer.noise.copy_(noise)
            step()
        _wait(how.device)
        now = time.perf_counter()
        progress.seconds += now - began
        progress.steps += len(pairs)
        left = progress.steps < trainer.run.steps
        if how.folder is not None and left and now - noted >= SAVE_SECONDS:
            note()
            noted = now


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()
