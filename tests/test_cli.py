"""The command line: help with examples, whole runs, and errors in one line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import freqformer
from freqformer import cli
from freqformer.media import probe_video, read_clip, write_video
from freqformer.models.pipeline import FreqFormerPipeline

RUNNER = CliRunner()
TINY = [
    *("--set", "data.num_frames=4", "--set", "data.height=16", "--set", "data.width=16", "--set", "data.fps=10"),
    *("--set", "model.num_layers=1", "--set", "model.num_heads=3", "--set", "model.head_dim=8"),
    *("--set", "run.batch_size=1", "--set", "run.progress=false", "--set", "run.device=cpu"),
]


def run(*arguments: object, code: int = 0) -> str:
    """The output of a command that must end with this exit code."""
    result = RUNNER.invoke(cli.app, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    return " ".join(result.output.split())


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("videos") / "clip.mp4"
    noise = torch.rand(12, 5, 5, 3, generator=torch.Generator().manual_seed(0))
    smooth = torch.nn.functional.interpolate(noise.permute(0, 3, 1, 2), (48, 48), mode="bicubic").permute(0, 2, 3, 1)
    write_video((smooth.clamp(0, 1) * 255).to(torch.uint8), path, 10)
    return path


@pytest.fixture(scope="module")
def trained(video: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "first"
    output = run("train", video, "--output", folder, "--steps", 3, *TINY)
    assert f"freqformer sample {folder}" in output
    return folder


@pytest.mark.parametrize("command", [[], ["train"], ["sample"], ["inspect"], ["demo"]])
def test_help_has_examples(command: list[str]) -> None:
    output = run(*command, "--help")
    assert "Examples:" in output
    assert " ".join(["freqformer", *command]) in output.partition("Examples:")[2]


def test_version() -> None:
    assert run("--version") == f"freqformer {freqformer.__version__}"


def test_the_package_is_a_command_too() -> None:
    done = subprocess.run([sys.executable, "-m", "freqformer", "--help"], capture_output=True, text=True, check=True)
    assert "Usage: freqformer " in done.stdout


def test_train_writes_its_config_and_a_model(trained: Path) -> None:
    config = json.loads((trained / "train.json").read_text())
    assert (config["data"]["height"], config["run"]["max_steps"]) == (16, 3)
    assert (trained / "pipeline" / "model_index.json").is_file()
    assert list((trained / "checkpoints").iterdir())


def test_train_from_a_config_with_changes(trained: Path, tmp_path: Path) -> None:
    run("train", "synthetic", "-o", tmp_path / "next", "--config", trained / "train.json", "--set", "run.max_steps=1")
    config = json.loads((tmp_path / "next" / "train.json").read_text())
    assert config["run"]["max_steps"] == 1
    assert config["data"]["path"] is None
    assert config["model"]["num_heads"] == 3


def test_sample_takes_the_trained_size(trained: Path, tmp_path: Path) -> None:
    output = run("sample", trained, "--output", tmp_path / "new.mp4", "--steps", 2, "--enlarge", 2)
    assert "4 x 16 x 16" in output
    info = probe_video(tmp_path / "new.mp4")
    assert (info.num_frames, info.height, info.width) == (4, 32, 32)
    assert info.fps == pytest.approx(10)
    assert read_clip(tmp_path / "new.mp4", start=0, num_frames=4, fps=10, height=32, width=32).float().std() > 1
    assert probe_video(tmp_path / "new.png").width > 64


def test_sample_at_another_size_by_seed(trained: Path, tmp_path: Path) -> None:
    videos = []
    for index, seed in enumerate((1, 1, 2)):
        target = tmp_path / f"{index}.mp4"
        run("sample", trained / "pipeline", "-o", target, "--size", 2, 24, 16, "--fps", 5, "--steps", 2, "--seed", seed)
        videos.append(read_clip(target, start=0, num_frames=2, fps=5, height=24, width=16))
    # The contact sheet is lossless. Of the same frames x264 made another file in up to 8 of 60 runs on a loaded machine.
    sheets = [(tmp_path / f"{index}.png").read_bytes() for index in range(3)]
    assert sheets[0] == sheets[1] != sheets[2]
    same, other = ((videos[0].float() - video.float()).abs().mean() for video in videos[1:])
    assert same < 2.5 < 5 < other
    run("sample", trained, "-o", tmp_path / "two.mp4", "--steps", 1, "--count", 2)
    assert sorted(path.name for path in tmp_path.glob("two*")) == ["two-0.mp4", "two-0.png", "two-1.mp4", "two-1.png"]


def test_sample_at_four_times_the_length_by_bands_and_dense(trained: Path, tmp_path: Path) -> None:
    # Wide open gates, which a short training leaves nearly closed: attention shows in what the model makes.
    pipeline = FreqFormerPipeline.from_pretrained(str(trained / "pipeline"))
    for layer in (pipeline.transformer.time_modulation.linear, pipeline.transformer.proj_out):
        layer.weight.data.normal_(std=0.3, generator=torch.Generator().manual_seed(0))
    pipeline.save_pretrained(tmp_path / "opened")
    size = ["--size", 16, 16, 16, "--steps", 2, "--seed", 3]
    sheets = []
    for name, options in (("bands", []), ("dense", ["--dense"]), ("again", ["--dense"])):
        assert "16 x 16 x 16" in run("sample", tmp_path / "opened", "-o", tmp_path / f"{name}.mp4", *size, *options)
        assert probe_video(tmp_path / f"{name}.mp4").num_frames == 16
        sheets.append((tmp_path / f"{name}.png").read_bytes())
    assert sheets[0] != sheets[1] == sheets[2]
    both = ["--dense", "--routing-table", tmp_path]
    assert "one of them is allowed" in run("sample", trained, "-o", tmp_path / "x.mp4", *both, code=cli.USER_ERROR)


def test_inspect(video: Path, tmp_path: Path) -> None:
    output = run("inspect", video, "--output", tmp_path / "bands", "--seconds", 1)
    assert "low" in output
    assert probe_video(tmp_path / "bands" / "bands.mp4").num_frames == 10
    assert probe_video(tmp_path / "bands" / "band_energies.png").width > 300
    run("inspect", video, "--seconds", 1)
    assert (video.parent / "clip-bands" / "bands.mp4").is_file()


def test_errors_are_one_line(trained: Path, video: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.mp4").write_text("no video")
    (tmp_path / "list.json").write_text("[1]")
    (tmp_path / "broken.json").write_text("{")
    out = ["--output", tmp_path / "out"]
    cases = [
        (["train", tmp_path / "nothing", *out], "nothing does not exist; give a video file"),
        (["train", tmp_path / "empty", *out], "empty holds no video"),
        (["train", tmp_path / "text.mp4", *out], "can't be read"),
        (["train", video, *out, "--set", "data.heigth=3"], "unknown fields ['heigth']"),
        (["train", video, *out, "--set", "height=3"], "--set is 'height=3'; section.field=value is allowed"),
        (["train", video, *out, "--set", "run.batch_size=0"], "batch_size is 0"),
        (["train", video, *out, "--set", "optimizer.learning_rate=NaN"], "learning_rate is nan"),
        (["train", video, *out, "--config", tmp_path / "no.json"], "no.json"),
        (["train", video, *out, "--config", tmp_path / "list.json"], "holds list"),
        (["train", video, *out, "--config", tmp_path / "broken.json"], "is no JSON"),
        (["train", video, *out, *TINY, "--steps", 1, "--set", "data.height=15"], "multiples of patch_size"),
        (["sample", tmp_path / "no", "-o", tmp_path / "x.mp4"], "no does not exist"),
        (["sample", tmp_path / "empty", "-o", tmp_path / "x.mp4"], "holds no trained model"),
        (["sample", trained, "-o", tmp_path / "x.avi", "--steps", 1], "does not end in .mp4"),
        (["sample", trained, "-o", tmp_path / "x.mp4", "--size", 2, 15, 16], "multiples of patch_size"),
        (["inspect", tmp_path / "text.mp4"], "can't be read"),
        (["demo", "--video", tmp_path / "no.mp4", "-o", tmp_path / "d"], "no.mp4 does not exist"),
    ]
    for arguments, message in cases:
        output = run(*arguments, code=cli.USER_ERROR)
        assert message in output, output
        assert output.count("error:") == 1
        assert "Traceback" not in output


def test_model_without_a_record_needs_a_size(trained: Path, tmp_path: Path) -> None:
    alone = tmp_path / "alone"
    alone.symlink_to(trained / "pipeline")
    output = run("sample", alone, "-o", tmp_path / "x.mp4", code=cli.USER_ERROR)
    assert "--size FRAMES HEIGHT WIDTH" in output


def test_wrong_usage_is_told_by_the_parser() -> None:
    assert "DATA or --output is missing" in run("train", "videos", code=2)
    assert "Missing option" in run("export", "runs", code=2)
    assert "No such command" in run("fly", code=2)
    assert "Usage" in run(code=2)


def test_traceback_on_request(tmp_path: Path) -> None:
    result = RUNNER.invoke(cli.app, ["--traceback", "inspect", str(tmp_path / "no.mp4")])
    assert isinstance(result.exception, ValueError)


def test_interrupt_is_tidy(video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("freqformer.media.av.VideoFrame.from_ndarray", interrupted)
    assert "stopped" in run("inspect", video, "-o", tmp_path / "bands", code=cli.INTERRUPTED)
    assert not list((tmp_path / "bands").glob("*.partial"))
    assert not list((tmp_path / "bands").glob("*.mp4"))


def test_help_is_quick_to_import() -> None:
    """Help and errors in usage need neither diffusers nor a video library."""
    code = (
        "import sys; from freqformer.cli import app\n"
        "heavy = {'diffusers', 'accelerate', 'av', 'matplotlib', 'plotly'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
