"""Scenarios from what is typed: a preset, lengths, and NAME=VALUE settings."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from freqformer._renamed import warn_renamed
from freqformer.config import LAYER_FIELDS, FreqFormerConfig
from freqformer.routing import RoutingTable
from freqformer.simulate.model.allocations import Kind, Routing
from freqformer.simulate.model.presets import Preset, preset_named
from freqformer.simulate.model.profiles import ProfileError
from freqformer.simulate.model.scenarios import Scenario, scenario
from freqformer.training_free.dials import Dials, checked_dials

CONFIG_SETTINGS = tuple(
    sorted(field.name for field in fields(FreqFormerConfig) if field.name not in LAYER_FIELDS)
)
DIAL_SETTINGS = tuple(field.name for field in fields(Dials) if field.name != "density_schedule")
"""Of preset training-free. Every banded step is simulated at the mean density, however it is spread
over the steps: attention's time is a straight line in it."""
ROUTING_SETTINGS = ("routing", "split", "schedule", "table")
OTHER_SETTINGS = (*ROUTING_SETTINGS, "head_dim", "efficiency", "learned_summaries", "low_branch")
"""Settings beside the configuration's fields."""
SWITCHES = ("learned_summaries", "low_branch")
TEXTS = ("routing", "schedule", "table", "efficiency")
DENSE_SETTINGS = ("table", "head_dim", "efficiency")
"""What can be set of dense attention."""
RENAMED_SETTINGS = {"calibration": "efficiency", "low_beside": "low_branch"}
"""New name of every old setting, and"""
RENAMED_ROUTING: dict[str, Kind] = {"timed": "timestep", "learned": "hard"}
"""new word for every old kind of routing."""
MOST_TYPED = 1024
"""Characters of a setting, and"""
MOST_SHOWN = 80
"""those of a wrong one that an error repeats."""


@dataclass(frozen=True)
class Request:
    """What was asked for, as typed."""

    model: str
    hardware: str
    lengths: str
    """Separated by commas."""
    preset: str = "default"
    settings: Sequence[str] = ()
    """NAME=VALUE."""


def scenarios(request: Request) -> list[Scenario]:
    """The scenarios of a request, one per length.

    Raises:
        ValueError: for anything unknown, out of range or without effect, naming it.
    """
    named, values = preset_named(request.preset), _values(request.settings)
    _check_dense(named, values)
    dials = _dials(named, values)
    wanted = [part.strip() for part in request.lengths.split(",") if part.strip()]
    if not wanted:
        raise ProfileError(
            "tokens is empty; numbers of tokens or durations, separated by commas, are allowed"
        )
    routing = _routing(named, values)
    changes = {name: values[name] for name in CONFIG_SETTINGS if name in values}
    base = named.config if routing.table is None else routing.table.config
    config = FreqFormerConfig.from_dict(base.to_dict() | changes)
    switches = {name: values[name] for name in SWITCHES if name in values}
    return [
        replace(
            scenario(
                request.model,
                request.hardware,
                length,
                preset=named.name,
                config=config,
                routing=routing,
                head_dim=values.get("head_dim"),
                efficiency=values.get("efficiency"),
            ),
            dials=dials,
            **switches,
        )
        for length in wanted
    ]


def _values(settings: Sequence[str]) -> dict[str, Any]:
    """Names and values of the settings; of a name given twice the last one."""
    known, values = (*CONFIG_SETTINGS, *OTHER_SETTINGS, *DIAL_SETTINGS), {}
    for item in settings:
        if len(item) > MOST_TYPED:
            raise ProfileError(
                f"setting is {item[:MOST_SHOWN]!r}… of {len(item):,} characters; {MOST_TYPED:,} at "
                "most are allowed"
            )
        name, separator, text = item.partition("=")
        if name in RENAMED_SETTINGS:
            warn_renamed(f"--set {name}", RENAMED_SETTINGS[name])
            name = RENAMED_SETTINGS[name]
        if not separator or name not in known:
            allowed = f"NAME=VALUE with one of {', '.join(known)} is allowed"
            raise ProfileError(f"setting is {item[:MOST_SHOWN]!r}; {allowed}")
        value = text if name in TEXTS else _value(text)
        if name in SWITCHES and not isinstance(value, bool):
            raise ProfileError(f"{name} is {text[:MOST_SHOWN]!r}; true and false are allowed")
        values[name] = value
    return values


def _check_dense(preset: Preset, values: dict[str, Any]) -> None:
    """Raise ProfileError for settings that a dense model, which has no bands, would ignore."""
    if preset.attention != "dense":
        return
    # A table brings bands to a dense model, and with them a meaning to the configuration.
    allowed = (*DENSE_SETTINGS, *(CONFIG_SETTINGS if "table" in values else ()))
    ignored = [name for name in values if name not in (*allowed, *DIAL_SETTINGS)]
    if ignored:
        dials = () if preset.dials is None else DIAL_SETTINGS
        why = "dense attention has no bands to act on" if not dials else "the density chooses bands"
        raise ProfileError(
            f"{ignored[0]} is set, and {why}; {', '.join((*allowed, *dials))} are allowed with "
            f"preset {preset.name}: leave it out, or take another preset"
        )


def _dials(preset: Preset, values: dict[str, Any]) -> Dials | None:
    """The dials of preset training-free with what was set; None for every other preset, and beside
    a table, which says itself what is banded."""
    given = {name: values[name] for name in DIAL_SETTINGS if name in values}
    if given and (preset.dials is None or "table" in values):
        wrong, held = next(iter(given)), "a table" if "table" in values else preset.name
        raise ProfileError(
            f"{wrong} is set with {held}; it is a dial of preset training-free without a table: "
            "leave it out, or take that preset"
        )
    if preset.dials is None or "table" in values:
        return None
    percents = (given.get("start_percent"), given.get("end_percent", preset.dials.end_percent))
    blocks = given.get("dense_blocks", preset.dials.dense_blocks)
    return checked_dials(None, given.get("density"), percents, blocks, given.get("min_tokens"))


def _routing(preset: Preset, values: dict[str, Any]) -> Routing:
    """The preset's routing with what was set; a kind brings its own schedule and split."""
    table = _table(values["table"]) if "table" in values else None
    kind: Any = values.get("routing", preset.routing.kind)
    if kind in RENAMED_ROUTING:
        warn_renamed(f"--set routing={kind}", f"routing={RENAMED_ROUTING[kind]}")
        kind = RENAMED_ROUTING[kind]
    return Routing(
        kind=kind, split=values.get("split"), schedule=values.get("schedule"), table=table
    )


def _value(text: str) -> Any:
    """A setting's value: JSON where it is some, a tuple of numbers with commas, and text
    otherwise."""
    for candidate, as_tuple in ((text, False), (f"[{text}]", True)):
        try:
            value = json.loads(candidate)
        # Too many digits of a number are a ValueError, too many brackets a RecursionError.
        except (ValueError, RecursionError):
            continue
        return tuple(value) if as_tuple else value
    return text


def _table(folder: str) -> RoutingTable:
    return RoutingTable.load(Path(folder))
