"""The state of a run, and what moves it on by one optimizer step: a function of this state and of
the step's number alone."""

from __future__ import annotations

import logging
import math
from collections import deque
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
from freqformer.training.loader import (
    NAMED,
    ClipLoader,
    OnDeviceLoader,
    ProceduralClips,
)
from freqformer.training.log import RunLog
from freqformer.training.objective import (
    ALL_LEVELS,
    batch_loss,
    learning_rate_factor,
    resolution_shift,
    router_terms,
    sample_timesteps,
    within,
)
from freqformer.training.placement import placement_for
from freqformer.training.prefetch import GpuBatches
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
from freqformer.training.report import StepReport, TrainingError
from freqformer.training.resuming import check_resumable
from freqformer.training.samples import TrainingBatch
from freqformer.training.seeding import derive_generator, seed_everything
from freqformer.training.sharding import StepShards
from freqformer.training.sources import IterableClips, run_source
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
        """The clips from this step on. A GPU draws what can be drawn there; the rest is loaded by
        threads, and copied to it one batch ahead."""
        return GpuBatches(self._own_loader(), self.accelerator.device)

    def _own_loader(self) -> ClipLoader | OnDeviceLoader:
        batch, device = self.config.run.batch_size, self.accelerator.device
        if isinstance(self.source, ProceduralClips) and device.type != "cpu":
            return OnDeviceLoader(
                self.source,
                self.shards.indices(self.step),
                seed=self.config.run.seed,
                device=device,
            )
        # An iterable gives its clips in order, so one thread asks for them.
        workers = 1 if isinstance(self.source, IterableClips) else self.config.data.workers
        return ClipLoader(
            self.source,
            self.shards.indices(self.step),
            seed=self.config.run.seed,
            workers=workers,
            ahead=max(2 * batch, workers),
        )

    def advance(self, loader: GpuBatches) -> StepReport:
        """Do one optimizer step. Raises TrainingError, with the weights as they were, where it is
        not finite."""
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
        numbers: tuple[float, float, float] | None = None
        for place in range(run.accumulation):
            batch = self._take(loader)
            grid = self.model.grid_for(batch.clip.shape)
            with self.accelerator.accumulate(self.placed.wrapped):
                losses.append(self._backward(batch, self._timesteps(grid)[place], grid))
                loader.look_ahead(run.batch_size)
                if self.accelerator.sync_gradients:
                    numbers = self._clip_gradients(losses)
                self.placed.stepper.step()
                self.placed.stepper.zero_grad()
        assert numbers is not None
        loss, routing, norm = numbers
        self.ema.step(self.weights.parameters())
        self.step += 1
        self.clock.advance(self.step)
        report = StepReport(
            step=self.step,
            loss=loss,
            routing_loss=routing,
            gradient_norm=norm,
            learning_rate=rate,
            seconds=self.clock.seconds,
            progress=self.clock.progress,
        )
        self.log.add(report)
        self.reports.append(report)
        return report

    def any_process(self, asked: bool) -> bool:
        """Whether one of the processes says so: a signal may reach one of them a step early."""
        if self.accelerator.num_processes == 1:
            return asked
        votes = self.accelerator.reduce(
            torch.tensor(float(asked), device=self.accelerator.device), "sum"
        )
        assert isinstance(votes, Tensor)
        return bool(votes > 0)

    def save(self) -> None:
        """Write a checkpoint, unless this step has one, with the run's config and the record of its
        sessions beside it."""
        self._save()
        self.accelerator.wait_for_everyone()

    def _save(self) -> None:
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

        if self.accelerator.is_main_process:
            save_finetuned(self.config, self.model, self.ema)
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
        with self.placement.computing():
            loss = batch_loss(self.placed.wrapped, batch, _at(timestep, device))
        routing = router_terms(self.model, grid, self.config.routing, self.clock.progress)
        routing = torch.zeros_like(loss) if routing is None else routing
        self.accelerator.backward(loss + routing)
        return torch.stack([loss.detach(), routing.detach()]).float()

    def _clip_gradients(self, losses: list[Tensor]) -> tuple[float, float, float]:
        """Clip by norm; returns flow-matching loss, routing loss and the norm before. Raises
        TrainingError where one is not finite.

        The only place in a step where the host waits for the device, and once.
        """
        norm: Any = self.accelerator.clip_grad_norm_(
            self.weights.parameters(), self.config.optimizer.max_grad_norm
        )
        if isinstance(norm, DTensor):
            norm = norm.full_tensor()
        mean = self._mean(losses)
        norm = torch.as_tensor(0.0 if norm is None else norm).to(mean)
        loss, routing, norm = torch.cat([mean, norm.view(1)]).tolist()
        if not (math.isfinite(loss) and math.isfinite(norm)):
            kept = (
                f"{self._checkpoints} keeps step {self.saved_step}"
                if self.saved_step
                else "no checkpoint was written yet"
            )
            raise TrainingError(
                f"loss is {loss} and its gradient's norm {norm} at step {self.step + 1}"
                f"{self._clips_of_step()}; finite numbers are allowed: lower "
                f'the learning rate, lengthen the warm-up, or train with precision="fp32"; {kept}'
            )
        return loss, routing, norm

    def _clips_of_step(self) -> str:
        """The names of this process's clips of a step, for an error; empty where they have none."""
        count = self.config.run.batch_size * self.config.run.accumulation
        indices = islice(self.shards.indices(self.step), count)
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


def _at(x: Tensor, device: torch.device) -> Tensor:
    """A tensor of the CPU on the device; a GPU copies it by itself."""
    return x.to(device) if device.type == "cpu" else x.pin_memory().to(device, non_blocking=True)
