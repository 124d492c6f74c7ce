"""Damage to a saved folder, the same for the same seed: bytes flipped, files cut, JSON of other
kinds and numbers."""

from __future__ import annotations

import copy
import json
import random
import shutil
from pathlib import Path
from typing import Any

VALUES = (
    *(
        None,
        True,
        False,
        "",
        "x",
        "8",
        0,
        1,
        2,
        3,
        7,
        -1,
        -(10**9),
        10**6,
        10**9,
        10**12,
        2**63,
        10**30,
    ),
    *(
        0.5,
        -2.5,
        1e-300,
        1e300,
        float("nan"),
        float("inf"),
        [],
        [1],
        [1, 2, 2],
        ["x", "y"],
        [None, None],
        [[]],
    ),
    *({}, {"x": 1}, [0] * 50, "../..", "diffusers", "🙂", "a" * 10_000),
)
"""What is put in the place of a value of JSON."""


def damage(folder: Path, seed: int) -> str:
    """Change one to three things in a folder; returns what was done."""
    draw = random.Random(seed)
    done = []
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        if not files:
            break
        path = draw.choice(files)
        kinds = (_change_value,) * 4 if path.suffix == ".json" else ()
        change = draw.choice((*kinds, _flip_bits, _flip_head, _cut, _replace, _lengthen, _remove))
        done.append(f"{change.__name__} {path.relative_to(folder)} {change(path, draw)}")
    return "; ".join(done)


def change_json(value: Any, draw: random.Random) -> str:
    """Change or leave out one thing in a value of JSON, at any depth; returns which."""
    places = list(_places(value))
    if not places:
        return "(nothing in it)"
    inner, key = draw.choice(places)
    said = f"{key}: {str(inner)[:80]}"
    if draw.random() < 0.25:
        del inner[key]
    else:
        # A copy: what is changed next may be what was put in here.
        inner[key] = copy.deepcopy(draw.choice(VALUES))
    return said


def _change_value(path: Path, draw: random.Random) -> str:
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        return "(no JSON any more)"
    said = change_json(value, draw)
    path.write_text(json.dumps(value))
    return said


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) in a value of JSON."""
    if not isinstance(value, dict | list):
        return []
    keys = list(value) if isinstance(value, dict) else range(len(value))
    return [(value, key) for key in keys] + [place for key in keys for place in _places(value[key])]


def _flip_bits(path: Path, draw: random.Random) -> str:
    return _flip(path, draw, 1 << 30)


def _flip_head(path: Path, draw: random.Random) -> str:
    return _flip(path, draw, 2048)


def _flip(path: Path, draw: random.Random, below: int) -> str:
    content = bytearray(path.read_bytes())
    if not content:
        return "(empty)"
    place = draw.randrange(min(len(content), below))
    content[place] ^= 1 << draw.randrange(8)
    path.write_bytes(content)
    return f"byte {place}"


def _cut(path: Path, draw: random.Random) -> str:
    content = path.read_bytes()
    left = draw.randrange(len(content) + 1)
    path.write_bytes(content[:left])
    return f"to {left} bytes"


def _replace(path: Path, draw: random.Random) -> str:
    texts = (
        b"",
        b"{}",
        b"[]",
        b"null",
        b"7",
        b'"x"',
        b"\xff\xfe",
        b"[" * 100_000,
        b"\0" * 64,
        b"\xff" * 64,
    )
    content = draw.choice(texts)
    path.write_bytes(content)
    return repr(content[:20])


def _lengthen(path: Path, draw: random.Random) -> str:
    path.write_bytes(path.read_bytes() + draw.randbytes(draw.randrange(1, 64)))
    return ""


def _remove(path: Path, draw: random.Random) -> str:
    path.unlink()
    if draw.random() < 0.3:
        path.mkdir()
        return "a folder in its place"
    if draw.random() < 0.3:
        shutil.rmtree(path.parent)
        return "with its folder"
    return ""
