"""Records from what JSON holds: sections as dicts, unknown and missing names refused."""

from __future__ import annotations

import math
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, get_type_hints

from freqformer._validate import shown

MOST_LEVELS = 16
"""Of lists and dicts in one another; no model needs more."""


def sections(kind: type) -> dict[str, type]:
    """The fields of a record that are records themselves, by name."""
    hints = get_type_hints(kind)
    return {name: inner for name, inner in hints.items() if is_dataclass(inner)}  # type: ignore[misc]


def build(kind: type, name: str, values: Any) -> Any:
    """The record with these fields; its own sections are built of dicts, too."""
    if isinstance(values, kind):
        return values
    known = [item.name for item in fields(kind)]
    if not isinstance(values, dict):
        raise ValueError(f"{name} is {shown(values)}; an object with fields of {known} is allowed")
    unknown = sorted(shown(field) for field in values if field not in known)
    if unknown:
        raise ValueError(
            f"{name} has unknown fields [{', '.join(unknown)}]; {known} are allowed: remove or "
            "rename the others"
        )
    needed = [item.name for item in fields(kind) if item.default is item.default_factory is MISSING]
    missing = [field for field in needed if field not in values]
    if missing:
        raise ValueError(f"{name} lacks {missing}; give {'them' if missing[1:] else 'it'}")
    inner = sections(kind)
    made = {
        field: build(inner[field], field, value) if field in inner else value
        for field, value in values.items()
    }
    return kind(**made)


def check_json(name: str, value: Any) -> None:
    """Raise ValueError for what JSON can't hold, NaN included, and for what no model needs."""
    level = [value]
    for _ in range(MOST_LEVELS):
        inner: list[Any] = []
        for part in level:
            if isinstance(part, dict) and all(isinstance(key, str) for key in part):
                inner += part.values()
            elif isinstance(part, list | tuple):
                inner += part
            elif not (part is None or isinstance(part, str | int) or _finite(part)):
                raise ValueError(
                    f"{name} is {shown(value)} with {shown(part)}; values that JSON holds are "
                    "allowed, no NaN"
                )
        if not inner:
            return
        level = inner
    raise ValueError(
        f"{name} is {shown(value)}, nested deeper than {MOST_LEVELS} levels; fewer are allowed"
    )


def _finite(value: Any) -> bool:
    return isinstance(value, float) and math.isfinite(value)
