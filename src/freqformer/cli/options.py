"""Options that several commands have."""

from __future__ import annotations

import re
from typing import Annotated, TypeVar

import typer

from freqformer._renamed import warn_renamed

LARGEST_SEED = 2**63 - 1
"""What every generator of random numbers takes."""

Model = Annotated[
    str,
    typer.Argument(
        help=(
            "Output folder of a training run, a saved pipeline, or 'shipped' for the one that "
            "comes along."
        )
    ),
]
Seed = Annotated[
    int,
    typer.Option(
        min=0, max=LARGEST_SEED, help="Of the weights, the clips, the noise and all else."
    ),
]
Device = Annotated[
    str | None,
    typer.Option(help="cpu, cuda or cuda:1; a GPU where there is one, if left out."),
]

Value = TypeVar("Value")

_UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0}
_DURATION = re.compile(r"(?P<number>\d{1,12}(?:\.\d{1,9})?)(?P<unit>[smh]?)")


def duration(option: str, text: str) -> float:
    """The seconds of a duration like 540, 540s, 9m or 1.5h.

    Raises:
        ValueError: for other text, naming the option.
    """
    found = _DURATION.fullmatch(text.strip())
    if found is None:
        raise ValueError(
            f"{option} is {text[:80]!r}; a number of seconds, minutes or hours is allowed, like "
            "540s, 9m or 1.5h"
        )
    return float(found["number"]) * _UNITS[found["unit"]]


def step_range(option: str, text: str) -> list[int]:
    """The first and last step of a range like 10-12, or of one step.

    Raises:
        ValueError: for other text, naming the option.
    """
    found = re.fullmatch(r"(\d{1,12})(?:-(\d{1,12}))?", text.strip())
    if found is None:
        raise ValueError(
            f"{option} is {text[:80]!r}; a first and a last step, counted from 1, is allowed, like"
            " 10-12"
        )
    return [int(found[1]), int(found[2] or found[1])]


def renamed_option(old: str, value: Value, new: str, given: Value | None) -> Value:
    """The value of an option by its old name, with a warning that names the new one.

    Raises:
        ValueError: where both are given.
    """
    if given is not None:
        raise ValueError(f"{old} and {new} are both given; one of them is allowed: leave {old} out")
    warn_renamed(old, f"{new} {value}")
    return value
