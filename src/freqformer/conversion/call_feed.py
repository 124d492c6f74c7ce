"""What a conversion asks both models: recorded calls."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from freqformer.conversion.calls import CallFolder
from freqformer.conversion.config import ConvertConfig
from freqformer.conversion.feeds import Question
from freqformer.training.seeding import derive_generator, derive_seed
from freqformer.training.sharding import StepShards


class CallFeed:
    """Questions that are recorded calls, each once an epoch, in random order. See `Feed`.

    Args:
        calls: of one folder.
        config: of the run.
        device: that computes.
        dtype: in which the transformer takes what is neither a timestep nor a number.
        shards: this process's calls of a step; None where it asks them all.
    """

    def __init__(
        self,
        calls: CallFolder,
        config: ConvertConfig,
        device: torch.device,
        dtype: torch.dtype,
        shards: StepShards | None = None,
    ) -> None:
        if not calls.calls:
            raise ValueError(f"{calls.folder} holds no calls; one at least is allowed: record some")
        self._calls, self._device, self._dtype = calls, device, dtype
        self._seed = config.run.seed
        self._shards = config.shards() if shards is None else shards
        self.questions_per_step = self._shards.clips_per_step
        self._order = lru_cache(maxsize=2)(self._permutation)

    def fingerprint(self) -> str:
        """See `Feed`."""
        parts = (f"{call.file} {call.crc32}" for call in self._calls.calls)
        return f"{derive_seed(self._seed, *parts):x}"

    def describe(self, step: int) -> str:
        """See `Feed`."""
        asked = [self._calls.calls[number] for number in self._numbers(step)]
        return f", of the calls {', '.join(f'{call.file} ({call.about})' for call in asked)}"

    @contextmanager
    def open(self, step: int) -> Iterator[Callable[[int], list[Question]]]:
        """See `Feed`."""
        yield lambda step: [self._question(number) for number in self._numbers(step)]

    def _numbers(self, step: int) -> list[int]:
        """This process's calls of a step."""
        found = []
        for index in islice(self._shards.indices(step), self._shards.accumulation):
            epoch, place = divmod(index, len(self._calls.calls))
            found.append(int(self._order(epoch)[place]))
        return found

    def _question(self, number: int) -> Question:
        given = {name: self._placed(name, x) for name, x in self._calls.load(number).items()}

        def ask(model: Any) -> Tensor:
            return model(**given, return_dict=False)[0]

        return Question(ask, None)

    def _placed(self, name: str, x: Any) -> Any:
        if not isinstance(x, Tensor):
            return x
        exact = name in ("timestep", "position_ids") or not x.is_floating_point()
        return x.to(self._device) if exact else x.to(self._device, self._dtype)

    def _permutation(self, epoch: int) -> Tensor:
        generator = derive_generator(self._seed, "calls", epoch)
        return torch.randperm(len(self._calls.calls), generator=generator)
