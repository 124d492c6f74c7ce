"""The state of a run and what moves it on. A step is a function of this state and of the step's
number alone."""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from freqformer._files import write_json, writing_folder
from freqformer._optional import needs
from freqformer.routing import routing_loss
from freqformer.training.checkpoint import (
    CheckpointError,
    load_checkpoint,
    newest_checkpoint,
    save_checkpoint,
)
from freqformer.training.config import TrainConfig
from freqformer.training.loader import ClipLoader, ClipSource, DrawingLoader, DrawnClips
from freqformer.training.objective import (
    flow_matching_loss,
    learning_rate_factor,
    resolution_shift,
    sample_timesteps,
)
from freqformer.training.record import (
    LOSS_STEPS,
    TRAIN_FILE,
    Part,
    describe_part,
    parse_parts,
    parts_up_to,
    read_parts,
    with_part,
    write_parts,
)
from freqformer.training.report import StepReport, TrainingError
from freqformer.training.resuming import check_resumable
from freqformer.training.seeding import derive_generator, seed_everything
from freqformer.training.sources import IterableClips, clip_source, given_source
from freqformer.training.starting import starting_model
from freqformer.training.state import capture_run, restore_run

with needs("train"):
    from accelerate.utils import broadcast
    from diffusers.training_utils import EMAModel

if TYPE_CHECKING:
    from accelerate import Accelerator

    from freqformer.models.transformer import FreqFormerTransformer3DModel

logger = logging.getLogger(__name__)

PIXEL_CHANNELS = 3


PIPELINE = ("model_index.json", "transformer/*", "scheduler/*")
"""What a run's pipeline of versions without manifest consists of."""


class TrainingRun:
    """Model, optimizer, average and data of a run, on the devices of an accelerator."""

    def __init__(
        self,
        config: TrainConfig,
        accelerator: Accelerator,
        model: FreqFormerTransformer3DModel | None = None,
        clips: Any = None,
    ) -> None:
        self._part_began = time.perf_counter()
        self.config, self.accelerator, self.folder = config, accelerator, Path(config.output)
        seed_everything(config.run.seed, "model")
        self.model: Any = starting_model(config, model)
        self.model.train()
        if any(layer.chooses for layer in self.model.attentions):
            self.model.set_router_training(config.routing.mode)
        if config.run.gradient_checkpointing:
            self.model.enable_gradient_checkpointing()
        if config.run.compile:
            # Block by block: one compilation serves all layers, and clips of a run have one shape.
            self.model.compile_repeated_blocks(dynamic=False)
        self.optimizer = _adamw(self.model, config)
        self.wrapped, self.stepper = accelerator.prepare(self.model, self.optimizer)
        # Made after prepare, which moves the weights to their device.
        self.ema = EMAModel(self.model.parameters(), decay=config.optimizer.ema_decay, foreach=True)
        self.source = self._clip_source(clips)
        data, run = config.data, config.run
        self.grid = self.model.grid_for((data.num_frames, data.height, data.width))
        shift = config.objective.shift
        self.shift = resolution_shift(self.grid.num_tokens) if shift is None else shift
        self.clips_per_step = run.batch_size * run.accumulation * accelerator.num_processes
        self.step, self.saved_step, self.seconds, self.progress = 0, 0, 0.0, 0.0
        self.part_is_over = False
        self.parts: list[Part] = []
        """What earlier calls of `train` did."""
        self.reports: deque[StepReport] = deque(maxlen=LOSS_STEPS)
        """Of the last steps of this call."""
        self.begun = (0, 0.0)
        """Steps and seconds of training that were done before this call."""

    def resume(self) -> None:
        """Go to the newest checkpoint of the output folder, if there is one, and start the clock
        and the log."""
        newest = newest_checkpoint(self._checkpoints)
        if newest is not None:
            if not self.config.checkpoint.resume:
                raise CheckpointError(
                    f"{self.folder} holds a run up to {newest.name} and resume is False: set it to "
                    "go on, or choose an "
                    "empty output folder"
                )
            groups, state = load_checkpoint(newest)
            check_resumable(newest, state, self.config, self.clips_per_step)
            if state["data"] != self.source.fingerprint():
                logger.warning(
                    "the clips are not those that %s was trained on; they differ from here on",
                    newest,
                )
            restore_run(self.model, self.ema, self.optimizer, groups)
            self.ema.optimization_step = state["ema_steps"]
            self.step = self.saved_step = state["step"]
            self.seconds = state["seconds"]
            self.parts = self._earlier_parts(newest, state)
            logger.info("going on from %s", newest)
        self.begun = (self.step, self.seconds)
        self._began = time.perf_counter() - self.seconds
        self._advance_clock()
        with self._writing_log():
            self.folder.mkdir(parents=True, exist_ok=True)
            # Steps behind the checkpoint will be logged again.
            self.accelerator.init_trackers(
                "logs", init_kwargs={"tensorboard": {"purge_step": self.step + 1}}
            )

    def loader(self) -> ClipLoader | DrawingLoader:
        """The clips from this step on. A GPU draws what can be drawn there; the rest is loaded by
        threads."""
        batch, device = self.config.run.batch_size, self.accelerator.device
        if isinstance(self.source, DrawnClips) and device.type != "cpu":
            return DrawingLoader(
                self.source, self._indices(), seed=self.config.run.seed, device=device
            )
        # An iterable gives its clips in order, so one thread asks for them.
        workers = 1 if isinstance(self.source, IterableClips) else self.config.data.workers
        return ClipLoader(
            self.source,
            self._indices(),
            seed=self.config.run.seed,
            workers=workers,
            ahead=max(2 * batch, workers),
        )

    def advance(self, loader: ClipLoader | DrawingLoader) -> StepReport:
        """Do one optimizer step. Raises TrainingError, with the weights as they were, where it is
        not finite."""
        run = self.config.run
        # All random numbers of a step follow from its number: a resumed run need not know the
        # earlier ones.
        seed_everything(run.seed, "step", self.step, self.accelerator.process_index)
        rate = self.config.optimizer.learning_rate * learning_rate_factor(
            self.step, self.progress, self.config.optimizer.warmup_steps
        )
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        losses, norm = [], 0.0
        for timestep in self._timesteps():
            clip, noise = self._take(loader)
            with self.accelerator.accumulate(self.wrapped):
                losses.append(self._backward(clip, timestep, noise))
                if self.accelerator.sync_gradients:
                    norm = self._clip_gradients(losses)
                self.stepper.step()
                self.stepper.zero_grad()
        self.ema.step(self.model.parameters())
        self.step += 1
        self._advance_clock()
        loss, routing = self._mean(losses)
        report = StepReport(self.step, loss, routing, norm, rate, self.seconds, self.progress)
        names = ("loss", "routing_loss", "gradient_norm", "learning_rate", "seconds")
        with self._writing_log():
            self.accelerator.log({name: getattr(report, name) for name in names}, step=self.step)
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
        parts beside it."""
        self._save()
        self.accelerator.wait_for_everyone()

    def _save(self) -> None:
        if self.step != self.saved_step and self.accelerator.is_main_process:
            parts = with_part(self.parts, self._part()) if self.reports else self.parts
            state = {
                "config": self.config.to_dict(),
                "clips_per_step": self.clips_per_step,
                "data": self.source.fingerprint(),
                "ema_steps": self.ema.optimization_step,
                "parts": [asdict(one) for one in parts],
                "seconds": self.seconds,
                "step": self.step,
            }
            groups = capture_run(self.model, self.ema, self.optimizer)
            save_checkpoint(
                self._checkpoints, self.step, groups, state, keep=self.config.checkpoint.keep
            )
            write_parts(self.folder, parts)
            write_json(self.folder / TRAIN_FILE, self.config.to_dict())
        self.saved_step = self.step

    def save_pipeline(self) -> Path:
        """Write the pipeline with the averaged weights; returns its folder."""
        with needs("train"):
            from diffusers.schedulers.scheduling_flow_match_euler_discrete import (
                FlowMatchEulerDiscreteScheduler,
            )

        from freqformer.models.pipeline import FreqFormerPipeline

        target = self.folder / "pipeline"
        model = self.accelerator.unwrap_model(self.wrapped, keep_fp32_wrapper=False)
        model.set_router_training("off")
        if self.accelerator.is_main_process:
            scheduler = FlowMatchEulerDiscreteScheduler(shift=self.shift)
            self.ema.store(model.parameters())
            self.ema.copy_to(model.parameters())
            try:
                with writing_folder(
                    target, kind="pipeline", known=PIPELINE, error=CheckpointError
                ) as temporary:
                    FreqFormerPipeline(transformer=model, scheduler=scheduler).save_pretrained(
                        temporary
                    )
            finally:
                self.ema.restore(model.parameters())
        self.accelerator.wait_for_everyone()
        return target

    def _clip_source(self, clips: Any) -> ClipSource:
        """The clips that are given, or those of the config; of as many channels as the model
        has."""
        channels, data = self.model.config["in_channels"], self.config.data
        if clips is not None:
            return given_source(clips, data, self.config.run.seed, channels)
        if channels != PIXEL_CHANNELS:
            raise ValueError(
                f"model has in_channels={channels}, and videos {PIXEL_CHANNELS}; the same is"
                " allowed: give train(clips=...) latents of your own, or set in_channels"
            )
        return clip_source(data, self.config.run.seed)

    def _take(self, loader: ClipLoader | DrawingLoader) -> tuple[Tensor, Tensor]:
        """The next clips and their noise. Where there are none, what is learned is kept first."""
        try:
            return loader.take(self.config.run.batch_size)
        except Exception:
            # Weights change at the end of a step, so they are whole. Others don't wait: they may
            # have clips.
            self._save()
            if self.step:
                logger.warning("%s keeps step %d", self._checkpoints, self.step)
            raise

    @contextmanager
    def _writing_log(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            # A log that is broken can't be closed either, which would hide this error.
            self.accelerator.trackers = []
            raise TrainingError(
                f"output is {self.folder}, which can't be written: {error}; free space or choose "
                "another folder"
            ) from error

    @property
    def _checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    def _indices(self) -> Iterator[int]:
        """This process's clips: of the clips of a step, one slice per forward pass and process."""
        batch = self.config.run.batch_size
        for step in count(self.step):
            for place in self._places():
                yield from range(
                    step * self.clips_per_step + place, step * self.clips_per_step + place + batch
                )

    def _places(self) -> range:
        """Where the forward passes of this process begin among the clips of a step."""
        batch, processes = self.config.run.batch_size, self.accelerator.num_processes
        return range(batch * self.accelerator.process_index, self.clips_per_step, batch * processes)

    def _timesteps(self) -> list[Tensor]:
        """The timesteps (batch,) of every forward pass; drawn for the whole step, so its split does
        not matter."""
        settings = self.config.objective
        drawn = sample_timesteps(
            self.clips_per_step,
            self.shift,
            derive_generator(self.config.run.seed, "timestep", self.step),
            mean=settings.logit_mean,
            std=settings.logit_std,
            stratified=settings.stratified,
        )
        return [drawn[place : place + self.config.run.batch_size] for place in self._places()]

    def _backward(self, clip: Tensor, timestep: Tensor, noise: Tensor) -> Tensor:
        """Add one forward pass's gradient; returns its (flow-matching loss, routing loss), (2,)
        float32."""
        clip, timestep, noise = (x.to(self.accelerator.device) for x in (clip, timestep, noise))
        loss = flow_matching_loss(self.wrapped, clip, timestep, noise)
        routing = self._routing_loss(loss)
        self.accelerator.backward(loss + routing)
        return torch.stack([loss.detach(), routing.detach()]).float()

    def _routing_loss(self, like: Tensor) -> Tensor:
        """Budget and entropy terms of the last forward pass; 0 where no router learns to choose."""
        settings, logits = self.config.routing, self.model.routing_logits
        if settings.mode == "off" or not any(layer.chooses for layer in self.model.attentions):
            return torch.zeros_like(like)
        costs = self.model.routing_costs(self.grid)
        *cheap, dense = costs
        even = sum(cheap) / len(cheap) / dense
        return routing_loss(
            logits,
            costs,
            budget=even if settings.budget is None else settings.budget,
            budget_weight=settings.budget_weight,
            entropy_weight=settings.entropy_weight * (1 - self.progress),
        )

    def _clip_gradients(self, losses: list[Tensor]) -> float:
        """Clip by norm; returns the norm before. Raises TrainingError where it or a loss is not
        finite."""
        norm = self.accelerator.clip_grad_norm_(
            self.model.parameters(), self.config.optimizer.max_grad_norm
        )
        loss, norm = self._mean(losses)[0], float(norm if norm is not None else 0)
        if not (math.isfinite(loss) and math.isfinite(norm)):
            kept = (
                f"{self._checkpoints} keeps step {self.saved_step}"
                if self.saved_step
                else "no checkpoint was written yet"
            )
            raise TrainingError(
                f"loss is {loss} and its gradient's norm {norm} at step {self.step + 1}; finite "
                "numbers are allowed: lower "
                f'the learning rate, lengthen the warm-up, or train with precision="fp32"; {kept}'
            )
        return norm

    def _mean(self, losses: list[Tensor]) -> tuple[float, float]:
        """(flow-matching loss, routing loss) over forward passes and processes."""
        mean = self.accelerator.reduce(torch.stack(losses).mean(0), "mean")
        assert isinstance(mean, Tensor)
        return float(mean[0]), float(mean[1])

    def _advance_clock(self) -> None:
        run = self.config.run
        self.seconds, self.progress = time.perf_counter() - self._began, self.step / run.max_steps
        part = time.perf_counter() - self._part_began
        if run.max_seconds is not None or run.part_seconds is not None:
            # One clock for all processes, else some would stop a step before others.
            clock = broadcast(torch.tensor([self.seconds, part], device=self.accelerator.device))
            assert isinstance(clock, Tensor)
            self.seconds, part = clock.tolist()
        if run.max_seconds is not None:
            self.progress = max(self.progress, self.seconds / run.max_seconds)
        self.part_is_over = run.part_seconds is not None and part >= run.part_seconds
        self.progress = min(self.progress, 1.0)

    def _part(self) -> Part:
        """What this call of `train` did so far."""
        return describe_part(self.reports, self.begun, self.clips_per_step, self.accelerator.device)

    def _earlier_parts(self, path: Path, state: dict[str, Any]) -> list[Part]:
        """The parts that a checkpoint holds, which parts.json is made to agree with."""
        if "parts" not in state:
            # Of a version that kept them in parts.json alone.
            return parts_up_to(read_parts(self.folder), self.step)
        try:
            parts = parse_parts(state["parts"])
        except ValueError as error:
            raise CheckpointError(
                f"{path} has damaged parts in its state ({error}): remove it"
            ) from error
        if self.accelerator.is_main_process:
            write_parts(self.folder, parts)
        return parts


def _adamw(model: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    settings = config.optimizer
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=settings.learning_rate,
        betas=settings.betas,
    )
