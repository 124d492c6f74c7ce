"""Which clips of a step are this process's, in which forward pass."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count

from torch import Tensor


@dataclass(frozen=True)
class StepShards:
    """A step's clips, cut into one slice per forward pass and process."""

    batch_size: int
    """Clips of one forward pass."""
    accumulation: int
    """Forward passes of one process in a step."""
    processes: int
    process: int
    """Number of this one, from 0."""

    @property
    def clips_per_step(self) -> int:
        """Clips of a step, those of all processes."""
        return self.batch_size * self.accumulation * self.processes

    def indices(self, step: int) -> Iterator[int]:
        """The numbers of this process's clips from a step on, without end."""
        for each in count(step):
            first = each * self.clips_per_step
            for place in self._places():
                yield from range(first + place, first + place + self.batch_size)

    def slices(self, values: Tensor) -> list[Tensor]:
        """The slice (batch_size,) of each of this process's forward passes.

        Args:
            values: of all clips of a step, (clips_per_step,).
        """
        return [values[place : place + self.batch_size] for place in self._places()]

    def _places(self) -> range:
        """Where this process's forward passes begin among the clips of a step."""
        stride = self.batch_size * self.processes
        return range(self.batch_size * self.process, self.clips_per_step, stride)
