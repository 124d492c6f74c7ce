"""What a training run's output folder holds, as commands read it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from freqformer.models.pipeline import FreqFormerPipeline

TRAIN_FILE = "train.json"


def read_config(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON: {error}; give a file like the train.json that a run writes") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} holds {type(values).__name__}; an object with the fields of a run is allowed")
    return values


def clip_fields(data: str) -> dict[str, Any]:
    """The fields of `data` that say where clips come from: videos, or what the rest of the fields make."""
    return {"path": None} if data == "synthetic" else {"path": data, "photographs": None}


def load_pipeline(folder: Path) -> FreqFormerPipeline:
    """The pipeline of a run's output folder, or of a folder that holds a pipeline itself."""
    from freqformer.models.pipeline import FreqFormerPipeline

    place = folder / "pipeline" if (folder / "pipeline").is_dir() else folder
    if not (place / "model_index.json").is_file():
        what = "holds no trained model" if folder.is_dir() else "does not exist"
        raise ValueError(f"{folder} {what}; give the output folder of a training run that has ended, or a saved pipeline")
    return FreqFormerPipeline.from_pretrained(str(place))


def training_data(folder: Path) -> dict[str, Any] | None:
    """The `data` section of the run that a model came from; None where its train.json is gone."""
    for place in (folder, folder.parent):
        if (place / TRAIN_FILE).is_file():
            return read_config(place / TRAIN_FILE).get("data")
    return None
