"""Checkpoint folders that are whole or absent: safetensors and JSON, written beside their place, synced, then renamed.

A checkpoint is `step-00000500/` with one `<group>.safetensors` per group of tensors and `state.json`, which names the
groups with their sizes in bytes. What is being written or removed carries a name that starts with `.tmp-`.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

logger = logging.getLogger(__name__)

FORMAT = 1
"""Version of the layout of a checkpoint folder."""
STATE_FILE = "state.json"

_NAME = re.compile(r"step-(\d{8,})")
_TEMPORARY = ".tmp-"

TensorGroups = Mapping[str, Mapping[str, Tensor]]


class CheckpointError(ValueError):
    """A checkpoint can't be written, read or used; the message names the path and the remedy."""


def save_checkpoint(folder: Path, step: int, groups: TensorGroups, state: Mapping[str, Any], *, keep: int = 2) -> Path:
    """Write a checkpoint; a kill or a full disk at any moment leaves the earlier ones as they were.

    Args:
        folder: of all checkpoints of the run; made if need be.
        step: steps done.
        groups: tensors by group and name, any dtype and device.
        state: JSON-able values.
        keep: newest checkpoints that stay. Older ones, and later ones of a run that went on from here, are removed once
            this one is safe.

    Returns: the checkpoint's folder.

    Raises:
        CheckpointError: where it can't be written, a full disk included.
    """
    target = folder / f"step-{step:08d}"
    with writing_folder(target) as temporary:
        _write(temporary, groups, {"format": FORMAT, "step": step, "state": dict(state)})
    _remove_others(folder, step, keep)
    return target


@contextmanager
def writing_folder(target: Path) -> Iterator[Path]:
    """A temporary folder to fill, which becomes `target` once it is synced to disk; removed where the block fails.

    Args:
        target: at every moment absent, the whole old folder, or the whole new one; its parent is made if need be.

    Raises:
        CheckpointError: where it can't be written, a full disk included.
    """
    temporary, old = (target.with_name(f"{_TEMPORARY}{kind}-{target.name}") for kind in ("new", "old"))
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        for leftover in target.parent.glob(f"{_TEMPORARY}*"):
            shutil.rmtree(leftover)
        temporary.mkdir()
        yield temporary
        _sync_tree(temporary)
        if target.exists():
            # A folder that holds files can't be renamed over.
            target.rename(old)
        temporary.rename(target)
        _sync(target.parent)
        shutil.rmtree(old, ignore_errors=True)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{target} can't be written: {error}; free space or choose another output folder. What {target.parent} held "
            "before is still there, and a run goes on from its newest checkpoint"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint in a folder; None where there is none at all.

    A damaged checkpoint is named in the log and the one before it is taken.

    Raises:
        CheckpointError: where there are checkpoints and none is whole.
    """
    problems = []
    for step in sorted(_checkpoints(folder), reverse=True):
        path = _checkpoints(folder)[step]
        try:
            _check(path)
        except CheckpointError as error:
            logger.warning("%s", error)
            problems.append(str(error))
        else:
            return path
    if problems:
        raise CheckpointError(f"{folder} holds no whole checkpoint: " + "; ".join(problems))
    return None


def load_checkpoint(path: Path) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """The tensors by group and name, on the CPU, and the state of a checkpoint.

    Args:
        path: a checkpoint's folder, as `newest_checkpoint` gives it.

    Raises:
        CheckpointError: for a folder that is missing, no checkpoint, damaged, or of a later version.
    """
    record = _check(path)
    groups = {}
    for name in record["groups"]:
        try:
            groups[name] = load_file(_group_file(path, name))
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{_group_file(path, name)} can't be read: {error}; {_REMEDY}") from error
    return groups, record["state"]


_REMEDY = "remove this checkpoint to go on from the one before it"


def _write(folder: Path, groups: TensorGroups, record: dict[str, Any]) -> None:
    sizes = {}
    for name, tensors in groups.items():
        file = _group_file(folder, name)
        save_file({key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}, file)
        sizes[name] = file.stat().st_size
    text = json.dumps({**record, "groups": sizes}, indent=1, allow_nan=False)
    (folder / STATE_FILE).write_text(text, encoding="utf-8")


def _check(path: Path) -> dict[str, Any]:
    """The checked content of state.json; files must be there and as long as they were."""
    file = path / STATE_FILE
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} is no checkpoint: {file.name} is missing; give a folder named step-…") from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file} can't be read: {error}; {_REMEDY}") from error
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        made = record.get("format") if isinstance(record, dict) else record
        raise CheckpointError(f"{path} has format {made!r}; {FORMAT} is allowed: read it with the version that wrote it")
    if not isinstance(record.get("groups"), dict) or not isinstance(record.get("state"), dict):
        raise CheckpointError(f"{file} lacks its groups or state; {_REMEDY}")
    for name, size in record["groups"].items():
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


def _remove_others(folder: Path, step: int, keep: int) -> None:
    found = _checkpoints(folder)
    for other in [*sorted(s for s in found if s <= step)[:-keep], *(s for s in found if s > step)]:
        # Renamed first, so that a kill leaves no half of a checkpoint under its name.
        doomed = found[other].with_name(f"{_TEMPORARY}old-{found[other].name}")
        try:
            found[other].rename(doomed)
            shutil.rmtree(doomed)
        except OSError as error:
            logger.warning("%s can't be removed: %s", found[other], error)


def _sync_tree(folder: Path) -> None:
    for directory, _, names in os.walk(folder):
        for name in names:
            _sync(Path(directory, name))
        _sync(Path(directory))


def _sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
