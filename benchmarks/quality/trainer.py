"""One optimizer step after the other, of a run that stops and goes on.

On a GPU one CUDA graph holds the whole step. Its inputs lie still: clip and noise are copied in,
everything else follows from a step counter on the device. Shape legend: B clips of a step, S steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from benchmarks.quality import data, state
from benchmarks.quality.building import build
from benchmarks.quality.runs import OPTIMIZER, ROUTING, Run
from benchmarks.quality.variants import TARGET_DENSITY
from torch import Tensor

from freqformer.routing import routing_loss
from freqformer.training.objective import flow_matching_loss, learning_rate_factor, sample_timesteps
from freqformer.training.seeding import derive_generator, derive_seed

CHUNK_CLIPS = 128
"""Clips that are drawn at once."""
CHECK_STEPS = 16
"""Steps after which the clock is looked at; that waits for the device."""
WARM_UPS = 3
Batches = Callable[[Run, torch.device, int], Iterator[list[tuple[Tensor, Tensor]]]]
"""Clips and noise (B, 3, F, S, S) of every step from a number on, in lists of a few steps."""


@dataclass
class Progress:
    """How far training has come."""

    steps: int = 0
    seconds: float = 0.0
    """Of the steps, without the drawing of clips."""
    start_seconds: float = 0.0
    """Before the first step of every call."""
    calls: int = 0


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
        # On the same stream, on which nodes of the warm-ups' graphs expect their gradients.
        with torch.cuda.graph(graph, stream=stream):
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
