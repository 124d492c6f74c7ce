"""One run of the study: training, which stops and goes on, and validation.

On a GPU one CUDA graph holds the whole optimizer step. Its inputs lie still: clip and noise are
copied in, everything else follows from a step counter on the device. Shape legend: B clips of a
step, S steps, L layers, H heads.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from benchmarks.quality import data, state
from benchmarks.quality.building import build, used_parameters
from benchmarks.quality.costs import attention_flops, density
from benchmarks.quality.sizes import STUDY, USUAL, Size, name_of
from benchmarks.quality.validation import validate
from benchmarks.quality.variants import TARGET_DENSITY, Variant, chosen
from torch import Tensor

from freqformer.routing import routing_loss
from freqformer.training.config import OptimizerConfig, RoutingConfig
from freqformer.training.objective import flow_matching_loss, learning_rate_factor, sample_timesteps
from freqformer.training.seeding import derive_generator, derive_seed

CHUNK_CLIPS = 128
"""Clips that are drawn at once."""
CHECK_STEPS = 16
"""Steps after which the clock is looked at; that waits for the device."""
CURVE_STEPS = 20
"""Steps over which the training curve is averaged."""
WARM_UPS = 3
OPTIMIZER = OptimizerConfig()
ROUTING = RoutingConfig()


@dataclass(frozen=True)
class Run:
    """What is run: a variant by its name, the seed, for how many steps, its size and its rate."""

    name: str
    seed: int
    steps: int
    size: Size = STUDY
    rate: float = OPTIMIZER.learning_rate
    """Learning rate after the warm-up."""

    @property
    def variant(self) -> Variant:
        """What its name stands for."""
        return chosen(self.name)

    @property
    def stem(self) -> str:
        """Name of its files, without what they end with."""
        size = name_of(self.size)
        parts = [self.name, *([] if size == USUAL else [size]), str(self.steps), str(self.seed)]
        if self.rate != OPTIMIZER.learning_rate:
            parts.append(f"rate{self.rate:g}")
        return "-".join(parts)

    @property
    def record(self) -> dict[str, Any]:
        """What identifies it, JSON-able; result files have the same entries."""
        return {
            "variant": self.name,
            "seed": self.seed,
            "steps": self.steps,
            "size": name_of(self.size),
            "learning_rate": self.rate,
        }


@dataclass(frozen=True)
class How:
    """On what a run is done, and for how long."""

    device: torch.device
    graph: bool = False
    """Whether one CUDA graph holds a step; needs a GPU."""
    compiled: bool = False
    """Whether the model's blocks are compiled for training; validation runs them as they are."""
    end: float = float("inf")
    """When training stops, by `time.perf_counter`."""
    folder: Path | None = None
    """Where a run that stops leaves its state; None for runs that end at once."""

    @property
    def over(self) -> bool:
        """Whether the time is up."""
        return time.perf_counter() >= self.end


@dataclass
class Progress:
    """How far training has come."""

    steps: int = 0
    seconds: float = 0.0
    """Of the steps, without the drawing of clips."""
    start_seconds: float = 0.0
    """Before the first step of every call."""
    calls: int = 0


Batches = Callable[[Run, torch.device, int], Iterator[list[tuple[Tensor, Tensor]]]]
"""Clips and noise (B, 3, F, S, S) of every step from a number on, in lists of a few steps."""


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
    _train(trainer, step, how, batches or study_batches)
    _check_losses(trainer.losses[: progress.steps], run)
    if progress.steps < run.steps:
        assert how.folder is not None
        trainer.stop(stopped_at(run, how.folder), earlier + time.perf_counter() - began)
        del step, trainer
        _free(how.device)
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


class Trainer:
    """A model, its optimizer, and tensors that one step reads and writes on the device."""

    def __init__(self, run: Run, device: torch.device) -> None:
        size, variant = run.size, run.variant
        self.run, self.device = run, device
        self.progress = Progress()
        self.model: Any = build(variant, size, run.seed)
        self.model.to(device).train()
        if variant.learned:
            self.model.set_router_training(ROUTING.mode)
        self.rate = torch.zeros((), device=device)
        self.optimizer = _adamw(self.model, self.rate)
        self.costs = self.model.routing_costs(size.grid) if variant.learned else None
        self.clip = torch.zeros(size.batch, 3, *size.video, device=device)
        self.noise = torch.zeros_like(self.clip)
        self.timesteps = _timesteps(run).to(device)
        self.rates, self.openness = (torch.zeros(run.steps, device=device) for _ in range(2))
        self.losses = torch.zeros(run.steps, device=device)
        self.done = torch.zeros(1, dtype=torch.int64, device=device)
        self._schedule()

    def _schedule(self) -> None:
        """Learning rates and weights of the routers' entropy by step, and all that a step moves
        back at its start."""
        steps = self.run.steps
        factors = [
            learning_rate_factor(step, step / steps, OPTIMIZER.warmup_steps)
            for step in range(steps)
        ]
        self.rates.copy_(torch.tensor(factors) * self.run.rate)
        self.openness.copy_(ROUTING.entropy_weight * (1 - torch.arange(steps) / steps))
        self.done.zero_()
        self.losses.zero_()
        for moments in self.optimizer.state.values():
            for moment in moments.values():
                moment.zero_()
        # The router's draws of other bands.
        torch.manual_seed(derive_seed(self.run.seed, "other bands"))

    def advance(self) -> None:
        """One optimizer step on the clip and noise in place; nothing waits for the device."""
        timestep = self.timesteps.index_select(0, self.done)[0]
        self.rate.copy_(self.rates.index_select(0, self.done)[0])
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast(self.device.type, torch.bfloat16):
            loss = flow_matching_loss(self.model, self.clip, timestep, self.noise)
        (loss + self._routing_loss()).backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), OPTIMIZER.max_grad_norm)
        self.optimizer.step()
        self.losses.index_copy_(0, self.done, loss.detach()[None])
        self.done += 1

    def _routing_loss(self) -> Tensor | float:
        if self.costs is None:
            return 0.0
        terms = partial(routing_loss, self.model.routing_logits, self.costs, budget=TARGET_DENSITY)
        held = terms(budget_weight=ROUTING.budget_weight, entropy_weight=0.0)
        # Its weight falls over the run, so it's a tensor here.
        openness = terms(budget_weight=0.0, entropy_weight=1.0)
        return held + self.openness.index_select(0, self.done)[0] * openness

    def captured(self) -> Callable[[], None]:
        """The step as one CUDA graph, to be called like `advance`."""
        # A rate of 0 leaves the weights as they are while kernels compile and the optimizer makes
        # its state; gradients must be finite for that, so its input is an ordinary one.
        self.rates.zero_()
        self.noise.normal_()
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UPS):
                self.done.zero_()
                self.advance()
        torch.cuda.current_stream().wait_stream(stream)
        self.done.zero_()
        self.optimizer.zero_grad(set_to_none=True)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self.advance()
        self._schedule()
        return graph.replay

    def stop(self, path: Path, seconds: float) -> None:
        """Write all that training goes on from, and the seconds that the run has taken."""
        record = self.run.record | {"progress": vars(self.progress), "total_seconds": seconds}
        state.write(path, state.training_tensors(self.model, self.optimizer, self.losses), record)

    def go_on(self, path: Path) -> float:
        """Take up what `stop` wrote, after `captured`; returns the seconds that the run has taken.

        Raises:
            FileError: for a damaged file, or one of another run.
        """
        tensors, record = state.read(path, self.run.record)
        state.restore_training(tensors, self.model, self.optimizer, self.losses)
        self.progress = Progress(**record["progress"])
        self.done.fill_(self.progress.steps)
        return record["total_seconds"]


def _adamw(model: torch.nn.Module, rate: Tensor) -> torch.optim.AdamW:
    """AdamW whose learning rate is a tensor, with decay for matrices alone, as in training."""
    matrices = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    vectors = [parameter for parameter in model.parameters() if parameter.ndim <= 1]
    groups = [
        {"params": matrices, "lr": rate, "weight_decay": OPTIMIZER.weight_decay},
        {"params": vectors, "lr": rate, "weight_decay": 0.0},
    ]
    on_gpu = rate.device.type == "cuda"
    return torch.optim.AdamW(
        groups, lr=rate, betas=OPTIMIZER.betas, fused=on_gpu, capturable=on_gpu
    )


def _timesteps(run: Run) -> Tensor:
    """(S, B), stratified over each batch."""
    drawn = [
        sample_timesteps(run.size.batch, 1.0, derive_generator(run.seed, "timestep", step))
        for step in range(run.steps)
    ]
    return torch.stack(drawn)


def study_batches(
    run: Run, device: torch.device, start: int = 0
) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Clips and noise of every step from `start` on, in lists; the same for every variant."""
    frames, side, _ = run.size.video
    batch, steps = run.size.batch, max(1, CHUNK_CLIPS // run.size.batch)
    for chunk in range(start // steps, -(-run.steps // steps)):
        clips = data.draw_scenes(
            steps * batch, derive_seed(run.seed, "clips", chunk), device, frames=frames, side=side
        ).video
        noise = data.Draw(derive_seed(run.seed, "noise", chunk), device).normal(*clips.shape)
        pairs = list(zip(clips.split(batch), noise.split(batch), strict=True))
        first = chunk * steps
        wanted = pairs[max(0, start - first) : run.steps - first]
        for place in range(0, len(wanted), CHECK_STEPS):
            yield wanted[place : place + CHECK_STEPS]


def _train(trainer: Trainer, step: Callable[[], None], how: How, source: Batches) -> None:
    """Steps until the run or the time ends."""
    progress = trainer.progress
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
        progress.seconds += time.perf_counter() - began
        progress.steps += len(pairs)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()
