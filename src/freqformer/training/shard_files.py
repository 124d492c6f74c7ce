"""Files of tensors that lie on several ranks: torch's DCP, in safetensors.

Each rank writes what it holds to `shard-….safetensors`, where tensors are called `<group>/<name>`.
Any number of ranks reads them again, one included.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

from freqformer.training.report import CheckpointError, TensorGroups

SEPARATOR = "/"


def write_shards(folder: Path, groups: TensorGroups) -> None:
    """Write tensors by group and name, by all ranks together; of a DTensor each writes its part.

    Raises:
        CheckpointError: on every rank, where one can't write.
    """
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
    from torch.distributed.checkpoint.state_dict_saver import save

    with _told(folder):
        writer = HuggingFaceStorageWriter(path=str(folder), save_distributed=True)
        save(_named(groups), storage_writer=writer)


def described_shards(folder: Path) -> dict[str, dict[str, Tensor]]:
    """What is there, as tensors without data by group and name."""
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata

    groups: dict[str, dict[str, Tensor]] = {}
    with _told(folder):
        found = HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
    for key, entry in found.items():
        assert isinstance(entry, TensorStorageMetadata)
        group, _, name = key.partition(SEPARATOR)
        made = torch.empty(entry.size, dtype=entry.properties.dtype, device="meta")
        groups.setdefault(group, {})[name] = made
    return groups


def read_shards(folder: Path, groups: TensorGroups, *, alone: bool = False) -> None:
    """Read into tensors of these names and shapes, in place: the parts that this rank holds of
    DTensors, and all of others.

    Args:
        folder: with shards.
        groups: by group and name.
        alone: whether this process reads though it is one of several.

    Raises:
        CheckpointError: for files that are damaged, or lack one of the tensors.
    """
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
    from torch.distributed.checkpoint.state_dict_loader import load

    several = dist.is_available() and dist.is_initialized() and not alone
    with _told(folder), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")
        reader = HuggingFaceStorageReader(str(folder))
        load(_named(groups), storage_reader=reader, no_dist=not several)


def whole_tensors(folder: Path) -> dict[str, dict[str, Tensor]]:
    """All tensors by group and name, on the CPU of this process."""
    groups = {
        group: {name: torch.empty_like(x, device="cpu") for name, x in tensors.items()}
        for group, tensors in described_shards(folder).items()
    }
    read_shards(folder, groups, alone=True)
    return groups


def _named(groups: TensorGroups) -> dict[str, Any]:
    return {
        f"{group}{SEPARATOR}{name}": tensor.detach()
        for group, tensors in groups.items()
        for name, tensor in tensors.items()
    }


@contextmanager
def _told(folder: Path) -> Iterator[None]:
    """Errors of DCP, which are of many types, as ours."""
    from torch.distributed.checkpoint.api import CheckpointException

    try:
        yield
    except (CheckpointException, Exception) as error:
        # The rest are tracebacks of all ranks.
        reason = str(error).strip().rpartition("\n")[2]
        raise CheckpointError(
            f"{folder} can't be read or written by all ranks: {reason}; it must be a folder that "
            "all of them see, with room"
        ) from error
