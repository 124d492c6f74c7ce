"""`--set`: fields of a run's config from the command line."""

from __future__ import annotations

import json
from typing import Any


def update(values: dict[str, Any], section: str, fields: dict[str, Any]) -> None:
    """Put fields into a section. One that is no object stays as it is, for the config to refuse.

    Args:
        values: of the config, changed in place.
        section: its name.
        fields: to put in.
    """
    inner = values.setdefault(section, {})
    if isinstance(inner, dict):
        inner.update(fields)


def apply_setting(values: dict[str, Any], setting: str) -> None:
    """Put `section.field=value`, or a field of a field, into nested dicts; the value is JSON, or
    else text.

    Args:
        values: of the config, changed in place.
        setting: as it was typed.

    Raises:
        ValueError: for other texts, and fields of what is no section.
    """
    name, found, text = setting.partition("=")
    *sections, field = name.split(".")
    if not (found and sections and all((*sections, field))):
        raise ValueError(
            f"--set is {setting!r}; section.field=value is allowed, like data.height=64"
        )
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = text
    inner = values
    for place, section in enumerate(sections):
        inner = inner.setdefault(section, {})
        if not isinstance(inner, dict):
            holds = ".".join(sections[: place + 1])
            raise ValueError(
                f"--set is {setting!r} and {holds} holds {inner!r}; fields of a section are allowed"
            )
    inner[field] = value
