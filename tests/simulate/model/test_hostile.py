"""Inputs that nobody should give and somebody will: each ends in a result or in a ValueError that
names it."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from freqformer.simulate import ProfileError, simulate
from freqformer.simulate.model.efficiency import load_efficiency
from freqformer.simulate.model.hardware import load_hardware
from freqformer.simulate.model.profiles import ProfileKind, known_profiles, read_profile
from freqformer.simulate.model.settings import CONFIG_SETTINGS, OTHER_SETTINGS, Request, scenarios
from freqformer.simulate.model.transformers import load_model

LOADERS = {"hardware": load_hardware, "models": load_model, "efficiency": load_efficiency}
VALUES: tuple[Any, ...] = (
    *(
        None,
        True,
        0,
        -1,
        1,
        3,
        0.5,
        1e300,
        10**30,
        10**400,
        2**63,
        "",
        "x",
        "1",
        [],
        {},
        [1],
        [1, 2, 3],
    ),
    *(
        [0, 0, 0],
        [10**9] * 3,
        {"a": 1},
        [None] * 3,
        ["a", "b", "c"],
        {"720p": [720]},
        {"x": "y"},
        float("nan"),
    ),
)
TEXTS = (
    *(
        "",
        "null",
        "true",
        "0",
        "-1",
        "1e999",
        "NaN",
        "Infinity",
        "9" * 900,
        "[" * 900,
        "[1",
        "1,2",
        "1,3,3",
        "x",
    ),
    *(
        "0,0,0",
        "1000000000,1,1",
        "4,4,8",
        "topk",
        "radial",
        "axial",
        "band_gains",
        "own_band",
        "fixed",
        "hard",
        "prior",
    ),
)


def changed(kind: ProfileKind, name: str, values: dict[str, Any], folder: Path) -> Path:
    path = folder / "own.json"
    path.write_text(json.dumps(read_profile(kind, name)[1] | values))
    return path


@pytest.mark.parametrize(
    ("kind", "values", "text"),
    [
        ("models", {"resolutions": "x"}, "resolutions is 'x'; an object"),
        ("models", {"resolutions": {}}, "resolutions is {}; an object"),
        ("models", {"resolutions": {"720p": [720]}}, "resolutions is {'720p': .720.}; an object"),
        ("models", {"resolution": {}}, "resolution is {}"),
        ("models", {"sources": 3}, "sources is 3; an object of texts is allowed"),
        ("models", {"title": None}, "title is None; a text is allowed"),
        ("models", {"heads": 10**18}, "heads is 1000000000000000000"),
        ("models", {"shift": 10**17}, "shift is 1"),
        ("hardware", {"sources": {"launch_s": 1}}, "sources is .*; an object of texts is allowed"),
        ("hardware", {"memory_bytes": 10**18}, "memory_bytes is 1"),
        ("efficiency", {"fit": 1}, "fit is 1; an object is allowed"),
        ("efficiency", {"fit": {"rows": []}}, "fit is {'rows': ..}; one with fit and rows"),
        ("efficiency", {"fit": {"fit": {"count": 1}, "rows": [{}]}}, "fit, fit, median is None"),
        ("efficiency", {"router_s": 10**18}, "router_s is 1"),
    ],
)
def test_profiles_with_wrong_fields_are_refused_by_name(
    kind: ProfileKind, values: dict[str, Any], text: str, tmp_path: Path
) -> None:
    name = {"models": "wan2.1-14b", "hardware": "h200", "efficiency": "h200"}[kind]
    with pytest.raises(ProfileError, match=text):
        LOADERS[kind](changed(kind, name, values, tmp_path))


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"a":' * 100_000, '{"heads": ' + "9" * 5000 + "}", '{"heads": 1e999}']
)
def test_files_that_json_readers_stumble_over(text: str, tmp_path: Path) -> None:
    path = tmp_path / "own.json"
    path.write_text(text)
    for load in LOADERS.values():
        with pytest.raises(
            ProfileError, match=r"own.json can't be read .*; give a readable JSON file"
        ):
            load(path)


def test_numbers_beyond_floats_are_refused() -> None:
    """A comparison of an integer with a float is exact, where turning it into one overflows."""
    values = read_profile("hardware", "h200")[1]
    from freqformer.simulate.model.hardware import Hardware

    with pytest.raises(
        ProfileError, match="matrix_flops is an integer of 1,329 bits; numbers from 1e"
    ):
        Hardware(**values | {"name": "own", "interconnect": None, "matrix_flops": 10**400})


def test_a_reach_of_any_size_sees_every_tile() -> None:
    """PyTorch compares with 64 bits at most."""
    found = {}
    for radius in (10**6, 10**30):
        settings = ["mid_pattern=radial", f"radial_radius={radius}"]
        (case,) = scenarios(Request("freqformer", "h200", "4096", "paper", settings))
        found[radius] = simulate(case).counts
    assert found[10**6] == found[10**30]


@pytest.mark.parametrize(
    ("tokens", "settings", "text"),
    [
        (
            "1M",
            ["mid_pattern=radial", "radial_radius=1000"],
            "the radial lists .* smaller radial_radius",
        ),
        ("1M", ["window=99,99,99"], "the window lists .* smaller window"),
        ("1M", ["tile=1,1,1", "window=9,9,9"], "larger tiles"),
    ],
)
def test_lists_that_no_memory_holds_are_refused(
    tokens: str, settings: list[str], text: str
) -> None:
    (case,) = scenarios(Request("wan2.1-14b", "h200", tokens, "paper", settings))
    with pytest.raises(ProfileError, match=text):
        simulate(case)


def test_settings_of_any_text() -> None:
    rng = random.Random(0)
    errors = []
    for _ in range(400):
        chosen = [
            f"{rng.choice(CONFIG_SETTINGS + OTHER_SETTINGS)}={rng.choice(TEXTS)}"
            for _ in range(rng.randint(1, 2))
        ]
        preset = rng.choice(["default", "paper", "dense"])
        try:
            scenarios(Request("freqformer", "h200", "4096", preset, chosen))
        except ValueError as error:
            errors.append(str(error))
    assert 200 < len(errors) < 400
    assert max(map(len, errors)) < 2500
    with pytest.raises(ProfileError, match=r"… of 5,010 characters; 1,024 at most"):
        scenarios(Request("freqformer", "h200", "4096", "default", ["mid_tiles=" + "9" * 5000]))


def test_profiles_of_any_value(tmp_path: Path) -> None:
    """One to three fields of any shipped profile, at any depth, changed to anything."""
    rng = random.Random(0)
    errors = []
    for _ in range(400):
        kind: ProfileKind = rng.choice(list(LOADERS))  # type: ignore[arg-type]
        values = read_profile(kind, rng.choice(known_profiles(kind)))[1]
        for _ in range(rng.randint(1, 3)):
            _change(values, rng)
        path = tmp_path / "own.json"
        path.write_text(json.dumps(values))
        try:
            LOADERS[kind](path)
        except ValueError as error:
            errors.append(str(error))
    assert 200 < len(errors) < 400
    assert max(map(len, errors)) < 2500


def _change(values: Any, rng: random.Random) -> None:
    keys = list(values) if isinstance(values, dict) else list(range(len(values)))
    if not keys:
        return
    key = rng.choice(keys)
    inner = values[key]
    if isinstance(inner, dict | list) and inner and rng.random() < 0.6:
        _change(inner, rng)
    elif isinstance(values, dict) and rng.random() < 0.15:
        del values[key]
    else:
        values[key] = json.loads(json.dumps(rng.choice(VALUES)))
