"""How a model came about: what each session of a run did, in its checkpoints and in sessions.json.

A checkpoint's state holds the sessions up to it, so that none is lost where a run is killed;
sessions.json is a copy to read.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import torch

from freqformer import __version__
from freqformer._files import FileError, read_json, write_json
from freqformer._renamed import warn_renamed

if TYPE_CHECKING:
    from freqformer.training.report import StepReport

SESSIONS_FILE = "sessions.json"
OLD_SESSIONS_FILE = "parts.json"
"""What versions before called it."""
TRAIN_FILE = "train.json"
"""The config of the run, all fields."""
COMMIT_VARIABLE = "FREQFORMER_COMMIT"
"""Environment variable that names the commit where there is no git."""
LOSS_STEPS = 200
"""Last steps whose losses are averaged."""


@dataclass(frozen=True)
class Session:
    """What one call of `train` did, up to its last checkpoint."""

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
    """Of this package's code; None where neither FREQFORMER_COMMIT, its own git repository nor its
    installer knows."""
    command: str


def describe_session(
    reports: Sequence[StepReport],
    begun: tuple[int, float],
    clips_per_step: int,
    device: torch.device,
) -> Session:
    """What a session did.

    Args:
        reports: of its last steps, `LOSS_STEPS` or all.
        begun: steps and seconds of training that were done before it.
        clips_per_step: clips of one step.
        device: that it ran on.
    """
    (first_step, before), last = begun, reports[-1]
    return Session(
        first_step=first_step,
        last_step=last.step,
        clips=(last.step - first_step) * clips_per_step,
        seconds=last.seconds - before,
        progress=last.progress,
        loss=fmean(report.loss for report in reports),
        device=torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"CPU, {torch.get_num_threads()} threads",
        torch=torch.__version__,
        freqformer=__version__,
        commit=_commit(),
        command=shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
    )


def with_session(sessions: Iterable[Session], session: Session) -> list[Session]:
    """The sessions of a run with one more, or with the newer state of it; those that it went back
    behind are dropped."""
    return [*(earlier for earlier in sessions if earlier.last_step <= session.first_step), session]


def sessions_up_to(sessions: Iterable[Session], step: int) -> list[Session]:
    """The sessions of a run that goes on from a step."""
    return [session for session in sessions if session.last_step <= step]


def write_sessions(folder: Path, sessions: Iterable[Session]) -> None:
    """Write sessions.json into a run's folder, whole or not at all; a file of its old name goes.

    Raises:
        ValueError: where it can't be written.
    """
    write_json(folder / SESSIONS_FILE, [asdict(session) for session in sessions])
    (folder / OLD_SESSIONS_FILE).unlink(missing_ok=True)


def read_sessions(folder: Path) -> list[Session]:
    """The sessions of a run, first to last; none where it has no record.

    Raises:
        ValueError: for a record that is damaged.
    """
    path, old = folder / SESSIONS_FILE, folder / OLD_SESSIONS_FILE
    if not path.is_file():
        if not old.is_file():
            return []
        path = old
        warn_renamed(str(old), SESSIONS_FILE)
    remedy = "remove it, and train again for a whole one"
    try:
        return parse_sessions(read_json(path, kind=list, remedy=remedy))
    except ValueError as error:
        why = (
            error
            if isinstance(error, FileError)
            else f"{path} is no record of a run ({error}); {remedy}"
        )
        raise ValueError(str(why)) from error


def sessions_of_state(state: Mapping[str, Any]) -> list[Session] | None:
    """The sessions up to a checkpoint; None in the state of a version that did not keep them there.

    Args:
        state: of the checkpoint.

    Raises:
        ValueError: for sessions that are damaged.
    """
    if "sessions" in state:
        return parse_sessions(state["sessions"])
    if "parts" in state:
        warn_renamed("parts in a checkpoint's state", "sessions")
        return parse_sessions(state["parts"])
    return None


def parse_sessions(values: Any) -> list[Session]:
    """Parts from what `asdict` made of them.

    Raises:
        ValueError: for values of other names or kinds.
    """
    kinds = {"int": int, "float": int | float, "str": str, "str | None": str | None}
    for entry in values if isinstance(values, list) else [values]:
        for field in fields(Session):
            value = entry.get(field.name, ...) if isinstance(entry, dict) else ...
            if not isinstance(value, kinds[str(field.type)]) or isinstance(value, bool):
                raise ValueError(f"{field.name} is {'missing' if value is ... else repr(value)}")
    return [
        Session(**{field.name: entry[field.name] for field in fields(Session)}) for entry in values
    ]


@lru_cache(maxsize=1)
def _installed_commit() -> str | None:
    """The commit that this package's code is of; None where nothing knows it."""
    package = Path(__file__).resolve().parents[1]
    return _repository_commit(package) or _direct_commit()


def _repository_commit(package: Path) -> str | None:
    """The commit of the package's own repository; a user's repository around an installed package
    tells nothing."""
    git = ["git", "-C", str(package), "rev-parse", "--show-toplevel", "HEAD"]
    # Git's own variables, as in a hook of another repository, would point elsewhere.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    try:
        found = subprocess.run(git, capture_output=True, text=True, check=False, env=environment)
    except OSError:
        return None
    if found.returncode != 0:
        return None
    top, commit = found.stdout.splitlines()
    project = Path(top, "pyproject.toml")
    own = Path(top, "src", "freqformer").resolve() == package and project.is_file()
    return commit if own and 'name = "freqformer"' in project.read_text(encoding="utf-8") else None


def _direct_commit() -> str | None:
    """The commit that pip installed from a repository."""
    try:
        text = distribution("freqformer").read_text("direct_url.json")
        commit = json.loads(text or "{}").get("vcs_info", {}).get("commit_id")
    except (PackageNotFoundError, ValueError, AttributeError):
        return None
    return commit if isinstance(commit, str) else None


def _commit() -> str | None:
    return os.environ.get(COMMIT_VARIABLE) or _installed_commit()
