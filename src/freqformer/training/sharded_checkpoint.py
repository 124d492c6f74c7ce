"""Checkpoints that all ranks write together, whole or absent as those of one process."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeVar

from torch import distributed as dist

from freqformer.training.checkpoint import SHARDED_FORMAT, filling_checkpoint, write_record
from freqformer.training.report import CheckpointError, TensorGroups
from freqformer.training.shard_files import write_shards

Value = TypeVar("Value")


def save_sharded(
    folder: Path, step: int, groups: TensorGroups, state: Mapping[str, Any], *, keep: int = 2
) -> None:
    """As `save_checkpoint`, by all ranks together into a folder that all of them see.

    Args:
        folder, step, keep: as there.
        groups: tensors by group and name; of a DTensor each rank writes its part.
        state: that of rank 0 counts.

    Raises:
        CheckpointError: on every rank, where one can't write.
    """
    with ExitStack() as stack:

        def begin() -> str:
            return str(stack.enter_context(filling_checkpoint(folder, step, keep)))

        def finish() -> None:
            write_record(place, SHARDED_FORMAT, step, state, {})
            stack.close()

        place = Path(told_by_main(begin))
        write_shards(place, groups)
        told_by_main(finish)


def told_by_main(action: Callable[[], Value]) -> Value:
    """What an action returns on rank 0, on every rank; CheckpointError on all of them where it
    raises one."""
    told: list[Any] = [None, None]
    if dist.get_rank() == 0:
        try:
            told[0] = action()
        except CheckpointError as error:
            told[1] = str(error)
    dist.broadcast_object_list(told, src=0)
    if told[1] is not None:
        raise CheckpointError(told[1])
    return told[0]
