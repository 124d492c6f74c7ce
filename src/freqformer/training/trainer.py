"""The state of a run, and what moves it on by one optimizer step: a function of this state and of
the step's number alone."""

from __future__ import annotations

import logging
from collections import deque
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from freqformer._files import write_json
from freqformer._optional import needs
from freqformer.training.cache.clips import CachedClips
from freqformer.training.checkpoint import CheckpointError, read_state
from freqformer.training.clock import RunClock
from freqformer.training.config import TrainConfig
from freqformer.training.loader import NAMED
from freqformer.training.log import RunLog
from freqformer.training.objective import (
    ALL_LEVELS,
    TIMESTEP_SCALE,
    batch_loss,
    learning_rate_factor,
    resolution_shift,
    router_terms,
    sample_timesteps,
    within,
)
from freqformer.training.pending import PendingReports
from freqformer.training.placement import placement_for
from freqformer.training.prefetch import GpuBatches, copied_to
from freqformer.training.processes import any_process
from freqformer.training.provenance import (
    LOSS_STEPS,
    TRAIN_FILE,
    Session,
    describe_session,
    read_sessions,
    sessions_of_state,
    sessions_up_to,
    with_session,
    write_sessions,
)
from freqformer.training.report import StepNumbers, StepReport, TrainingError
from freqformer.training.resuming import check_resumable
from freqformer.training.samples import TrainingBatch
from freqformer.training.seeding import derive_generator, seed_everything
from freqformer.training.sharding import StepShards
from freqformer.training.sources import loader_of, run_source
from freqformer.training.starting import prepared_model
from freqformer.training.state import capture_run
from freqformer.training.weights import weights_of

with needs("train"):
    from diffusers.training_utils import EMAModel

if TYPE_CHECKING:
    from accelerate import Accelerator

    from freqformer.grid import Grid
    from freqformer.models.transformer import FreqFormerTransformer3DModel

logger = logging.getLogger(__name__)


class Trainer:
    """Model, optimizer, average and data of a run, on the devices of an accelerator."""

    def __init__(
        self,
        config: TrainConfig,
        accelerator: Accelerator,
        model: FreqFormerTransformer3DModel | None = None,
        clips: Any = None,
    ) -> None:
        self.config, self.accelerator, self.folder = config, accelerator, Path(config.output)
        self.clock = RunClock(config.run, accelerator.device)
        self.log = RunLog(accelerator, config)
        seed_everything(config.run.seed, "model")
        self.placement = placement_for(config.run.parallel, accelerator)
        self.model: Any = prepared_model(config, model)
        self.placed = self.placement.place(self.model, config.optimizer)
        self.weights = weights_of(self.model)
        # Made after the model is placed, which moves the weights to their device.
        decay = config.optimizer.ema_decay
        self.ema = EMAModel(self.weights.parameters(), decay=decay, foreach=True)
        self.source = run_source(config, clips, self.model.config)
        data, run = config.data, config.run
        sizes = self.source.sizes or [(data.num_frames, data.height, data.width)]
        self.grids = [self.model.grid_for(size) for size in sizes]
        """Of the tokens of clips, the usual one first."""
        self.shift = self._shift_of(self.grids[0])
        """Of the scheduler that generates."""
        self.shards = StepShards(
            run.batch_size,
            run.accumulation,
            self.placement.data_ranks,
            self.placement.data_rank,
        )
        self.step = 0
        """Steps done."""
        self.saved_step = 0
        """That of the newest checkpoint."""
        self.sessions: list[Session] = []
        """What earlier calls of `train` did."""
        self.reports: deque[StepReport] = deque(maxlen=LOSS_STEPS)
        """Of the last steps of this call."""
        self.begun = (0, 0.0)
        """Steps and seconds of training that were done before this call."""
        self.pending = PendingReports(run.log_every)
        """Of steps whose numbers are not read yet."""

    def resume(self) -> None:
        """Go to the newest checkpoint of the output folder, if there is one, and start the clock
        and the log."""
        newest = self.placement.newest(self._checkpoints)
        if newest is not None:
            if not self.config.checkpoint.resume:
                raise CheckpointError(
                    f"{self.folder} holds a run up to {newest.name} and resume is False: set it to "
                    "go on, or choose an "
                    "empty output folder"
                )
            state = read_state(newest)
            fixed = {"clips_per_step": self.shards.clips_per_step, "base": self._base}
            check_resumable(newest, state, self.config, fixed)
            if state["data"] != self.source.fingerprint():
                logger.warning(
                    "the clips are not those that %s was trained on; they differ from here on",
                    newest,
                )
            self.placement.restore(newest, *self._run)
            self.ema.optimization_step = state["ema_steps"]
            self.step = self.saved_step = state["step"]
            self.sessions = self._earlier_sessions(newest, state)
            self.begun = (self.step, state["seconds"])
            logger.info("going on from %s", newest)
        self.clock.start(*self.begun)
        self.log.begin(self.step)

    def loader(self) -> GpuBatches:
        """The clips from this step on, on a GPU copied one batch ahead."""
        device, run = self.accelerator.device, self.config.run
        indices = self.shards.indices(self.step)
        workers = self.config.data.workers
        loader = loader_of(
            self.source, indices, device, seed=run.seed, batch_size=run.batch_size, workers=workers
        )
        return GpuBatches(loader, device)

    def advance(self, loader: GpuBatches) -> StepReport:
        """Do one optimizer step. Raises TrainingError where one of the last `run.log_every` steps
        was not finite."""
        run = self.config.run
        # All random numbers of a step follow from its number: a resumed run need not know the
        # earlier ones.
        seed_everything(run.seed, "step", self.step, self.placement.data_rank)
        rate = self.config.optimizer.peak_rate * learning_rate_factor(
            self.step, self.clock.progress, self.config.optimizer.warmup_steps
        )
        for group in self.placed.optimizer.param_groups:
            group["lr"] = rate
        losses: list[Tensor] = []
        norm: Any = None
        for place in range(run.accumulation):
            batch = self._take(loader)
            grid = self.model.grid_for(batch.clip.shape)
            with self.accelerator.accumulate(self.placed.wrapped):
                losses.append(self._backward(batch, self._timesteps(grid)[place], grid))
                loader.look_ahead(run.batch_size)
                if self.accelerator.sync_gradients:
                    norm = self._clip_gradients()
                self.placed.stepper.step()
                self.placed.stepper.zero_grad()
        numbers = self._numbers(losses, norm)
        self.ema.step(self.weights.parameters())
        self.step += 1
        self.clock.advance(self.step)
        report = StepReport(
            step=self.step,
            numbers=numbers,
            learning_rate=rate,
            seconds=self.clock.seconds,
            progress=self.clock.progress,
        )
        self.pending.add(report)
        self.reports.append(report)
        if self.pending.are_due:
            self.settle()
        return report

    def settle(self) -> None:
        """Read what the steps so far computed, and log it: the only wait of the host for the
        device.

        Raises:
            TrainingError: for the first step whose loss or gradient is not finite.
        """
        for report in self.pending.read():
            if not report.is_finite:
                raise TrainingError(self._what_broke(report))
            self.log.add(report)

    def any_process(self, asked: bool) -> bool:
        """Whether one of the processes says so."""
        return any_process(self.accelerator, asked)

    def save(self) -> None:
        """Write a checkpoint, unless this step has one, with the run's config and the record of its
        sessions beside it."""
        self._save()
        self.accelerator.wait_for_everyone()

    def _save(self) -> None:
        # No checkpoint of weights that a step has spoiled.
        self.settle()
        main = self.accelerator.is_main_process
        if self.step != self.saved_step and (main or not self.placement.saves_alone):
            sessions = (
                with_session(self.sessions, self._session()) if self.reports else self.sessions
            )
            state = {
                "config": self.config.to_record(),
                "clips_per_step": self.shards.clips_per_step,
                "base": self._base,
                "data": self.source.fingerprint(),
                "ema_steps": self.ema.optimization_step,
                "sessions": [asdict(one) for one in sessions],
                "seconds": self.clock.seconds,
                "step": self.step,
            }
            groups = capture_run(*self._run)
            keep = self.config.checkpoint.keep
            self.placement.save(self._checkpoints, self.step, groups, state, keep=keep)
            if main:
                write_sessions(self.folder, sessions)
                write_json(self.folder / TRAIN_FILE, self.config.to_record())
        self.saved_step = self.step

    def save_pipeline(self) -> Path:
        """Write the pipeline with the averaged weights, or what was trained of another; returns the
        folder."""
        if self.config.pipeline.folder is not None:
            return self._save_finetuned()
        target = self.folder / "pipeline"
        cache = self.source.cache if isinstance(self.source, CachedClips) else None
        self.placement.save_pipeline(target, self.placed, self.ema, self.shift, cache)
        self.accelerator.wait_for_everyone()
        return target

    def _save_finetuned(self) -> Path:
        from freqformer.training.finetuning.saving import finetuned_folder, save_finetuned

        main = self.accelerator.is_main_process
        save_finetuned(self.config, self.model, self.ema, main=main)
        self.accelerator.wait_for_everyone()
        return finetuned_folder(self.config)

    def _take(self, loader: GpuBatches) -> TrainingBatch:
        """The next clips and their noise. Where there are none, what is learned is kept first."""
        try:
            return loader.take(self.config.run.batch_size)
        except Exception:
            # Weights change at the end of a step, so they are whole. Others don't wait: they may
            # have clips, and where weights are shared none is written without them.
            if self.placement.saves_alone:
                self._save()
            if self.saved_step:
                logger.warning("%s keeps step %d", self._checkpoints, self.saved_step)
            raise

    @property
    def _run(self) -> tuple[Any, EMAModel, Any]:
        """What a checkpoint holds: weights, their average and the optimizer."""
        return self.weights, self.ema, self.placed.optimizer

    @property
    def _base(self) -> str | None:
        """What tells the weights from which a pipeline's transformer is trained on; None where
        a checkpoint holds all weights."""
        return getattr(self.model, "base", None)

    @property
    def _checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    def _shift_of(self, grid: Grid) -> float:
        """The shift of timesteps for clips of so many tokens."""
        shift = self.config.objective.shift
        return resolution_shift(grid.num_tokens) if shift is None else shift

    def _timesteps(self, grid: Grid) -> list[Tensor]:
        """The timesteps (batch,) of every forward pass over clips of a grid; drawn for the whole
        step, so its split does not matter."""
        settings = self.config.objective
        drawn = sample_timesteps(
            self.shards.clips_per_step,
            self._shift_of(grid),
            derive_generator(self.config.run.seed, "timestep", self.step),
            mean=settings.logit_mean,
            std=settings.logit_std,
            stratified=settings.stratified,
        )
        return self.shards.slices(within(drawn, getattr(self.model, "levels", ALL_LEVELS)))

    def _backward(self, batch: TrainingBatch, timestep: Tensor, grid: Grid) -> Tensor:
        """Add one forward pass's gradient; returns its (flow-matching loss, routing loss), (2,)
        float32."""
        device = self.accelerator.device
        with self.placement.computing(), self._told(timestep):
            loss = batch_loss(self.placed.wrapped, batch, copied_to(timestep, device))
        routing = router_terms(self.model, grid, self.config.routing, self.clock.progress)
        routing = torch.zeros_like(loss) if routing is None else routing
        self.accelerator.backward(loss + routing)
        return torch.stack([loss.detach(), routing.detach()]).float()

    def _told(self, timestep: Tensor) -> AbstractContextManager[Any]:
        """Around a forward pass: a pipeline's transformer need not read its timesteps (batch,) back
        from the device."""
        tell = getattr(self.model, "knowing_timesteps", None)
        return nullcontext() if tell is None else tell(timestep * TIMESTEP_SCALE)

    def _clip_gradients(self) -> Any:
        """Clip by norm; returns the norm before, on the device."""
        norm: Any = self.accelerator.clip_grad_norm_(
            self.weights.parameters(), self.config.optimizer.max_grad_norm
        )
        if isinstance(norm, DTensor):
            norm = norm.full_tensor()
        return norm

    def _numbers(self, losses: list[Tensor], norm: Any) -> StepNumbers:
        """What a step computed, on the device."""
        mean = self._mean(losses)
        norm = torch.as_tensor(0.0 if norm is None else norm).to(mean)
        return StepNumbers(torch.cat([mean, norm.view(1)]))

    def _what_broke(self, report: StepReport) -> str:
        """What an error says of a step that is not finite."""
        kept = (
            f"{self._checkpoints} keeps step {self.saved_step}"
            if self.saved_step
            else "no checkpoint was written yet"
        )
        return (
            f"loss is {report.loss} and its gradient's norm {report.gradient_norm} at step"
            f" {report.step}{self._clips_of_step(report.step - 1)}; finite numbers are allowed:"
            " lower the learning rate, lengthen the warm-up, or train with"
            f' precision="fp32"; {kept}'
        )

    def _clips_of_step(self, step: int) -> str:
        """The names of this process's clips of a step, counted from 0, for an error; empty where
        they have none."""
        count = self.config.run.batch_size * self.config.run.accumulation
        indices = islice(self.shards.indices(step), count)
        names = [name for index in indices if (name := self.source.describe(index)) is not None]
        return f", of the clips {', '.join(names[:NAMED])}" if names else ""

    def _mean(self, losses: list[Tensor]) -> Tensor:
        """(flow-matching loss, routing loss) over forward passes and processes, (2,)."""
        mean = self.accelerator.reduce(torch.stack(losses).mean(0), "mean")
        assert isinstance(mean, Tensor)
        return mean

    def _session(self) -> Session:
        """What this call of `train` did so far."""
        return describe_session(
            self.reports, self.begun, self.shards.clips_per_step, self.accelerator.device
        )

    def _earlier_sessions(self, path: Path, state: dict[str, Any]) -> list[Session]:
        """The sessions that a checkpoint holds, which sessions.json is made to agree with."""
        try:
            sessions = sessions_of_state(state)
        except ValueError as error:
            raise CheckpointError(
                f"{path} has damaged sessions in its state ({error}): remove it"
            ) from error
        if sessions is None:
            # Of a version that kept them in a file alone.
            sessions = sessions_up_to(read_sessions(self.folder), self.step)
        if self.accelerator.is_main_process:
            write_sessions(self.folder, sessions)
        return sessions
