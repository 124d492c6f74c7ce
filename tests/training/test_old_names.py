"""Runs, configs and code of versions before still work, and a warning names what is new."""

from __future__ import annotations

import importlib
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.support.tiny_training import MODEL, changed, losses, tiny_config

from freqformer.models.transformer import FreqFormerTransformer3DModel
from freqformer.training.checkpoint import load_checkpoint, save_checkpoint
from freqformer.training.config import RunConfig, TrainConfig
from freqformer.training.provenance import read_sessions
from freqformer.training.samples import BadFile, TrainingSample


@pytest.mark.parametrize(
    ("module", "old", "home", "new"),
    [
        ("run", "TrainingRun", "trainer", "Trainer"),
        ("run", "StepReport", "report", "StepReport"),
        ("run", "TrainingError", "report", "TrainingError"),
        ("run", "clip_source", "sources", "clip_source"),
        ("record", "Part", "provenance", "Session"),
        ("record", "read_parts", "provenance", "read_sessions"),
        ("record", "write_parts", "provenance", "write_sessions"),
        ("record", "PARTS_FILE", "provenance", "SESSIONS_FILE"),
        ("record", "TRAIN_FILE", "provenance", "TRAIN_FILE"),
        ("record", "COMMIT_VARIABLE", "provenance", "COMMIT_VARIABLE"),
        ("loader", "DrawnClips", "loader", "ProceduralClips"),
        ("loader", "DrawingLoader", "loader", "OnDeviceLoader"),
    ],
)
def test_names_that_moved_are_still_there(module, old, home, new):
    place = f"freqformer.training.{home}"
    message = f"freqformer.training.{module}.{old} is now {place}.{new};"
    with pytest.warns(FutureWarning, match=f"^{re.escape(message)}"):
        found = getattr(importlib.import_module(f"freqformer.training.{module}"), old)
    assert found is getattr(importlib.import_module(place), new)


def test_a_clip_of_old_code_is_a_sample():
    loader = importlib.import_module("freqformer.training.loader")
    failure = BadFile(Path("x.mp4"), "broken")
    pixels = torch.zeros(3, 1, 2, 2)
    with pytest.warns(FutureWarning, match=r"loader\.Clip is now .*\.TrainingSample"):
        sample = loader.Clip(pixels, (failure,))
    assert isinstance(sample, TrainingSample)
    assert sample.failures == (failure,)
    with pytest.warns(FutureWarning, match="pixels of a clip is now clip of a TrainingSample"):
        assert sample.pixels is pixels


def test_the_seconds_of_a_part_are_those_of_a_session():
    with pytest.warns(FutureWarning, match="part_seconds is now stop_after_seconds"):
        run = RunConfig(part_seconds=5.0)  # type: ignore[call-arg]
    assert run == RunConfig(stop_after_seconds=5.0)


def test_an_old_train_json_loads(tmp_path):
    config = replace(tiny_config(tmp_path / "out"), model={**MODEL, "prediction_type": "sample"})
    values = config.to_dict()
    values["run"]["part_seconds"] = values["run"].pop("stop_after_seconds")
    with pytest.warns(FutureWarning) as warned:
        made = TrainConfig.from_dict(json.loads(json.dumps(values)))
    assert made == TrainConfig.from_dict(json.loads(json.dumps(config.to_dict())))
    texts = [str(warning.message) for warning in warned]
    assert [text.partition(";")[0] for text in texts] == [
        "run.part_seconds is now run.stop_after_seconds",
    ]


def test_a_run_folder_of_a_version_before_goes_on(tmp_path):
    """With parts.json, `parts` in the checkpoint's state, and fields of their old names."""
    config = replace(tiny_config(tmp_path / "out"), model={**MODEL, "prediction_type": "sample"})
    losses(changed(config, "run", max_steps=1))
    folder = Path(config.output)
    (folder / "sessions.json").rename(folder / "parts.json")
    place = folder / "checkpoints" / "step-00000001"
    groups, state = load_checkpoint(place)
    state["parts"] = state.pop("sessions")
    state["config"]["run"]["part_seconds"] = 9.0
    copies = {name: {key: x.clone() for key, x in group.items()} for name, group in groups.items()}
    save_checkpoint(place.parent, 1, copies, state)
    with pytest.warns(FutureWarning, match=r"parts\.json is now sessions\.json"):
        (first,) = read_sessions(folder)
    with pytest.warns(FutureWarning) as warned:
        assert [step for step, _ in losses(config)] == [2, 3]
    texts = " ".join(str(warning.message) for warning in warned)
    assert "parts in a checkpoint's state is now sessions" in texts
    assert read_sessions(folder)[0] == first
    assert [session.last_step for session in read_sessions(folder)] == [1, 3]
    assert not (folder / "parts.json").exists()


def test_a_model_saved_by_a_version_before_loads(tmp_path):
    model = FreqFormerTransformer3DModel(**MODEL, prediction_type="sample")
    model.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    values = json.loads(path.read_text())
    del values["prediction_type"]
    path.write_text(json.dumps({**values, "prediction": "clip"}))
    (tmp_path / "freqformer-manifest.json").unlink()
    with pytest.warns(FutureWarning, match="prediction is prediction_type"):
        loaded = FreqFormerTransformer3DModel.from_pretrained(tmp_path)
    assert loaded.config["prediction_type"] == "sample"
    with pytest.warns(FutureWarning, match="prediction is prediction_type"):
        made = FreqFormerTransformer3DModel(**MODEL, prediction="clip")  # type: ignore[call-arg]
    assert made.config["prediction_type"] == "sample"
    assert "prediction" not in made.config
