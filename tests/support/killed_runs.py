"""Runs that are killed, each in its own process: `python -m tests.support.killed_runs FOLDER
SCENARIO[=NUMBER] ...`.

The imports are paid once: every run is a fork of this process, which itself never computes in
several threads.
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

import freqformer.cli
import freqformer.models.pipeline
from freqformer.__main__ import main
from freqformer.training.checkpoint import load_checkpoint, newest_checkpoint, save_checkpoint
from freqformer.training.config import (
    CheckpointConfig,
    DataConfig,
    OptimizerConfig,
    RunConfig,
    TrainConfig,
)
from freqformer.training.loader import ClipLoader
from freqformer.training.loop import train
from freqformer.training.report import StepReport
from freqformer.training.trainer import Trainer

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
        model={
            "num_layers": 1,
            "num_attention_heads": 3,
            "attention_head_dim": 8,
            "patch_size": [1, 4, 4],
        },
        data=DataConfig(
            path=None if path is None else str(path), num_frames=4, height=16, width=24
        ),
        optimizer=OptimizerConfig(warmup_steps=5),
        run=RunConfig(max_steps=steps, batch_size=1, accumulation=2, device="cpu", progress=False),
        checkpoint=CheckpointConfig(every_steps=every),
    )


def write_down(path: Path, report: StepReport) -> None:
    """Append the step, its exact figures and the state of every global random generator."""
    states = (random.getstate(), np.random.get_state(), torch.get_rng_state().tolist())  # noqa: NPY002
    digest = hashlib.sha256(repr(states).encode()).hexdigest()
    figures = [
        x.hex()
        for x in (report.loss, report.routing_loss, report.gradient_norm, report.learning_rate)
    ]
    with path.open("a") as file:
        file.write(json.dumps([report.step, figures, digest]) + "\n")


def resume(folder: Path) -> None:
    """20 steps, straight (`straight`), and killed by signal 9 behind step 10 and resumed
    (`killed`)."""

    folder.mkdir()

    def run(name: str, last: int) -> Callable[[], object]:
        def on_step(report: StepReport) -> None:
            write_down(folder / f"{name}.jsonl", report)
            if report.step == last:
                kill_self()

        return lambda: train(config(folder / name, steps=20, every=10, path=VIDEO), on_step=on_step)

    assert wait(start(run("straight", 0))) == 0
    assert wait(start(run("killed", 12))) == -signal.SIGKILL
    assert (
        newest_checkpoint(folder / "killed" / "checkpoints")
        == folder / "killed" / "checkpoints" / "step-00000010"
    )
    assert wait(start(run("killed", 0))) == 0


def whole_step(checkpoints: Path) -> int:
    """The step of the newest checkpoint, which must be whole; 0 where there is none."""
    newest = newest_checkpoint(checkpoints)
    if newest is None:
        return 0
    groups, state = load_checkpoint(newest)
    assert newest.name == f"step-{state['step']:08d}"
    assert all(bool(x.isfinite().all()) for group in groups.values() for x in group.values())
    return state["step"]


def strike(chance: random.Random, child: int, reader: int, number: int) -> None:
    """Send a signal at a random moment: while the run starts, in one of its first steps, or while
    it saves."""
    # A step is told when it is done, so a slow machine gets as far as a fast one.
    for _ in range(chance.randint(0, 3)):
        os.read(reader, 1)
    select.select([], [], [], chance.uniform(0, 0.2))
    os.kill(child, number)
    os.close(reader)


def kills(folder: Path, number: int) -> None:
    """Kill a run at random moments, check its newest checkpoint every time, let it end; and the
    same run without kills."""
    folder.mkdir()
    chance = random.Random(0)
    steps = 3 * number

    def run(name: str, out: int | None = None) -> None:
        def on_step(report: StepReport) -> None:
            write_down(folder / f"{name}.jsonl", report)
            if out is not None:
                os.write(out, b".")

        train(config(folder / name, steps=steps, every=1), on_step=on_step)

    for _ in range(number):
        reader, writer = os.pipe()
        child = start(partial(run, "killed", writer))
        os.close(writer)
        strike(chance, child, reader, signal.SIGKILL)
        ended = wait(child) == 0
        tell("kills", newest=whole_step(folder / "killed" / "checkpoints"), ended=ended)
    assert wait(start(partial(run, "killed"))) == 0
    assert wait(start(partial(run, "straight"))) == 0


def interruptions(folder: Path, number: int) -> None:
    """End `freqformer train` by Ctrl-C or SIGTERM at random moments; no step but the last would be
    kept otherwise."""
    folder.mkdir()
    chance = random.Random(1)
    steps = 4 * number

    def command(name: str, out: int | None = None) -> None:
        advance = Trainer.advance

        def told(run: Trainer, loader: ClipLoader) -> StepReport:
            report = advance(run, loader)
            write_down(folder / f"{name}.jsonl", report)
            if out is not None:
                os.write(out, b".")
            return report

        Trainer.advance = told
        with (folder / f"{name}.err").open("w") as file:
            os.dup2(file.fileno(), 2)
            os.dup2(file.fileno(), 1)
            values = json.dumps(config(folder / name, steps=steps, every=10**6).to_dict())
            (folder / f"{name}.json").write_text(values)
            sys.argv = ["freqformer", "train", "--config", str(folder / f"{name}.json")]
            try:
                main()
            except SystemExit as ended:
                # Without what Python does at its end, which belongs to the process that was forked.
                sys.stderr.flush()
                os._exit(int(ended.code or 0))

    for turn in range(number):
        reader, writer = os.pipe()
        child = start(partial(command, "killed", writer))
        os.close(writer)
        asked = (signal.SIGINT, signal.SIGTERM)[turn % 2]
        strike(chance, child, reader, asked)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        said = (folder / "killed.err").read_text()
        # A signal before the command's first line ends it as it would any program.
        assert status in (0, 128 + asked, -asked), said
        assert "Traceback" not in said, said
        if status == 128 + asked:
            assert said.splitlines()[-1].startswith("stopped by"), said
        lines = (
            (folder / "killed.jsonl").read_text().splitlines()
            if (folder / "killed.jsonl").exists()
            else []
        )
        finished = max((json.loads(line)[0] for line in lines), default=0)
        newest = whole_step(folder / "killed" / "checkpoints")
        assert newest == finished, f"step {finished} was done and {newest} is kept: {said}"
        tell("interruptions", newest=newest, ended=status == 0)
    assert wait(start(partial(command, "killed"))) == 0
    assert wait(start(partial(command, "straight"))) == 0


def operations(folder: Path) -> None:
    """Save checkpoints, each time killed before one more file operation, until a save comes
    through."""

    def save(step: int) -> None:
        groups = {
            name: {"weight": torch.full((64,), float(step))}
            for name in ("model", "ema", "optimizer")
        }
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


SCENARIOS = {
    "resume": resume,
    "kills": kills,
    "interruptions": interruptions,
    "operations": operations,
}

if __name__ == "__main__":
    torch.set_num_threads(1)
    for scenario in sys.argv[2:]:
        name, *numbers = scenario.split("=")
        SCENARIOS[name](Path(sys.argv[1]) / name, *map(int, numbers))
