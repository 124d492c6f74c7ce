"""A run's log in wandb or trackio, beside TensorBoard's."""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from torch import Tensor

from freqformer.training.config import TrainConfig

PROJECT = "freqformer"


def check_tracker(name: str | None) -> None:
    """Raise ValueError for a tracker that isn't installed, before anything is made."""
    if name is not None and find_spec(name) is None:
        raise ValueError(
            f"run.tracker is {name!r}, which is not installed; pip install {name}, or leave it out:"
            " TensorBoard's log is written anyway"
        )


class Tracker:
    """One run of wandb or trackio, whose calls are alike. A resumed run goes on in it.

    Args:
        config: of the run; `run.tracker` names the package.
    """

    def __init__(self, config: TrainConfig) -> None:
        self._package: Any = importlib.import_module(str(config.run.tracker))
        folder = Path(config.output).resolve()
        options: dict[str, Any] = {"project": PROJECT, "config": config.to_record()}
        if config.run.tracker == "wandb":
            number = hashlib.blake2b(str(folder).encode(), digest_size=8).hexdigest()
            options |= {"id": number, "dir": str(folder)}
        self._package.init(**options, name=folder.name, resume="allow")

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Values of a step."""
        self._package.log(dict(values), step=step)

    def picture(self, name: str, picture: Tensor, step: int) -> None:
        """A picture, uint8 (H, W, 3)."""
        self._package.log({name: self._package.Image(picture.numpy())}, step=step)

    def finish(self) -> None:
        """End it, with all written."""
        self._package.finish()
