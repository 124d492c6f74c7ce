"""One run of the study: training, and what `validation` makes of the model.

On a GPU one CUDA graph holds the whole optimizer step. Its inputs lie still: clip and noise are
copied in, everything else follows from a step counter on the device. Shape legend: B clips of a
step, S steps, L layers, H heads.
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from benchmarks.quality import data
from benchmarks.quality.validation import validate
from benchmarks.quality.variants import (
    TARGET_DENSITY,
    Size,
    Variant,
    build,
    density,
    head_costs,
    used_parameters,
)
from torch import Tensor

from freqformer.config import Band
from freqformer.routing import routing_loss
from freqformer.training.config import OptimizerConfig, RoutingConfig
from freqformer.training.objective import flow_matching_loss, learning_rate_factor, sample_timesteps
from freqformer.training.seeding import derive_generator, derive_seed

CHUNK_CLIPS = 128
"""Clips that are drawn at once."""
CURVE_STEPS = 20
"""Steps over which the training curve is averaged."""
WARM_UPS = 3
OPTIMIZER = OptimizerConfig()
ROUTING = RoutingConfig()


@dataclass(frozen=True)
class Run:
    """What is run: a variant's name and itself, its seed, and for how many steps."""

    name: str
    variant: Variant
    seed: int
    steps: int
    size: Size


def execute(
    run: Run, device: torch.device, *, graph: bool, compiled: bool = False
) -> dict[str, Any]:
    """Train and validate.

    Args:
        run: what to run.
        device: where.
        graph: whether one CUDA graph holds a step; needs a GPU.
        compiled: whether the model's blocks are compiled for training; validation runs them as they
            are.

    Returns: what the result file says of it, JSON-able.

    Raises:
        RuntimeError: where the loss is not finite.
    """
    began = time.perf_counter()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    trainer = Trainer(run, device)
    if compiled:
        torch.compiler.reset()  # of the last run's model
        trainer.model.compile_repeated_blocks(fullgraph=True, dynamic=False)
    step = trainer.captured() if graph else trainer.advance
    ready = time.perf_counter() - began
    training_seconds = _train(trainer, step, run, device)
    losses = trainer.losses.double().cpu()
    if not bool(losses.isfinite().all()):
        first = int((~losses.isfinite()).nonzero()[0])
        raise RuntimeError(
            f"the loss of {run.name}, seed {run.seed}, is not finite from step {first + 1} of "
            f"{run.steps} on"
        )
    model = trainer.model.eval()
    result = {
        "variant": run.name,
        "seed": run.seed,
        "steps": run.steps,
        "tokens": run.size.grid.num_tokens,
        "compiled": compiled,
        "step_ms": 1e3 * training_seconds / run.steps,
        "parameters": used_parameters(model),
        "density": density(run.variant, run.size),
        "training_curve": [round(float(part.mean()), 5) for part in losses.split(CURVE_STEPS)],
    }
    del step, trainer
    with torch.compiler.set_stance("force_eager"):
        result |= validate(model, run.variant, run.size, device)
    result |= {"start_seconds": round(ready, 2), "seconds": round(time.perf_counter() - began, 2)}
    if device.type == "cuda":
        result["peak_gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 2)
    result["attention_flops"] = (
        result["density"] * head_costs(run.variant, run.size)[Band.DENSE] * _heads(run.size)
    )
    del model
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return result


def _heads(size: Size) -> int:
    return size.layers * size.heads


class Trainer:
    """A model, its optimizer, and tensors that one step reads and writes on the device."""

    def __init__(self, run: Run, device: torch.device) -> None:
        size = run.size
        self.run, self.device = run, device
        self.model: Any = build(run.variant, size, run.seed)
        self.model.to(device).train()
        if run.variant.learned:
            self.model.set_router_training(ROUTING.mode)
        self.rate = torch.zeros((), device=device)
        self.optimizer = _adamw(self.model, self.rate)
        self.costs = self.model.routing_costs(size.grid) if run.variant.learned else None
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
        self.rates.copy_(torch.tensor(factors) * OPTIMIZER.peak_rate)
        self.openness.copy_(ROUTING.entropy_weight * (1 - torch.arange(steps) / steps))
        self.done.zero_()
        self.losses.zero_()
        for state in self.optimizer.state.values():
            for moment in state.values():
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


def _batches(run: Run, device: torch.device) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Clips and noise of every step, in lists that are drawn at once; the same for every
    variant."""
    frames, side, _ = run.size.video
    batch, steps = run.size.batch, max(1, CHUNK_CLIPS // run.size.batch)
    for chunk in range(math.ceil(run.steps / steps)):
        clips = data.draw_scenes(
            steps * batch, derive_seed(run.seed, "clips", chunk), device, frames=frames, side=side
        ).video
        noise = data.Draw(derive_seed(run.seed, "noise", chunk), device).normal(*clips.shape)
        yield list(zip(clips.split(batch), noise.split(batch), strict=True))[
            : run.steps - chunk * steps
        ]


def _train(trainer: Trainer, step: Callable[[], None], run: Run, device: torch.device) -> float:
    """Every step of the run; returns the seconds that steps took, without the drawing of clips."""
    seconds = 0.0
    for batches in _batches(run, device):
        _wait(device)
        began = time.perf_counter()
        for clip, noise in batches:
            trainer.clip.copy_(clip)
            trainer.noise.copy_(noise)
            step()
        _wait(device)
        seconds += time.perf_counter() - began
    return seconds


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()
