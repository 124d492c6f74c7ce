"""Conversions by several ranks; what they report goes to FOLDER. A script of
`tests.support.ranks`: FOLDER RANK RANKS NAME..., of the runs to do, with what `make_folder` made
there."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tests.support.ranks import join
from tests.support.shared_finetuning import held_bytes
from tests.support.tiny_conversions import (
    make_dense_folder,
    make_wan_folder,
    tiny_conversion,
    velocity,
    wan,
)
from torch import nn
from torch.distributed.device_mesh import DeviceMesh

from freqformer.conversion import ConvertConfig, convert
from freqformer.conversion.calls import new_folder, recorded
from freqformer.conversion.config import StagesConfig
from freqformer.conversion.diffusers_pair import DiffusersPair
from freqformer.training.config import CheckpointConfig, DataConfig
from freqformer.training.parallel_config import ParallelConfig
from freqformer.training.report import StepReport

STEPS = 6
KEPT = 3
"""The step that runs go on from."""
RUNS: dict[str, dict[str, Any]] = {
    "clips": {},
    "calls": {"stages": StagesConfig(3, 3, falling=0.5, levels=2)},
    "dense": {},
    "clips, shared": {},
    "calls, shared": {"stages": StagesConfig(3, 3, falling=0.5, levels=2)},
    "one, then two": {},
    "two, then one": {},
}


def make_folder(folder: Path) -> Path:
    """Pipelines `wan` and `dense`, a `cache` and recorded `calls`."""
    make_wan_folder(folder)
    make_dense_folder(folder)
    model, given = wan()
    calls = new_folder(folder / "calls", model)
    for number in range(2):
        with recorded(model, 2, number) as kept, torch.no_grad():
            for timestep in (900.0, 500.0, 100.0):
                velocity(model, given, timestep)
        calls.add_video(kept, f"video {number}")
    return folder


def config_of(folder: Path, name: str, ranks: int) -> ConvertConfig:
    """Two clips or calls a step on so many ranks, two steps of each stage."""
    config = tiny_conversion(
        folder,
        "dense" if name == "dense" else "wan",
        output=str(folder / f"{name}-{ranks}"),
        checkpoint=CheckpointConfig(every_steps=1, keep=STEPS),
        **{"stages": StagesConfig(2, 2, 2, falling=0.5, levels=2), **RUNS[name]},
    )
    if name.startswith("calls"):
        config = replace(config, calls=str(folder / "calls"), data=DataConfig())
    # A norm below what gradients have, so that all are clipped.
    optimizer = replace(config.optimizer, max_grad_norm=1e-3)
    run = replace(config.run, accumulation=2 // ranks)
    if name.endswith("shared"):
        parallel = ParallelConfig(dp_shard=ranks)
        run = replace(run, gradient_checkpointing=True, parallel=parallel)
    return replace(config, optimizer=optimizer, run=run)


@contextmanager
def shared_teachers() -> Iterator[list[nn.Module]]:
    """The transformers whose weights are shared from here on."""
    own, models = DiffusersPair.share_teacher, []

    def share(self: DiffusersPair, mesh: DeviceMesh) -> None:
        models.append(self._transformer)
        own(self, mesh)

    DiffusersPair.share_teacher = share
    try:
        yield models
    finally:
        DiffusersPair.share_teacher = own


def write_reports(folder: Path, names: Sequence[str], rank: int, ranks: int) -> None:
    """Do runs; what each rank says of its steps and its result is written."""
    for name in names:
        reports: list[StepReport] = []
        with shared_teachers() as models:
            result = convert(config_of(folder, name, ranks), on_step=reports.append)
        assert result.is_dir()
        for model in models:
            held = json.dumps(held_bytes(model))
            (folder / f"{name}-held-{rank}.json").write_text(held, encoding="utf-8")
        if reports:
            told = [[report.step, report.loss, report.gradient_norm] for report in reports]
            (folder / f"{name}-{ranks}.json").write_text(json.dumps(told), encoding="utf-8")


def go_on(folder: Path, before: str, name: str) -> None:
    """Give a run a checkpoint of another one."""
    checkpoint = Path("checkpoints", f"step-{KEPT:08d}")
    shutil.copytree(folder / before / checkpoint, folder / name / checkpoint)


if __name__ == "__main__":
    folder, rank, ranks = join()
    write_reports(folder, sys.argv[4:], rank, ranks)
