"""The models and run configurations that commands take: folders of the user's, and what comes with
the package."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from freqformer._files import read_json

if TYPE_CHECKING:
    from freqformer.models.pipeline import FreqFormerPipeline

TRAIN_FILE = "train.json"
SHIPPED = "shipped"
"""Names the model that comes with the package where a folder is asked for, and its run where a
config is."""


def model_folder(named: str) -> Path:
    """The folder of a model: the one named, or that of the shipped model; a folder called `shipped`
    is `./shipped`.

    Raises:
        ValueError: for `shipped` in a version that comes without a model.
    """
    if named != SHIPPED:
        return Path(named)
    from freqformer.demo.shipped import shipped_model

    folder = shipped_model()
    if folder is None:
        raise ValueError(
            "shipped names a model that this version comes without; give the output folder of a "
            "training run"
        )
    return folder


def run_config(named: str) -> dict[str, Any]:
    """The fields of a run: those of a JSON file, or with `shipped` those of the run that made the
    shipped model.

    Raises:
        ValueError: for a file that can't be read, or holds no object.
    """
    if named != SHIPPED:
        return read_config(Path(named))
    return read_config(model_folder(SHIPPED) / TRAIN_FILE)


def read_config(path: Path) -> dict[str, Any]:
    """The object in a JSON file; ValueError for anything else."""
    return read_json(path, remedy="give a file like the train.json that a run writes")


def clip_fields(data: str) -> dict[str, Any]:
    """The fields of `data` that say where clips come from: videos, a cache, or what the rest of the
    fields make."""
    if data == "synthetic":
        return {"path": None, "cache": None}
    from freqformer.training.cache.index import is_cache

    if is_cache(Path(data)):
        return {"cache": data, "path": None, "photographs": None}
    return {"path": data, "photographs": None, "cache": None}


def pipeline_folder(folder: Path) -> Path:
    """Where the pipeline is: in a run's output folder, or the folder itself.

    Raises:
        ValueError: for a folder that holds none.
    """
    place = folder / "pipeline" if (folder / "pipeline").is_dir() else folder
    if not (place / "model_index.json").is_file():
        what = (
            "holds no trained model"
            if folder.is_dir()
            else "is a file"
            if folder.exists()
            else "does not exist"
        )
        raise ValueError(
            f"{folder} {what}; give the output folder of a training run that has ended, a saved "
            f"pipeline, or {SHIPPED!r} "
            "for the model that comes with the package"
        )
    return place


def load_pipeline(folder: Path) -> FreqFormerPipeline:
    """The pipeline of a run's output folder, or of a folder that holds a pipeline itself;
    ValueError for another."""
    place = pipeline_folder(folder)
    from freqformer.models.pipeline import FreqFormerPipeline

    return FreqFormerPipeline.from_pretrained(str(place))


def training_data(folder: Path) -> dict[str, Any] | None:
    """The `data` section of the run that a model came from; None where its train.json is gone.

    Raises:
        ValueError: for a train.json that no run wrote.
    """
    for place in (folder, folder.parent):
        if (place / TRAIN_FILE).is_file():
            data = read_config(place / TRAIN_FILE).get("data")
            if not isinstance(data, dict):
                raise ValueError(
                    f"{place / TRAIN_FILE} has {data!r} as data; an object, as a run writes it, is "
                    "allowed"
                )
            return data
    return None
