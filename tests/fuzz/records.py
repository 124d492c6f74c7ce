"""Fuzzed records: configurations, settings and profiles, as the JSON or text that a user gives."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.damaged_folders import VALUES, change_json

from freqformer import FreqFormerConfig
from freqformer.simulate import simulate
from freqformer.simulate.model.efficiency import load_efficiency
from freqformer.simulate.model.fit import fit_efficiency
from freqformer.simulate.model.hardware import load_hardware
from freqformer.simulate.model.measurements import read_peaks, read_results
from freqformer.simulate.model.presets import PRESETS
from freqformer.simulate.model.profiles import ProfileKind, known_profiles, read_profile
from freqformer.simulate.model.roofline import Machine
from freqformer.simulate.model.settings import CONFIG_SETTINGS, OTHER_SETTINGS, Request, scenarios
from freqformer.simulate.model.transformers import load_model
from freqformer.training.config import TrainConfig

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
RESULT_FILES = ("backward.json", "eager_cpu.json", "kernel.json", "layer.json")
FITTED = ("eager_cpu.json", "kernel.json")
"""Those that a fit takes a blink for, where the others take seconds."""
LOADERS: dict[ProfileKind, Callable[[Path], Any]] = {
    "hardware": load_hardware,
    "models": load_model,
    "efficiency": load_efficiency,
}
SETTINGS = (*CONFIG_SETTINGS, *OTHER_SETTINGS)
WORDS = (
    *(
        "topk",
        "radial",
        "axial",
        "interpolate",
        "inverse_dct",
        "band_gains",
        "own_band",
        "fixed",
        "hard",
        "soft",
        "timestep",
    ),
    *(
        "1,2",
        "1,3,3",
        "0,0,0",
        "4,4,8",
        "1,1,1",
        "1000000000,1,1",
        "1e999",
        "NaN",
        "9" * 900,
        "[" * 900,
        "[1",
        "\udcff",
    ),
    *(
        "64K",
        "1M",
        "5s",
        "5s@720p",
        "60s@1080p/24",
        "-1s",
        "1e6",
        "0.5",
        "s@/",
        "5s@720p/0",
        "h100",
        "..",
        "own.json",
    ),
)
"""Texts that mean something somewhere, and some that nearly do."""


def text(draw: random.Random) -> str:
    """What someone may type as a value."""
    if draw.random() < 0.5:
        return draw.choice(WORDS)
    typed = json.dumps(draw.choice(VALUES))
    return typed.replace("/", "_")[:2000]


def changed(record: Any, draw: random.Random) -> Any:
    """The record with one to three things changed; now and then another value altogether."""
    if draw.random() < 0.03:
        return copy.deepcopy(draw.choice(VALUES))
    changed_record = copy.deepcopy(record)
    for _ in range(draw.choice((1, 1, 2, 3))):
        if isinstance(changed_record, dict) and draw.random() < 0.1:
            changed_record[draw.choice(("", "x", "tile ", "🙂"))] = copy.deepcopy(
                draw.choice(VALUES)
            )
        change_json(changed_record, draw)
    return changed_record


class Configs:
    """A configuration by `from_dict`: one that is taken comes back from JSON as it was."""

    def __init__(
        self, kind: type[FreqFormerConfig] | type[TrainConfig], whole: dict[str, Any]
    ) -> None:
        self.kind = kind
        self.whole = json.loads(json.dumps(whole))

    def make(self, draw: random.Random) -> Any:
        return changed(self.whole, draw)

    def feed(self, given: Any) -> None:
        made = self.kind.from_dict(given)
        assert self.kind.from_dict(json.loads(json.dumps(made.to_dict()))) == made


class Simulations:
    """Requests to the simulator: preset, lengths and settings, as typed; those that are taken are
    simulated."""

    def make(self, draw: random.Random) -> dict[str, Any]:
        request = {
            "model": "freqformer",
            "hardware": "h200",
            "lengths": "4096",
            "preset": draw.choice(list(PRESETS)),
        }
        if draw.random() < 0.3:
            request[draw.choice(list(request))] = text(draw)
        settings = [f"{draw.choice(SETTINGS)}={text(draw)}" for _ in range(draw.randrange(4))]
        return {**request, "settings": settings}

    def feed(self, given: dict[str, Any]) -> None:
        for case in scenarios(Request(**given)):
            simulate(case)


@dataclass(frozen=True)
class Profiles:
    """JSON files of machines, models and efficiencies."""

    folder: Path

    def make(self, draw: random.Random) -> dict[str, str]:
        kind = draw.choice(list(LOADERS))
        whole = read_profile(kind, draw.choice(known_profiles(kind)))[1]
        return {"kind": kind, "text": file_text(whole, draw)}

    def feed(self, given: dict[str, Any]) -> None:
        path = self.folder / "own.json"
        path.write_text(given["text"], encoding="utf-8")
        LOADERS[given["kind"]](path)


@dataclass(frozen=True)
class Results:
    """JSON files of benchmark results, which a machine's efficiency is fitted to."""

    folder: Path

    def make(self, draw: random.Random) -> dict[str, str]:
        name = draw.choice(RESULT_FILES)
        whole = json.loads((RESULTS / name).read_text(encoding="utf-8"))
        return {"name": name, "text": file_text(whole, draw)}

    def feed(self, given: dict[str, str]) -> None:
        path = self.folder / given["name"]
        path.write_text(given["text"], encoding="utf-8")
        machine = load_hardware("cpu" if "cpu" in given["name"] else "h200")
        measurements, peaks = read_results([path], machine), read_peaks([path])
        if given["name"] in FITTED:
            fit_efficiency(measurements, Machine(machine, load_efficiency(machine)), [], peaks)


def file_text(whole: Any, draw: random.Random) -> str:
    """The text of a JSON file with something changed, now and then in its syntax."""
    written = json.dumps(changed(whole, draw))
    if draw.random() < 0.1:
        place = draw.randrange(len(written) + 1)
        return (
            written[:place]
            + draw.choice(("", "{", "[" * 100_000, '"', "\0", "9" * 5000))
            + written[place + 1 :]
        )
    return written
