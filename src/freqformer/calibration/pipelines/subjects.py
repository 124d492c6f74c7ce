"""The transformers of a pipeline as calibration sees them: what is measured in them, and tables on
and off."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, Protocol

from torch import nn

from freqformer.calibration.pipelines.energies import Energies, MakeCandidates
from freqformer.calibration.pipelines.own import OwnSubject
from freqformer.calibration.pipelines.plugged import PluggedSubject
from freqformer.integrations.diffusers.families import transformers_of
from freqformer.models.transformer import FreqFormerTransformer3DModel
from freqformer.routing import RoutingTable
from freqformer.routing.origin import Origin, origin_of


class Subject(Protocol):
    """One transformer."""

    @property
    def layers(self) -> Sequence[nn.Module]:
        """Attention layers that a table speaks of, in order."""
        ...

    def check(self) -> None:
        """Raise ValueError for a model that isn't dense."""
        ...

    def energies(self, make: MakeCandidates) -> Energies:
        """Sums for its layers, empty yet."""
        ...

    def measuring(self, energies: Energies) -> AbstractContextManager[Any]:
        """Calls inside the block add to these sums; what the model gives stays as it is."""
        ...

    def banded(self, table: RoutingTable) -> AbstractContextManager[Any]:
        """Calls inside the block run by a table."""
        ...


def subjects_of(pipe: Any) -> dict[str, Subject]:
    """The transformers of a pipeline by their names in it.

    Args:
        pipe: of diffusers, modular ones included, or a `FreqFormerPipeline` whose model is dense.

    Raises:
        ValueError: for other models, and for one that has frequency attention.
    """
    own = getattr(pipe, "transformer", None)
    found: dict[str, Subject] = {}
    if isinstance(own, FreqFormerTransformer3DModel):
        found["transformer"] = OwnSubject(own)
    else:
        found.update({part: PluggedSubject(model) for part, model in transformers_of(pipe).items()})
    for subject in found.values():
        subject.check()
    return found


def origins_of(subjects: dict[str, Subject]) -> dict[str, Origin | None]:
    """What marks each transformer."""
    return {part: origin_of(subject.layers) for part, subject in subjects.items()}


@contextmanager
def measuring(subjects: dict[str, Subject], energies: dict[str, Energies]) -> Iterator[None]:
    """Measure in all transformers inside the block."""
    with ExitStack() as stack:
        for part, subject in subjects.items():
            stack.enter_context(subject.measuring(energies[part]))
        yield


@contextmanager
def banded(subjects: dict[str, Subject], tables: dict[str, RoutingTable]) -> Iterator[None]:
    """Run transformers by these tables inside the block; those without one stay dense."""
    with ExitStack() as stack:
        for part, table in tables.items():
            stack.enter_context(subjects[part].banded(table))
        yield
