"""Fuzzed folders: routing tables, checkpoints, saved models and runs, damaged on disk."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from tests.support.damaged_folders import damage
from tests.support.tiny_training import tiny_config

from freqformer import FreqFormerConfig, FreqFormerPipeline
from freqformer._files import MANIFEST_NAME
from freqformer._files.checksums import SEAL
from freqformer.routing import RoutingTable
from freqformer.routing.table import RECORD_NAME, TENSORS_NAME
from freqformer.training import export
from freqformer.training.checkpoint import load_checkpoint, newest_checkpoint
from freqformer.training.loop import train

LARGEST_SEED = 2**53


class Folders:
    """A folder, damaged anew for every input.

    In half of the inputs checksums find nothing: checks of values must find it then.

    Args:
        folder: where copies are made.
        whole: the folder that is copied.
        load: what is done with a damaged copy.
        disarm: leaves no checksum in a copy that does not fit, or none at all.
    """

    def __init__(
        self,
        folder: Path,
        whole: Path,
        load: Callable[[Path], None],
        *,
        disarm: Callable[[Path], None],
    ) -> None:
        self.folder = folder
        self.whole = whole
        self.load = load
        self.disarm = disarm

    def make(self, draw: random.Random) -> dict[str, Any]:
        return {"seed": draw.randrange(LARGEST_SEED), "checksums": draw.random() < 0.5}

    def feed(self, given: dict[str, Any]) -> None:
        copy = self.folder / "damaged"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(self.whole, copy)
        if not given["checksums"]:
            self.disarm(copy)
        damage(copy, given["seed"])
        if not given["checksums"]:
            self.disarm(copy)
        self.load(copy)


def tables(folder: Path) -> Folders:
    """Routing tables, loaded."""
    bands = torch.randint(0, 4, (4, 2, 3), generator=torch.Generator().manual_seed(0))
    table = RoutingTable(
        bands, torch.full_like(bands, 5), FreqFormerConfig(tile=(2, 3, 4), mid_tiles=5)
    )
    table.save(folder / "table")

    def load(copy: Path) -> None:
        loaded = RoutingTable.load(copy)
        assert sum(loaded.shares.values()) > 0

    return Folders(folder, folder / "table", load, disarm=_renew_checksums)


def checkpoints(folder: Path) -> Folders:
    """Checkpoints of a run, the newest loaded."""
    run = made_run(folder)

    def load(copy: Path) -> None:
        newest = newest_checkpoint(copy)
        if newest is not None:
            load_checkpoint(newest)

    return Folders(folder, run / "checkpoints", load, disarm=_remove_manifests)


def pipelines(folder: Path) -> Folders:
    """Saved pipelines, loaded and run."""
    run = made_run(folder)

    def load(copy: Path) -> None:
        FreqFormerPipeline.from_pretrained(copy)(2, 8, 16, num_inference_steps=1)

    return Folders(folder, run / "pipeline", load, disarm=_remove_manifests)


def runs(folder: Path) -> Folders:
    """Output folders of finished runs, exported with fewer clips and steps."""
    run = made_run(folder)

    def load(copy: Path) -> None:
        shutil.rmtree(folder / "exported", ignore_errors=True)
        with mock.patch.multiple(
            export, SAMPLES=1, INFERENCE_STEPS=1, fresh_loss=partial(export.fresh_loss, clips=2)
        ):
            export.export_model(copy, folder / "exported")

    return Folders(folder, run, load, disarm=_remove_manifests)


def made_run(folder: Path) -> Path:
    """The output folder of a finished run of three steps, made where there is none."""
    run = folder / "run"
    if not run.is_dir():
        train(tiny_config(run))
    return run


def _remove_manifests(folder: Path) -> None:
    for manifest in folder.rglob(MANIFEST_NAME):
        manifest.unlink()


def _renew_checksums(folder: Path) -> None:
    """What an attacker would write, or an older version: no seal, and the checksum of the tensors
    that are there."""
    record, tensors = folder / RECORD_NAME, folder / TENSORS_NAME
    try:
        values = json.loads(record.read_bytes())
        values["sha256"] = hashlib.sha256(tensors.read_bytes()).hexdigest()
        values.pop(SEAL, None)
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        return  # no record to be renewed: so it stays
    record.write_text(json.dumps(values))
