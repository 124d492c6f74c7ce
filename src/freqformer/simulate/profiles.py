"""Profiles: the JSON files that describe hardware, models and calibrations, shipped with the package or given by a path."""

from __future__ import annotations

import difflib
import json
import math
from dataclasses import fields
from importlib import resources
from pathlib import Path
from typing import Any, Literal, TypeVar

ProfileKind = Literal["hardware", "models", "calibration"]
T = TypeVar("T")


class ProfileError(ValueError):
    """A profile that does not exist or cannot be used; names the profile, the field and the remedy."""


def known_profiles(kind: ProfileKind) -> list[str]:
    """Names of the profiles that ship with the package."""
    folder = resources.files("freqformer.simulate") / "data" / kind
    return sorted(entry.name.removesuffix(".json") for entry in folder.iterdir() if entry.name.endswith(".json"))


def read_profile(kind: ProfileKind, name: str | Path) -> tuple[str, dict[str, Any]]:
    """The short name and the fields of a profile.

    Args:
        kind: `hardware`, `models` or `calibration`.
        name: a shipped profile's name, or the path of a JSON file (a `Path`, or a string that ends in .json).

    Raises:
        ProfileError: for an unknown name, naming the known ones and the nearest; a missing file; a file that is no JSON
            object.
    """
    if isinstance(name, Path) or str(name).endswith(".json"):
        path = Path(name)
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ProfileError(f"profile {path} can't be read ({error}); give a readable JSON file") from error
        return path.stem, _parsed(text, str(path))
    names = known_profiles(kind)
    if name not in names:
        near = difflib.get_close_matches(str(name).lower(), names, n=1, cutoff=0.4)
        hint = f"; the nearest is {near[0]!r}" if near else ""
        raise ProfileError(
            f"{kind} profile {str(name)!r} is unknown{hint}; known are {', '.join(names)}: choose one, or give the path of "
            "a .json file"
        )
    text = (resources.files("freqformer.simulate") / "data" / kind / f"{name}.json").read_text(encoding="utf-8")
    return str(name), _parsed(text, f"{kind}/{name}")


def _parsed(text: str, where: str) -> dict[str, Any]:
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        raise ProfileError(f"profile {where} is no JSON ({error}); correct the file") from error
    if not isinstance(values, dict):
        raise ProfileError(f"profile {where} holds a {type(values).__name__}; a JSON object with named fields is allowed")
    return values


def record(cls: type[T], values: dict[str, Any], where: str, **given: Any) -> T:
    """A dataclass from a profile's fields.

    Args:
        cls: the dataclass.
        values: the profile's fields.
        where: the profile's name, for errors.
        given: fields that do not come from the profile.

    Raises:
        ProfileError: for a missing or unknown field, naming it.
    """
    names = {field.name for field in fields(cls)} - set(given)  # type: ignore[arg-type]
    missing, unknown = sorted(names - set(values)), sorted(set(values) - names)
    if missing:
        raise ProfileError(
            f"profile {where} lacks the field {missing[0]!r}; its fields are {', '.join(sorted(names))}: add it"
        )
    if unknown:
        raise ProfileError(f"profile {where} has the unknown field {unknown[0]!r}; allowed are {', '.join(sorted(names))}")
    try:
        return cls(**values, **given)
    except ProfileError as error:
        raise ProfileError(f"profile {where}: {error}") from error


def check_number(name: str, value: Any, low: float, high: float) -> None:
    """Raise ProfileError unless `value` is a number from `low` to `high`; NaN is refused."""
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not number or not low <= value <= high:
        raise ProfileError(f"{name} is {value!r}; numbers from {low:g} to {high:g} are allowed")


def check_whole(name: str, value: Any, low: int, high: int) -> None:
    """Raise ProfileError unless `value` is a whole number from `low` to `high`."""
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise ProfileError(f"{name} is {value!r}; whole numbers from {low} to {high} are allowed")
