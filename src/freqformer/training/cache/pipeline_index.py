"""The index of a folder that may be a pipeline's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

PIPELINE_INDEX = "model_index.json"
MODULAR_INDEX = "modular_model_index.json"
"""Of a pipeline that diffusers has in modules alone."""


def find_index(folder: Path) -> Path | None:
    """The file; None where the folder is no pipeline's."""
    for name in (PIPELINE_INDEX, MODULAR_INDEX):
        if (folder / name).is_file():
            return folder / name
    return None


def read_index(folder: Path) -> dict[str, Any]:
    """What it holds; nothing where the folder is no pipeline's."""
    path = find_index(folder)
    if path is None:
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def class_of(folder: Path) -> str:
    """The class of its pipeline; empty for another folder."""
    return str(read_index(folder).get("_class_name", ""))
