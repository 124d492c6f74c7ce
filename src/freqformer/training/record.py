"""How a model came about: what each part of a run did, kept in parts.json beside its checkpoints."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

import torch

from freqformer import __version__

if TYPE_CHECKING:
    from freqformer.training.run import StepReport

PARTS_FILE = "parts.json"
COMMIT_VARIABLE = "FREQFORMER_COMMIT"
"""Environment variable that names the commit where there is no git."""
LOSS_STEPS = 200
"""Last steps whose losses are averaged."""


@dataclass(frozen=True)
class Part:
    """One call of `train` that ended."""

    first_step: int
    """Steps done before it."""
    last_step: int
    """Steps done after it."""
    clips: int
    """Clips seen in it."""
    seconds: float
    """Training time in it."""
    progress: float
    """Share of the whole run that is done after it."""
    loss: float
    """Flow-matching loss, mean of its last 200 steps."""
    device: str
    torch: str
    freqformer: str
    commit: str | None
    """Of the code; None where neither git nor FREQFORMER_COMMIT knows."""
    command: str


def describe_part(
    reports: Sequence[StepReport], begun: tuple[int, float], clips_per_step: int, device: torch.device
) -> Part:
    """What a part did.

    Args:
        reports: of its last steps, `LOSS_STEPS` or all.
        begun: steps and seconds of training that were done before it.
        clips_per_step: clips of one step.
        device: that it ran on.
    """
    (first_step, before), last = begun, reports[-1]
    return Part(
        first_step=first_step,
        last_step=last.step,
        clips=(last.step - first_step) * clips_per_step,
        seconds=last.seconds - before,
        progress=last.progress,
        loss=fmean(report.loss for report in reports),
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads",
        torch=torch.__version__,
        freqformer=__version__,
        commit=_commit(),
        command=shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
    )


def append_part(folder: Path, part: Part) -> None:
    """Add a part to the record in a run's folder; parts that it went back behind are dropped."""
    kept = [earlier for earlier in read_parts(folder) if earlier.last_step <= part.first_step]
    text = json.dumps([asdict(one) for one in (*kept, part)], indent=1)
    (folder / PARTS_FILE).write_text(text + "\n", encoding="utf-8")


def read_parts(folder: Path) -> list[Part]:
    """The parts of a run, first to last; none where it has no record.

    Raises:
        ValueError: for a record that is damaged.
    """
    path = folder / PARTS_FILE
    if not path.is_file():
        return []
    try:
        return [Part(**{field.name: entry[field.name] for field in fields(Part)}) for entry in json.loads(path.read_text())]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no record of a run ({error!r}); remove it, and train again for a whole one") from error


def _commit() -> str | None:
    if named := os.environ.get(COMMIT_VARIABLE):
        return named
    git = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        found = subprocess.run(git, capture_output=True, text=True, check=False)
    except OSError:
        return None
    return found.stdout.strip() if found.returncode == 0 else None
