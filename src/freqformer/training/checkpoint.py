"""Checkpoint folders that are whole or absent: safetensors and JSON, with checksums.

A checkpoint is `step-00000500/` with one `<group>.safetensors` per group of tensors, `state.json`,
which names the groups with their sizes in bytes, and the manifest with the checksums of them all.
One that several ranks wrote together has the files of `shard_files` in place of the groups'.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from freqformer._files import (
    check_manifest,
    read_json,
    remove_folder,
    writing_folder,
)
from freqformer.training.report import CheckpointError, TensorGroups
from freqformer.training.shard_files import described_shards, whole_tensors

__all__ = [
    "CheckpointError",
    "load_checkpoint",
    "newest_checkpoint",
    "save_checkpoint",
    "writing_folder",
]

logger = logging.getLogger(__name__)

FORMAT = 1
"""Version of the layout of a checkpoint folder."""
SHARDED_FORMAT = 2
"""That of one with shards of several ranks."""
STATE_FILE = "state.json"
KIND = "checkpoint"
KNOWN = ("*.safetensors", STATE_FILE)
"""What checkpoints of versions without manifest consist of."""

_NAME = re.compile(r"step-(\d{8,18})")
_GROUP = re.compile(r"\w[\w-]{0,63}")
_REMEDY = "remove this checkpoint to go on from the one before it"


def save_checkpoint(
    folder: Path,
    step: int,
    groups: TensorGroups,
    state: Mapping[str, Any],
    *,
    keep: int = 2,
) -> Path:
    """Write a checkpoint; a kill or a full disk at any moment leaves the earlier ones as they were.

    Args:
        folder: of all checkpoints of the run; made if need be.
        step: steps done.
        groups: tensors by group and name, any dtype and device.
        state: JSON-able values.
        keep: newest checkpoints that stay. Older ones, and damaged later ones of a run that went on
            from here, are removed once this one is safe.

    Returns: the checkpoint's folder.

    Raises:
        CheckpointError: where it can't be written, a full disk included; or where a later whole
            checkpoint is there, which only another run can have written.
    """
    with filling_checkpoint(folder, step, keep) as temporary:
        write_record(temporary, FORMAT, step, state, _write(temporary, groups))
    return folder / _name(step)


@contextmanager
def filling_checkpoint(folder: Path, step: int, keep: int) -> Iterator[Path]:
    """A folder to fill, which becomes the checkpoint of a step; arguments and errors as
    `save_checkpoint`."""
    _refuse_later(folder, step)
    target = folder / _name(step)
    with writing_folder(target, kind=KIND, known=KNOWN, error=CheckpointError) as temporary:
        yield temporary
    _remove_others(folder, step, keep)


def write_record(
    folder: Path, layout: int, step: int, state: Mapping[str, Any], sizes: Mapping[str, int]
) -> None:
    """Write state.json: the version of the layout, the step, the state, and groups with the sizes
    of their files."""
    record = {"format": layout, "step": step, "state": dict(state), "groups": dict(sizes)}
    text = json.dumps(record, indent=1, allow_nan=False)
    (folder / STATE_FILE).write_text(text, encoding="utf-8")


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint in a folder; None where there is none at all.

    A damaged checkpoint is named in the log and the one before it is taken.

    Raises:
        CheckpointError: where there are checkpoints and none is whole, naming each.
    """
    found, problems = _checkpoints(folder), []
    for step in sorted(found, reverse=True):
        try:
            check_whole_checkpoint(found[step])
        except CheckpointError as error:
            logger.warning("%s", error)
            problems.append(str(error))
        else:
            return found[step]
    if problems:
        raise CheckpointError(f"{folder} holds no whole checkpoint: " + "; ".join(problems))
    return None


def load_checkpoint(path: Path) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """The tensors by group and name, on the CPU, and the state of a checkpoint.

    Args:
        path: a checkpoint's folder, as `newest_checkpoint` gives it.

    Raises:
        CheckpointError: for a folder that is missing, no checkpoint, damaged, or of a later
            version. Checkpoints of versions without checksums are held to their sizes alone.
    """
    record = _check(path)
    if record["format"] == SHARDED_FORMAT:
        return whole_tensors(path), record["state"]
    groups = {}
    for name in record["groups"]:
        file = _group_file(path, name)
        try:
            groups[name] = load_file(file)
        except Exception as error:  # what safetensors and torch raise for damage is of many types
            raise CheckpointError(f"{file} can't be read: {error}; {_REMEDY}") from error
    return groups, record["state"]


def check_whole_checkpoint(path: Path) -> None:
    """Raise CheckpointError for what `load_checkpoint` would; the tensors of several ranks, which
    one may not have memory for, are held to their checksums."""
    if is_sharded(path):
        described_shards(path)
    else:
        load_checkpoint(path)


def is_sharded(path: Path) -> bool:
    """Whether several ranks wrote a checkpoint together.

    Raises:
        CheckpointError: for a folder that is no sound checkpoint.
    """
    return _check(path)["format"] == SHARDED_FORMAT


def read_state(path: Path) -> dict[str, Any]:
    """The state of a checkpoint, as `load_checkpoint`."""
    return _check(path)["state"]


def _name(step: int) -> str:
    return f"step-{step:08d}"


def _write(folder: Path, groups: TensorGroups) -> dict[str, int]:
    """Write a file for each group; their sizes in bytes."""
    sizes = {}
    for name, tensors in groups.items():
        if not _GROUP.fullmatch(name):
            raise ValueError(f"groups holds {name!r}; letters, digits, _ and - are allowed")
        file = _group_file(folder, name)
        plain = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
        save_file(plain, file)
        sizes[name] = file.stat().st_size
    return sizes


def _check(path: Path) -> dict[str, Any]:
    """The checked content of state.json; files must be what they were."""
    file = path / STATE_FILE
    if not file.is_file():
        problem = f"{path} is no checkpoint: {file.name} is missing"
        raise CheckpointError(f"{problem}; give a folder named step-…")
    check_manifest(path, remedy=_REMEDY, error=CheckpointError)
    record = read_json(file, remedy=_REMEDY, error=CheckpointError)
    if record.get("format") not in (FORMAT, SHARDED_FORMAT):
        allowed = f"{FORMAT} and {SHARDED_FORMAT} are allowed"
        problem = f"{path} has format {record.get('format')!r}; {allowed}"
        raise CheckpointError(f"{problem}: read it with the version that wrote it")
    groups = record.get("groups")
    if not isinstance(groups, dict) or not isinstance(record.get("state"), dict):
        raise CheckpointError(f"{file} lacks its groups or state; {_REMEDY}")
    if outside := [name for name in groups if not _GROUP.fullmatch(name)]:
        raise CheckpointError(f"{file} names groups {outside[:3]} outside its folder; {_REMEDY}")
    if record["format"] == SHARDED_FORMAT and not any(path.glob("shard-*.safetensors")):
        raise CheckpointError(f"{path} has format 2 and no shards of ranks; {_REMEDY}")
    for name, size in groups.items():
        part = _group_file(path, name)
        found = part.stat().st_size if part.is_file() else None
        if found != size:
            what = "is missing" if found is None else f"has {found} bytes"
            raise CheckpointError(f"{part} {what} and {size} bytes were written; {_REMEDY}")
    return record


def _group_file(folder: Path, name: str) -> Path:
    return folder / f"{name}.safetensors"


def _checkpoints(folder: Path) -> dict[int, Path]:
    """Every checkpoint folder by its step, whole or not."""
    if not folder.is_dir():
        return {}
    named = ((_NAME.fullmatch(path.name), path) for path in folder.iterdir() if path.is_dir())
    return {int(match[1]): path for match, path in named if match}


def _refuse_later(folder: Path, step: int) -> None:
    """Raise CheckpointError where a later checkpoint is whole: a run goes on from the newest."""
    found = _checkpoints(folder)
    for later in (other for other in found if other > step):
        try:
            check_whole_checkpoint(found[later])
        except CheckpointError:
            continue
        raise CheckpointError(
            f"{found[later]} is later than step {step} of this run, so another run writes to "
            f"{folder}; stop one of them, or choose another output folder"
        )


def _remove_others(folder: Path, step: int, keep: int) -> None:
    found = _checkpoints(folder)
    older = sorted(other for other in found if other <= step)[:-keep]
    for other in [*older, *(later for later in found if later > step)]:
        try:
            remove_folder(found[other], kind=KIND, known=KNOWN, error=CheckpointError)
        except CheckpointError as error:
            logger.warning("%s", error)
