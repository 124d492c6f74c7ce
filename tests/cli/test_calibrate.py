"""`freqformer calibrate` on a model that was trained for seconds, and videos sampled with its
table."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.support.command_line import refused, run
from tests.support.tiny_pipelines import tiny_wan_pipeline

import freqformer
from freqformer.calibration.report import RECORD_NAME
from freqformer.cli.console import USER_ERROR
from freqformer.media import read_clip
from freqformer.routing import RoutingTable

TRY = ("--clips", 2, "--buckets", 2, "--mid-tiles", "1,2", "--window", "1,1,1", "--window", "1,2,2")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "dense"
    settings = {
        "data.num_frames": 4,
        "data.height": 32,
        "data.width": 32,
        "model.num_layers": 1,
        "model.num_attention_heads": 3,
        "model.attention_head_dim": 8,
        "model.frequency.preset": "dense",
        "model.frequency.tile": "[2, 2, 4]",
        "optimizer.learning_rate": 0.02,
        "optimizer.ema_decay": 0.9,
        "run.batch_size": 1,
        "run.progress": "false",
        "run.device": "cpu",
    }
    pairs = (part for name, value in settings.items() for part in ("--set", f"{name}={value}"))
    run("train", "synthetic", "--output", folder, "--steps", 60, *pairs)
    return folder


def test_calibrate_then_sample(trained: Path, tmp_path: Path) -> None:
    output = run("calibrate", trained, "-o", tmp_path / "table", "--tolerance", 0.1, *TRY)
    assert f"--routing-table {tmp_path / 'table'}" in output
    record = json.loads((tmp_path / "table" / RECORD_NAME).read_text())
    assert record["candidates"] == ["low", "mid-1", "mid-2", "high-1x1x1", "high-1x2x2", "dense"]
    assert f"{100 * record['cost']:.1f}% of dense attention's FLOPs" in output
    assert RoutingTable.load(tmp_path / "table").shape == (2, 1, 3)
    half = run("calibrate", trained, "-o", tmp_path / "half", "--flops", 0.5, *TRY)
    kept = json.loads((tmp_path / "half" / RECORD_NAME).read_text())
    assert 0 < kept["cost"] <= 0.5
    worst = max(error for layers in kept["chosen_error"] for heads in layers for error in heads)
    assert f"no head's error was above {worst:.3g}" in half
    cheap = run("calibrate", trained, "-o", tmp_path / "table", "--tolerance", 100, *TRY)
    assert "low 0.0%" not in cheap
    assert "dense 0.0%" in cheap
    videos = []
    for name, options in (("plain", ()), ("banded", ("--routing-table", tmp_path / "table"))):
        target = tmp_path / f"{name}.mp4"
        run("sample", trained, "-o", target, "--steps", 4, *options)
        videos.append(read_clip(target, start=0, num_frames=4, fps=8, height=32, width=32).float())
    difference = (videos[0] - videos[1]).abs().mean()
    assert 0 < difference < 0.5 * (videos[0] - videos[0].mean()).abs().mean()


def test_clips_of_a_video(trained: Path, tmp_path: Path) -> None:
    shipped = Path(freqformer.__file__).parent / "assets" / "pagoda.mp4"
    run("calibrate", trained, shipped, "-o", tmp_path, *TRY)
    record = json.loads((tmp_path / RECORD_NAME).read_text())
    assert all(error > 0 for row in record["errors"][0][0] for error in row)


def test_errors_are_one_line(trained: Path, tmp_path: Path) -> None:
    alone = tmp_path / "alone"
    alone.symlink_to(trained / "pipeline")
    out = ("-o", tmp_path / "out")
    cases = [
        ((trained, *out, "--tolerance", 0), "tolerance is 0"),
        (
            (trained, *out, "--tolerance", 0.2, "--flops", 0.1),
            "tolerance is 0.2 and budget 0.1; one of them",
        ),
        ((trained, *out, "--mid-tiles", "8;16"), "--mid-tiles is '8;16'"),
        ((trained, *out, "--mid-tiles", ""), "--mid-tiles is ''"),
        ((trained, *out, "--mid-tiles", "16,8"), "rising"),
        ((trained, *out, "--window", "3,3"), "window is (3, 3)"),
        ((trained, tmp_path / "no.mp4", *out), "no.mp4 does not exist"),
        ((tmp_path / "none", *out), "none does not exist"),
        ((alone, *out), "is no training run on pixels"),
    ]
    for arguments, message in cases:
        refused("calibrate", *arguments, message=message)
    output = run(
        "sample", trained, "-o", tmp_path / "x.mp4", "--routing-table", tmp_path, code=USER_ERROR
    )
    assert "routing_table.json can't be read" in output


def test_help_has_examples() -> None:
    output = run("calibrate", "--help")
    assert "freqformer calibrate runs/dense" in output.partition("Examples:")[2]


def test_a_pipeline_of_diffusers(tmp_path: Path) -> None:
    tiny_wan_pipeline().save_pretrained(tmp_path / "wan")
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a cat\n\nthe storm\n")
    size = ("--frames", 17, "--size", 128, 160, "--dtype", "float32", "--device", "cpu")
    asked = ("--pipeline", tmp_path / "wan", "--prompts", prompts, "-o", tmp_path / "table")
    told = run("calibrate", *asked, "--density", 0.5, "--steps", 2, "--trials", 2, *size)
    assert "nearest of 2 tables: " in told
    assert "of dense attention's FLOPs; expected error" in told
    assert f"--table {tmp_path / 'table'}" in told
    record = json.loads((tmp_path / "table" / "pipeline_calibration.json").read_text())
    assert record["density"] == record["chosen_from"]["density"] <= 0.5
    video = ("--prompt", "a cat", "-o", tmp_path / "cat.mp4", "--table", tmp_path / "table")
    made = run("generate", "--pipeline", tmp_path / "wan", *video, "--steps", 2, *size)
    assert "of dense attention's FLOPs in 3 of 3 layers" in made
    empty = tmp_path / "empty.txt"
    empty.write_text("\n")
    cases: list[tuple[tuple[object, ...], str]] = [
        ((*asked, "--flops", 0.1), "--flops is 0.1, and means nothing with --pipeline"),
        (("--pipeline", tmp_path, "-o", tmp_path / "out"), "--pipeline is given without --prompts"),
        (("-o", tmp_path / "out"), "MODEL is missing"),
        ((tmp_path, "-o", tmp_path / "out", "--steps", 4), "--steps is 4, and means nothing"),
        ((tmp_path, "-o", tmp_path / "out", "--trials", 4), "--trials is 4, and means nothing"),
        ((*asked[:2], "--prompts", empty, "-o", tmp_path / "out"), "which is empty"),
        ((*asked[:2], "--prompts", tmp_path, "-o", tmp_path / "out"), "which can't be read"),
    ]
    for arguments, message in cases:
        refused("calibrate", *arguments, message=message)
