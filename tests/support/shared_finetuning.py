"""Runs of several ranks on a pipeline; what they report goes to FOLDER. A script of
`tests.support.ranks`: FOLDER RANK RANKS NAME..., of the runs to do, with `pipe` and `cache`
there."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.support.ranks import join
from tests.support.tiny_finetuning import lora_config, with_run
from tests.support.tiny_training import changed
from torch import nn
from torch.distributed.tensor import DTensor

from freqformer.training.config import TrainConfig
from freqformer.training.loop import StepReport, train
from freqformer.training.parallel_config import ParallelConfig
from freqformer.training.placement import Placed, Sharded

STEPS = 3
FULL: dict[str, Any] = {"weights": "full", "density": 1.0}
LEVELS = (0.2, 0.7)
"""Noise levels of held-out losses."""
RUNS: dict[str, dict[str, Any]] = {
    "lora": {},
    "full": FULL,
    "half": {},
    "lora, shared": {},
    "full, shared": FULL,
    "half, shared": {},
    "family": {"density": 0.9},
    "family, shared": {"density": 0.9},
    "one, then shared": {},
    "shared, then one": {},
}
SHARED = ("lora, shared", "full, shared", "half, shared", "family, shared", "one, then shared")
"""Runs whose ranks share the weights."""


def config_of(folder: Path, name: str, ranks: int) -> TrainConfig:
    """Two clips a step on so many ranks."""
    config = lora_config(folder, folder / f"{name}-{ranks}", **RUNS[name])
    # A norm below what gradients have, so that all are clipped.
    config = changed(config, "optimizer", learning_rate=1e-3, max_grad_norm=1e-3)
    config = changed(config, "checkpoint", every_steps=1, keep=STEPS)
    # In forward passes of one clip, since a cache is shown in blocks of a pass.
    config = with_run(config, batch_size=1, accumulation=2 // ranks, max_steps=STEPS)
    if name.startswith("half"):
        config = with_run(config, precision="bf16")
        config = changed(config, "validation", held_out=1, levels=LEVELS, every_steps=1)
    if name.startswith("family"):
        # Of two clips each, which MiniMax-H3 is asked about by two calls before one backward.
        config = changed(with_run(config, batch_size=2), "data", caption_dropout=0.0)
    if name not in SHARED:
        return config
    return with_run(config, gradient_checkpointing=True, parallel=ParallelConfig(dp_shard=ranks))


def write_reports(folder: Path, names: Sequence[str], rank: int, ranks: int) -> None:
    """Do runs, and write loss and gradient norm of each of their steps, as the main process has
    them, and what every rank holds of shared weights in the end."""
    for name in names:
        reports: list[StepReport] = []
        with placed_models() as models:
            train(config_of(folder, name, ranks), on_step=reports.append)
        if rank == 0:
            told = [[report.step, report.loss, report.gradient_norm] for report in reports]
            path = folder / f"{name}-{ranks}.json"
            path.write_text(json.dumps(told), encoding="utf-8")
        for model in models:
            held = json.dumps(held_bytes(model))
            (folder / f"{name}-held-{rank}.json").write_text(held, encoding="utf-8")


def go_on(folder: Path, before: str, name: str) -> None:
    """Give a run the checkpoint of step 2 of another one."""
    checkpoint = Path("checkpoints", "step-00000002")
    shutil.copytree(folder / before / checkpoint, folder / name / checkpoint)


@contextmanager
def placed_models() -> Iterator[list[nn.Module]]:
    """The models whose weights are shared from here on."""
    own, models = Sharded.place, []

    def place(self: Sharded, model: nn.Module, settings: Any) -> Placed:
        models.append(model)
        return own(self, model, settings)

    Sharded.place = place
    try:
        yield models
    finally:
        Sharded.place = own


def held_bytes(model: nn.Module) -> list[int]:
    """Bytes of weights that this rank holds, and of all of them."""
    shared: list[Any] = list(model.parameters())
    assert all(isinstance(x, DTensor) for x in shared)
    return [sum(x.to_local().nbytes for x in shared), sum(x.nbytes for x in shared)]


if __name__ == "__main__":
    folder, rank, ranks = join()
    write_reports(folder, sys.argv[4:], rank, ranks)
