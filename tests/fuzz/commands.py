"""Fuzzed command lines: what is typed wrongly ends in one line and status 2, never in a
traceback."""

from __future__ import annotations

import functools
import inspect
import math
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

from tests.fuzz.folders import made_run
from tests.fuzz.records import SETTINGS, text
from tests.support.command_line import invoke
from tests.support.videos import encode, gradient
from typer.main import get_command

from freqformer import FreqFormerPipeline
from freqformer.cli import app
from freqformer.cli.console import USER_ERROR
from freqformer.training.config import TrainConfig

LONG = {
    "freqformer.training.loop.train": lambda *_, **__: "none",
    "freqformer.calibration.command.calibrate_on_clips": None,
    "freqformer.demo.run.run_demo": None,
    "freqformer.simulate.model.processor.cpu_profile_text": lambda: "{}",
}
"""What takes minutes by design: never reached in full; None stands for a refusal."""
MOST_WORK = 10**4
"""Pixels times steps that `sample` generates; more is its user's wish."""
EMPTY = "nothing.mp4"


class Commands:
    """Arguments of `freqformer`, run in this process in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "typed"
        self.run = made_run(folder)
        encode(folder / "clip.mp4", gradient(6, 32, 48))
        (folder / EMPTY).touch()
        self.inputs = [
            "../run",
            "../run/pipeline",
            "../run/train.json",
            "../clip.mp4",
            f"../{EMPTY}",
            "..",
            "shipped",
        ]
        self.options = {
            name: [
                option
                for parameter in command.params
                for option in parameter.opts
                if option.startswith("-")
            ]
            for name, command in get_command(app).commands.items()  # type: ignore[attr-defined]
        }
        self.train_fields = [
            f"{section}.{name}"
            for section, fields in TrainConfig("out").to_dict().items()
            if isinstance(fields, dict)
            for name in fields
        ]

    def make(self, draw: random.Random) -> list[str]:
        name = draw.choice(list(self.options))
        arguments = (
            []
            if draw.random() < 0.9
            else [draw.choice(("--verbose", "--version", "--fly", "-h", ""))]
        )
        arguments.append(name if draw.random() < 0.98 else text(draw))
        for _ in range(draw.choice((0, 1, 1, 1, 2))):
            arguments.append(draw.choice(self.inputs) if draw.random() < 0.9 else text(draw))
        if "--output" in self.options[name] and draw.random() < 0.8:
            arguments += [
                "--output",
                draw.choice(("new", "new.mp4", "new.json", "../clip.mp4", "../run", "no/way/new")),
            ]
        for _ in range(draw.choice((0, 1, 1, 2, 3))):
            arguments += self._option(name, draw)
        # The system's arguments end at a NUL, and a user's paths are a user's: nothing is written
        # beyond the folder.
        return [argument.replace("\0", "0") for argument in arguments]

    def _option(self, name: str, draw: random.Random) -> list[str]:
        option = draw.choice(self.options[name])
        if option == "--set":
            fields = self.train_fields if name == "train" else SETTINGS
            return [option, f"{draw.choice((*fields, 'x', 'run', 'output'))}={text(draw)}"]
        if draw.random() < 0.1:
            return [option]
        if draw.random() < 0.4:
            return [
                option,
                draw.choice(("0", "1", "2", "-1", "1e9", "nan", "inf", str(2**63), "9" * 5000)),
            ]
        return [option, draw.choice(self.inputs) if draw.random() < 0.4 else text(draw)]

    def feed(self, given: list[str]) -> None:
        self.folder.mkdir(exist_ok=True)
        os.chdir(self.folder)
        with mock.patch.multiple(
            FreqFormerPipeline, __call__=_bounded(FreqFormerPipeline.__call__)
        ):
            patches = [mock.patch(place, stand_in or _refuse) for place, stand_in in LONG.items()]
            for patch in patches:
                patch.start()
            try:
                result = invoke(*given)
            finally:
                for patch in patches:
                    patch.stop()
        if result.exit_code not in (0, USER_ERROR) or "Traceback" in result.output:
            raise AssertionError(
                f"status {result.exit_code}: {result.output}"
            ) from result.exception
        if result.exit_code:
            raise ValueError(result.output)


def _refuse(*_: Any, **__: Any) -> None:
    raise ValueError("it takes minutes; the fuzzer ends here")


def _bounded(call: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(call)
    def generate(self: Any, *given: Any, **options: Any) -> Any:
        asked = inspect.signature(call).bind(self, *given, **options).arguments
        factors = ("num_frames", "height", "width", "num_inference_steps", "batch_size")
        if math.prod(asked.get(name, 1) for name in factors) > MOST_WORK:
            _refuse()
        return call(self, *given, **options)

    return generate
