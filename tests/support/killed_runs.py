"""Runs that are killed, each in its own process: `python -m tests.support.killed_runs FOLDER SCENARIO[=NUMBER] ...`.

The imports are paid once: every run is a fork of this process, which itself never computes in several threads.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import select
import signal
import sys
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.utils.tensorboard

import freqformer.models.pipeline
from freqformer.training.checkpoint import load_checkpoint, newest_checkpoint, save_checkpoint
from freqformer.training.config import CheckpointConfig, DataConfig, OptimizerConfig, RunConfig, TrainConfig
from freqformer.training.loop import StepReport, train

VIDEO = Path(freqformer.__file__).parent / "assets" / "pagoda.mp4"
CHANGES = ("open", "os.rename", "os.mkdir", "os.rmdir", "os.remove", "os.listdir", "os.scandir")
"""Audit events of a process that works with files."""


def start(work: Callable[[], object]) -> int:
    """Do some work in a fork; returns its process id."""
    child = os.fork()
    if child == 0:
        try:
            work()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    return child


def wait(child: int) -> int:
    """0 where the fork ended well, the number of the signal that killed it, negative."""
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status > 0:
        raise RuntimeError(f"a run failed with exit code {status}")
    return status


def tell(scenario: str, **values: object) -> None:
    print(json.dumps({"scenario": scenario, **values}), flush=True)


def kill_self() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def config(folder: Path, *, steps: int, every: int, path: Path | None = None) -> TrainConfig:
    """A run of a tiny model with learned routers, two forward passes a step."""
    return TrainConfig(
        str(folder),
        model={"num_layers": 1, "num_heads": 3, "head_dim": 8, "patch_size": [1, 4, 4]},
        data=DataConfig(path=None if path is None else str(path), num_frames=4, height=16, width=24),
        optimizer=OptimizerConfig(warmup_steps=5),
        run=RunConfig(max_steps=steps, batch_size=1, accumulation=2, device="cpu", progress=False),
        checkpoint=CheckpointConfig(every_steps=every),
    )


def write_down(path: Path, report: StepReport) -> None:
    """Append the step, its exact figures and the state of every global random generator."""
    states = (random.getstate(), np.random.get_state(), torch.get_rng_state().tolist())  # noqa: NPY002
    digest = hashlib.sha256(repr(states).encode()).hexdigest()
    figures = [x.hex() for x in (report.loss, report.routing_loss, report.gradient_norm, report.learning_rate)]
    with path.open("a") as file:
        file.write(json.dumps([report.step, figures, digest]) + "\n")


def resume(folder: Path) -> None:
    """20 steps, straight (`straight`), and killed by signal 9 behind step 10 and resumed (`killed`)."""

    folder.mkdir()

    def run(name: str, last: int) -> Callable[[], object]:
        def on_step(report: StepReport) -> None:
            write_down(folder / f"{name}.jsonl", report)
            if report.step == last:
                kill_self()

        return lambda: train(config(folder / name, steps=20, every=10, path=VIDEO), on_step=on_step)

    assert wait(start(run("straight", 0))) == 0
    assert wait(start(run("killed", 12))) == -signal.SIGKILL
    assert newest_checkpoint(folder / "killed" / "checkpoints") == folder / "killed" / "checkpoints" / "step-00000010"
    assert wait(start(run("killed", 0))) == 0


def kills(folder: Path, number: int) -> None:
    """Kill a run at random moments, check its newest checkpoint every time, let it end; and the same run without kills."""
    chance = random.Random(0)
    steps, checkpoints = 4 * number, folder / "killed" / "checkpoints"
    killed = 0
    while killed < number:
        reader, writer = os.pipe()
        child = start(
            lambda out=writer: train(config(folder / "killed", steps=steps, every=1), on_step=lambda _: os.write(out, b"."))
        )
        os.close(writer)
        # A step is told after the save of the one before, so a slow machine gets as far as a fast one.
        for _ in range(chance.randint(1, 3)):
            os.read(reader, 1)
        select.select([], [], [], chance.uniform(0, 0.2))
        os.kill(child, signal.SIGKILL)
        os.close(reader)
        ended = wait(child) == 0
        newest = newest_checkpoint(checkpoints)
        if newest is not None:
            groups, state = load_checkpoint(newest)
            assert newest.name == f"step-{state['step']:08d}"
            assert all(bool(x.isfinite().all()) for group in groups.values() for x in group.values())
        killed += 1
        tell("kills", newest=newest.name if newest else None, ended=ended)
    assert wait(start(lambda: train(config(folder / "killed", steps=steps, every=1)))) == 0
    assert wait(start(lambda: train(config(folder / "straight", steps=steps, every=1)))) == 0


def operations(folder: Path) -> None:
    """Save checkpoints, each time killed before one more file operation, until a save comes through."""

    def save(step: int) -> None:
        groups = {name: {"weight": torch.full((64,), float(step))} for name in ("model", "ema", "optimizer")}
        save_checkpoint(folder, step, groups, {"step": step}, keep=1)

    def save_until(step: int, last: int) -> None:
        done = 0

        def count(event: str, _: object) -> None:
            nonlocal done
            if event in CHANGES:
                done += 1
                if done == last:
                    kill_self()

        sys.addaudithook(count)
        save(step)

    wait(start(lambda: save(1)))
    step, last, ended = 1, 1, False
    while not ended:
        ended = wait(start(partial(save_until, step + 1, last))) == 0
        newest = newest_checkpoint(folder)
        assert newest is not None
        groups, state = load_checkpoint(newest)
        assert state["step"] in (step, step + 1), f"step {state['step']} after {step}"
        step = state["step"]
        assert all(float(group["weight"].sum()) == 64 * step for group in groups.values())
        tell("operations", newest=step)
        last += 1


SCENARIOS = {"resume": resume, "kills": kills, "operations": operations}

if __name__ == "__main__":
    torch.set_num_threads(1)
    for scenario in sys.argv[2:]:
        name, *numbers = scenario.split("=")
        SCENARIOS[name](Path(sys.argv[1]) / name, *map(int, numbers))
