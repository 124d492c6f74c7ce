"""The model_index.json of a folder that may be a pipeline's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

PIPELINE_INDEX = "model_index.json"


def read_index(folder: Path) -> dict[str, Any]:
    """What it holds; nothing where the folder is no pipeline's."""
    try:
        found = json.loads((folder / PIPELINE_INDEX).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def class_of(folder: Path) -> str:
    """The class of its pipeline; empty for another folder."""
    return str(read_index(folder).get("_class_name", ""))
