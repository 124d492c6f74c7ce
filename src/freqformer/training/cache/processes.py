"""Several processes that make one cache, as torchrun starts them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
from torch import distributed

from freqformer.training.cache.errors import CacheError
from freqformer.training.processes import NEEDED

Value = TypeVar("Value")

PATIENCE = timedelta(days=30)
"""A process that is done waits for the others, however long their shards take. torchrun ends all
where one dies."""


@dataclass(frozen=True)
class Team:
    """This process among those of a run."""

    rank: int = 0
    size: int = 1

    @property
    def is_first(self) -> bool:
        """Whether it is the one that plans and writes the index."""
        return self.rank == 0

    def own(self, items: Sequence[Value]) -> list[Value]:
        """This process's share."""
        return list(items[self.rank :: self.size])

    def from_first(self, make: Callable[[], Value]) -> Value:
        """What the first process makes, in all of them. Where that raises a ValueError, each one
        raises it."""
        made: list[Value | None] = [None]
        problem: list[str | None] = [None]
        if self.is_first:
            try:
                made = [make()]
            except ValueError as error:
                if self.size == 1:
                    raise
                problem = [str(error)]
        if self.size > 1:
            distributed.broadcast_object_list(problem)
            if problem[0] is not None:
                raise CacheError(problem[0])
            distributed.broadcast_object_list(made)
        return made[0]  # type: ignore[return-value]

    def any_of(self, asked: bool) -> bool:
        """Whether one of the processes says so."""
        if self.size == 1:
            return asked
        votes = torch.tensor(int(asked))
        distributed.all_reduce(votes)
        return bool(votes > 0)

    def device(self, named: str | None) -> torch.device:
        """The device of this process: the one named, else a GPU of its own, else the CPU."""
        if named is not None:
            return torch.device(named)
        if not torch.cuda.is_available():
            return torch.device("cpu")
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


@contextmanager
def team() -> Iterator[Team]:
    """The processes that a launcher started, connected; or this one only.

    Raises:
        CacheError: where a launcher that can't connect them started several.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    needed = NEEDED["WORLD_SIZE"]
    missing = [name for name in needed if name not in os.environ]
    if size == 1:
        yield Team()
        return
    if missing:
        raise CacheError(
            f"WORLD_SIZE is {size} and {', '.join(missing)} is not set: start the processes with"
            " torchrun, or unset WORLD_SIZE"
        )
    if distributed.is_initialized():
        yield Team(distributed.get_rank(), distributed.get_world_size())
        return
    distributed.init_process_group("gloo", timeout=PATIENCE)
    try:
        yield Team(distributed.get_rank(), distributed.get_world_size())
    finally:
        distributed.destroy_process_group()
