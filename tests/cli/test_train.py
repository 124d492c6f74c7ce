"""`freqformer train` on a short video."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
from tests.support.command_line import TINY, refused, run

from freqformer.training.trainer import Trainer


def test_train_writes_its_config_and_a_model(trained: Path) -> None:
    config = json.loads((trained / "train.json").read_text())
    assert (config["data"]["height"], config["run"]["max_steps"]) == (16, 3)
    assert (trained / "pipeline" / "model_index.json").is_file()
    assert list((trained / "checkpoints").iterdir())


def test_train_from_a_config_with_changes(trained: Path, tmp_path: Path) -> None:
    run(
        "train",
        "synthetic",
        "-o",
        tmp_path / "next",
        "--config",
        trained / "train.json",
        "--set",
        "run.max_steps=1",
    )
    config = json.loads((tmp_path / "next" / "train.json").read_text())
    assert config["run"]["max_steps"] == 1
    assert config["data"]["path"] is None
    assert config["model"]["num_attention_heads"] == 3


def test_train_from_the_shipped_models_config(
    video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run(
        "train",
        video,
        "-o",
        "own",
        "--config",
        "shipped",
        "--steps",
        1,
        *TINY,
        "--set",
        "run.compile=false",
    )
    config = json.loads((tmp_path / "own" / "train.json").read_text())
    assert config["model"]["absolute_positions"] == "space"
    assert "stop_after_seconds" not in config["run"]
    assert config["data"]["path"] == str(video)
    refused("train", "--config", "shipped", message="DATA is missing: the photographs")


def test_errors_are_one_line(video: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.mp4").write_text("no video")
    (tmp_path / "list.json").write_text("[1]")
    (tmp_path / "broken.json").write_text("{")
    (tmp_path / "text.json").write_text('{"data": "videos/", "run": []}')
    (tmp_path / "deep.json").write_text('{"model": ' + "[" * 100_000 + "]" * 100_000 + "}")
    out = ["--output", tmp_path / "out"]
    cases = [
        (["train", tmp_path / "nothing", *out], "nothing does not exist; give a video file"),
        (["train", tmp_path / "empty", *out], "empty holds no video"),
        (["train", tmp_path / "text.mp4", *out], "can't be read"),
        (["train", video, *out, "--set", "data.heigth=3"], "unknown fields ['heigth']"),
        (
            ["train", video, *out, "--set", "height=3"],
            "--set is 'height=3'; section.field=value is allowed",
        ),
        (["train", video, *out, "--set", "run.batch_size=0"], "batch_size is 0"),
        (["train", video, *out, "--set", "optimizer.learning_rate=NaN"], "learning_rate is nan"),
        (["train", video, *out, "--config", tmp_path / "no.json"], "no.json"),
        (["train", video, *out, "--config", tmp_path / "list.json"], "holds list"),
        (["train", video, *out, "--config", tmp_path / "broken.json"], "can't be read ("),
        (
            ["train", *out, "--config", tmp_path / "text.json"],
            "data is 'videos/'; an object with fields of ['path'",
        ),
        (
            ["train", video, *out, "--config", tmp_path / "text.json"],
            "data is 'videos/'; an object with fields",
        ),
        (
            ["train", *out, "--config", tmp_path / "text.json", "--set", "data.fps=9"],
            "data holds 'videos/'",
        ),
        (["train", video, *out, "--config", tmp_path / "deep.json"], "deep.json"),
        (
            ["train", video, *out, "--set", "model.cross_attention_dim=32"],
            "model has cross_attention_dim=32; None is allowed",
        ),
        (
            ["train", video, *out, "--init-from", tmp_path / "empty"],
            "empty', which holds no pipeline",
        ),
        (
            ["train", video, *out, *TINY, "--steps", 1, "--set", "data.height=15"],
            "multiples of patch_size",
        ),
    ]
    for arguments, message in cases:
        refused(*arguments, message=message)


def test_train_begins_with_the_weights_of_a_model(
    trained: Path, video: Path, tmp_path: Path
) -> None:
    pairs = list(zip(TINY[::2], TINY[1::2], strict=True))
    settings = [part for pair in pairs if not pair[1].startswith("model.") for part in pair]
    run("train", video, "-o", tmp_path / "next", "--init-from", trained, "--steps", 1, *settings)
    config = json.loads((tmp_path / "next" / "train.json").read_text())
    assert config["model"]["num_attention_heads"] == 3
    assert config["run"]["init_from"] == str(trained)


def test_a_learning_rate_changes_on_purpose(video: Path, tmp_path: Path) -> None:
    command = ["train", video, "-o", tmp_path / "run", *TINY]
    run(*command, "--steps", 1)
    slower = [*command, "--steps", 2, "--set", "optimizer.learning_rate=1e-4"]
    refused(
        *slower,
        message=(
            "learning_rate was 0.001 and is 0.0001; resume with the same, or go on with the change"
        ),
    )
    output = run(*slower, "--accept-changes")
    assert "trained model" in output


def test_an_interrupted_run_says_how_to_go_on(
    video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    advance = Trainer.advance

    def interrupted(self: Trainer, loader: object) -> object:
        if self.step == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return advance(self, loader)

    monkeypatch.setattr(Trainer, "advance", interrupted)
    command = ["train", video, "-o", tmp_path / "run", "--steps", 4, *TINY]
    output = run(*command, code=143)
    assert "stopped by SIGTERM after step 2, which" in output
    assert output.endswith("keeps: the same command goes on")
    monkeypatch.undo()
    assert "trained model" in run(*command)


@pytest.mark.filterwarnings("default::FutureWarning")
@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--stop-after", "0.001s"], []),
        (["--minutes", 0.0001], ["warning: --minutes is now --stop-after 0.006s;"]),
    ],
)
def test_a_call_stops_after_its_time(video: Path, tmp_path: Path, options, told) -> None:
    command = ["train", video, "-o", tmp_path / "run", *TINY, "--steps", 2]
    output = run(*command, *options)
    assert "50% of the run is done: the same command goes on" in output
    for text in told:
        assert text in output
    assert "trained model" in run(*command)
    record = json.loads((tmp_path / "run" / "train.json").read_text())
    assert "stop_after_seconds" not in record["run"]


@pytest.mark.filterwarnings("default::FutureWarning")
@pytest.mark.parametrize("option", ["--max-seconds", "--seconds"])
def test_a_run_ends_after_its_seconds(video: Path, tmp_path: Path, option: str) -> None:
    output = run("train", video, "-o", tmp_path / "run", *TINY, "--steps", 10**6, option, 0.001)
    assert "trained model" in output
    assert "of the run is done" not in output
    assert ("--seconds is now --max-seconds 0.001;" in output) == (option == "--seconds")
    record = json.loads((tmp_path / "run" / "train.json").read_text())
    assert record["run"]["max_seconds"] == 0.001


def test_durations_that_are_none_are_refused(video: Path, tmp_path: Path) -> None:
    command = ["train", video, "-o", tmp_path / "run", *TINY]
    for text in ("soon", "9 days", "-1m", "nan", "1e9", "", "9" * 40):
        refused(*command, f"--stop-after={text}", message=f"--stop-after is '{text}'; a number of")
    refused(*command, "--stop-after", "0", message="stop_after_seconds is 0.0; numbers from 0.001")
    both = ["--stop-after", "9m", "--minutes", 9]
    refused(*command, *both, message="--minutes and --stop-after are both given; one of them")
