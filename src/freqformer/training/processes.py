"""One run to an output folder: a lock on it, and no processes that don't know of one another."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from freqformer._files import output_folder
from freqformer.training.checkpoint import CheckpointError
from freqformer.training.provenance import OLD_SESSIONS_FILE, SESSIONS_FILE

if TYPE_CHECKING:
    from accelerate import Accelerator

VALIDATION_FOLDER = "validation"
"""Of videos that a run makes every so many steps."""
NEEDED = {
    "WORLD_SIZE": ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"),
    "OMPI_COMM_WORLD_SIZE": ("OMPI_COMM_WORLD_RANK",),
    "PMI_SIZE": ("PMI_RANK",),
    "MV2_COMM_WORLD_SIZE": ("MV2_COMM_WORLD_RANK",),
    "SLURM_STEP_NUM_TASKS": (),
}
"""Environment variables in which launchers (torchrun, MPI, srun) say how many processes they
started, and those by which these find one another."""


def any_process(accelerator: Accelerator, asked: bool) -> bool:
    """Whether one of the processes says so: a signal may reach one of them a step early."""
    if accelerator.num_processes == 1:
        return asked
    votes = accelerator.reduce(torch.tensor(float(asked), device=accelerator.device), "sum")
    assert isinstance(votes, Tensor)
    return bool(votes > 0)


@contextmanager
def only_run(
    folder: Path,
    accelerator: Accelerator,
    kind: str = "train",
    kept: tuple[str, ...] = (SESSIONS_FILE, OLD_SESSIONS_FILE, VALIDATION_FOLDER),
) -> Iterator[None]:
    """Keep other runs out of an output folder; the main process holds the lock for all of a run.

    Args:
        folder: of the run.
        accelerator: of the run.
        kind: of run, in errors.
        kept: names in the folder by which an earlier run is known.

    Raises:
        CheckpointError: where another run holds it, naming it, or where a launcher started several
            processes and this one trains alone.
    """
    check_launch(accelerator.num_processes)
    if not accelerator.is_main_process:
        yield
        return
    with output_folder(folder, kind, kept, earlier=("checkpoints",), error=CheckpointError):
        yield


def check_launch(processes: int | None = None) -> None:
    """Raise CheckpointError where a launcher started more processes than know of one another.

    Args:
        processes: that take part in this run, as accelerate counts them; None before it has
            counted.
    """
    for name, others in NEEDED.items():
        started = os.environ.get(name, "")
        if not started.isdecimal() or int(started) < 2:
            continue
        missing = [other for other in others if other not in os.environ]
        if missing or processes == 1:
            lacks = f" ({', '.join(missing)} is not set)" if missing else ""
            raise CheckpointError(
                f"{name} is {started}, but this process trains alone{lacks}: each of {started} "
                "would write to the same "
                f"folder. Start them with `accelerate launch` or torchrun, or unset {name}"
            )
