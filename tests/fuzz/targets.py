"""What is fuzzed, by name."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

Input = Any
"""JSON-able, and all that an input is: a failing one is kept as it is."""


class Target(Protocol):
    """A piece of the package that takes what others made."""

    def make(self, draw: random.Random) -> Input:
        """A new input."""
        ...

    def feed(self, given: Input) -> None:
        """Give it to the package, which raises ValueError or OSError to refuse it, and nothing
        else."""
        ...


def _freqformer_config(folder: Path) -> Target:
    from tests.fuzz.records import Configs

    from freqformer import FreqFormerConfig

    return Configs(FreqFormerConfig, FreqFormerConfig(tile=(2, 3, 4)).to_dict())


def _train_config(folder: Path) -> Target:
    from tests.fuzz.records import Configs

    from freqformer.training.config import TrainConfig

    return Configs(
        TrainConfig, TrainConfig("out", model={"num_layers": 2, "patch_size": [1, 4, 4]}).to_dict()
    )


def _simulation(folder: Path) -> Target:
    from tests.fuzz.records import Simulations

    return Simulations()


def _profile(folder: Path) -> Target:
    from tests.fuzz.records import Profiles

    return Profiles(folder)


def _results(folder: Path) -> Target:
    from tests.fuzz.records import Results

    return Results(folder)


def _table(folder: Path) -> Target:
    from tests.fuzz.folders import tables

    return tables(folder)


def _checkpoint(folder: Path) -> Target:
    from tests.fuzz.folders import checkpoints

    return checkpoints(folder)


def _pipeline(folder: Path) -> Target:
    from tests.fuzz.folders import pipelines

    return pipelines(folder)


def _run(folder: Path) -> Target:
    from tests.fuzz.folders import runs

    return runs(folder)


def _media(folder: Path) -> Target:
    from tests.fuzz.media import Media

    return Media(folder)


def _command(folder: Path) -> Target:
    from tests.fuzz.commands import Commands

    return Commands(folder)


TARGETS: dict[str, Callable[[Path], Target]] = {
    "freqformer_config": _freqformer_config,
    "train_config": _train_config,
    "simulation": _simulation,
    "profile": _profile,
    "results": _results,
    "table": _table,
    "checkpoint": _checkpoint,
    "pipeline": _pipeline,
    "run": _run,
    "media": _media,
    "command": _command,
}
"""Each makes its target, with what it needs on disk, in an empty folder; imports are a target's
own."""


def generator(name: str, number: int) -> random.Random:
    """What draws the input of a number, the same everywhere."""
    return random.Random(f"{name} {number}")
