"""Profiles: the JSON files that describe hardware, models and efficiencies, shipped with the
package or given by a path."""

from __future__ import annotations

import difflib
import json
from dataclasses import MISSING, fields
from importlib import resources
from pathlib import Path
from typing import Any, Literal, TypeVar

from freqformer._files import read_json

ProfileKind = Literal["hardware", "models", "efficiency"]
T = TypeVar("T")


class ProfileError(ValueError):
    """A profile that does not exist or cannot be used; names the profile, the field and the
    remedy."""


def known_profiles(kind: ProfileKind) -> list[str]:
    """Names of the profiles that ship with the package."""
    folder = resources.files("freqformer.simulate") / "data" / kind
    return sorted(
        entry.name.removesuffix(".json")
        for entry in folder.iterdir()
        if entry.name.endswith(".json")
    )


def read_profile(kind: ProfileKind, name: str | Path) -> tuple[str, dict[str, Any]]:
    """The short name and the fields of a profile.

    Args:
        kind: `hardware`, `models` or `efficiency`.
        name: a shipped profile's name, or the path of a JSON file (a `Path`, or a string that ends
            in .json).

    Raises:
        ProfileError: for an unknown name, naming the known ones and the nearest; a missing file; a
            file that is no JSON object.
    """
    if isinstance(name, Path) or str(name).endswith(".json"):
        path = Path(name)
        return path.stem, read_json(
            path, remedy="give a readable JSON file with named fields", error=ProfileError
        )
    names = known_profiles(kind)
    if name not in names:
        near = difflib.get_close_matches(str(name).lower(), names, n=1, cutoff=0.4)
        hint = f"; the nearest is {near[0]!r}" if near else ""
        raise ProfileError(
            f"{kind} profile {str(name)!r} is unknown{hint}; known are {', '.join(names)}: choose "
            "one, or give the path of "
            "a .json file"
        )
    text = (resources.files("freqformer.simulate") / "data" / kind / f"{name}.json").read_text(
        encoding="utf-8"
    )
    return str(name), json.loads(text)


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
    own = [field for field in fields(cls) if field.name not in given]  # type: ignore[arg-type]
    names = {field.name for field in own}
    needed = {field.name for field in own if field.default is MISSING}
    missing, unknown = sorted(needed - set(values)), sorted(set(values) - names)
    if missing:
        raise ProfileError(
            f"profile {where} lacks the field {missing[0]!r}; its fields are "
            f"{', '.join(sorted(names))}: add it"
        )
    if unknown:
        raise ProfileError(
            f"profile {where} has the unknown field {unknown[0]!r}; allowed are "
            f"{', '.join(sorted(names))}"
        )
    _check_texts(cls, values, where)
    try:
        return cls(**values, **given)
    except ProfileError as error:
        raise ProfileError(f"profile {where}: {error}") from error


def _check_texts(cls: type, values: dict[str, Any], where: str) -> None:
    """Raise ProfileError unless fields that are declared as texts, or objects of texts, are."""
    for field in fields(cls):
        value = values.get(field.name)
        if field.name not in values:
            continue
        if field.type == "str" and not isinstance(value, str):
            raise ProfileError(
                f"profile {where}: {field.name} is {shown(value)}; a text is allowed"
            )
        if field.type == "dict[str, str]":
            texts = isinstance(value, dict) and all(
                isinstance(text, str) for text in value.values()
            )
            if not texts:
                raise ProfileError(
                    f"profile {where}: {field.name} is {shown(value)}; an object of texts is "
                    "allowed"
                )


def check_number(name: str, value: Any, low: float, high: float) -> None:
    """Raise ProfileError unless `value` is a number from `low` to `high`; NaN is refused."""
    # The comparison is False for NaN, and holds between integers of any size and floats.
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not low <= value <= high:
        raise ProfileError(
            f"{name} is {shown(value)}; numbers from {low:g} to {high:g} are allowed"
        )


def check_whole(name: str, value: Any, low: int, high: int) -> None:
    """Raise ProfileError unless `value` is a whole number from `low` to `high`."""
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise ProfileError(
            f"{name} is {shown(value)}; whole numbers from {low} to {high} are allowed"
        )


def shown(value: Any) -> str:
    """A value as an error names it: cut where it is long, and an integer that Python won't print by
    its size."""
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > MOST_BITS:
        return f"{'-' if value < 0 else ''}an integer of {value.bit_length():,} bits"
    text = repr(value)
    return text if len(text) <= MOST_SHOWN else text[:MOST_SHOWN] + "…"


MOST_BITS = 256
MOST_SHOWN = 80
"""Characters of a wrong value that an error repeats."""
