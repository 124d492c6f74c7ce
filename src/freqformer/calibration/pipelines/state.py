"""What a calibration of a pipeline has measured so far, and the folder that keeps it."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from freqformer.calibration.pipelines.energies import Energies
from freqformer.calibration.pipelines.steps import TINY, Step
from freqformer.config import FreqFormerConfig
from freqformer.grid import Grid
from freqformer.routing import RoutingTable
from freqformer.training.checkpoint import load_checkpoint, newest_checkpoint, save_checkpoint

FARTHEST = 1e300
"""Squared error of latents that aren't finite."""
SECONDS = 10.0
"""Between two writings. Some disks take a second for one, which is more than a small model's
run."""


@dataclass(frozen=True, eq=False)
class TriedTable:
    """A table by step, and how near the videos are that it made so far."""

    name: str
    table: RoutingTable
    errors: list[float] = field(default_factory=list)
    """Squared error of the final latents, by prompt."""


class State:
    """Energies by part, final latents by prompt, and errors of the final latents by step, and by
    table that was tried.

    Args:
        energies: by part, empty; they grow.
        made_with: what all of it depends on, JSON-able.
        folder: that keeps it; None for none.

    Raises:
        ValueError: for a folder with a state that was made with something else.
    """

    def __init__(
        self, energies: dict[str, Energies], made_with: dict[str, Any], folder: Path | None
    ) -> None:
        self.energies = energies
        self.folder = folder
        self.latents: list[Tensor] = []
        """Of the dense model, by prompt."""
        self.final: dict[tuple[Step, int], float] = {}
        """Squared error of the final latents when a step was banded, by prompt."""
        self.tried: dict[str, TriedTable] = {}
        """By what the tables do, in the order in which they were tried."""
        self._made_with = json.loads(json.dumps(made_with))
        self._written = -math.inf
        self._unwritten = False
        if folder is not None:
            self._resume(folder)

    def note(self) -> None:
        """A run is done: write it, unless others were written a moment ago."""
        self._unwritten = True
        if time.monotonic() - self._written >= SECONDS:
            self.keep()

    def keep(self) -> None:
        """Write what is done, whole or not at all, where something was since the last time."""
        if self.folder is None or not self._unwritten:
            return
        groups = {"latents": {str(place): one for place, one in enumerate(self.latents)}}
        sizes = {}
        for part, sums in self.energies.items():
            groups[f"energies-{part or 'model'}"] = {
                repr(level): energy for level, energy in sums.by_level.items()
            }
            if sums.grid is not None:
                sizes[part] = [*sums.grid.shape, sums.exact]
        if self.tried:
            groups["tried"] = {
                f"{key}-{name}": tensor
                for key, one in self.tried.items()
                for name, tensor in (("bands", one.table.bands), ("counts", one.table.mid_tiles))
            }
        state = {
            "made_with": self._made_with,
            "sizes": sizes,
            "final": [
                [step.part, step.level, step.length, prompt, error]
                for (step, prompt), error in self.final.items()
            ],
            "tried": [
                [key, one.name, one.table.config.to_dict(), one.errors]
                for key, one in self.tried.items()
            ],
        }
        done = len(self.latents) + len(self.final)
        done += sum(len(one.errors) for one in self.tried.values())
        save_checkpoint(self.folder, done, groups, state)
        self._written = time.monotonic()
        self._unwritten = False

    def _resume(self, folder: Path) -> None:
        newest = newest_checkpoint(folder)
        if newest is None:
            return
        groups, state = load_checkpoint(newest)
        if not {"made_with", "sizes", "final"} <= state.keys() or "latents" not in groups:
            raise ValueError(
                f"{newest} holds no state of a pipeline's calibration; give another folder, or "
                "remove it"
            )
        differs = [
            name for name, value in self._made_with.items() if state["made_with"].get(name) != value
        ]
        if differs:
            raise ValueError(
                f"state in {folder} was made with another {' and '.join(differs)}; call with what "
                "it began with, or give another folder"
            )
        self.latents = [groups["latents"][str(place)] for place in range(len(groups["latents"]))]
        for part, sums in self.energies.items():
            if part not in state["sizes"]:
                continue
            *sides, exact = state["sizes"][part]
            sums.of(Grid(*sides), exact)
            kept = groups[f"energies-{part or 'model'}"]
            sums.by_level = {float(level): energy for level, energy in kept.items()}
        for part, level, length, prompt, error in state["final"]:
            self.final[Step(part, level, length), prompt] = error
        for key, name, config, errors in state["tried"]:
            bands, counts = (groups["tried"][f"{key}-{kind}"] for kind in ("bands", "counts"))
            table = RoutingTable(bands, counts, FreqFormerConfig.from_dict(config))
            self.tried[key] = TriedTable(name, table, errors)


def squared_error(found: Tensor, reference: Tensor) -> float:
    """Sum of squared differences of two tensors."""
    return float((found.double() - reference.double()).square().sum())


def told_error(found: Tensor, reference: Tensor) -> float:
    """`squared_error`, a number where it isn't finite too."""
    error = squared_error(found, reference)
    return error if math.isfinite(error) else FARTHEST


def nearness_of(errors: Sequence[float], references: Sequence[Tensor]) -> float:
    """How near final latents are, in dB: the mean over prompts of the logarithm of the reference's
    energy over that of the difference; -inf where one isn't finite.

    Args:
        errors: squared, of `told_error`.
        references: dense attention's latents.
    """
    if max(errors) >= FARTHEST:
        return -math.inf
    decibels = []
    for error, reference in zip(errors, references, strict=True):
        energy = max(float(reference.double().square().sum()), TINY)
        decibels.append(-10 * math.log10(max(error / energy, TINY)))
    return sum(decibels) / len(decibels)


def copied(sums: Energies) -> dict[float, Tensor]:
    """The sums as they are now, to go back to where a run fails."""
    return {level: torch.clone(energy) for level, energy in sums.by_level.items()}
