"""`freqformer convert`, from a folder of a pipeline to a generated video, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.support.command_line import refused, run
from tests.support.tiny_conversions import make_dense_folder, make_wan_folder

SMALL = (
    "--density",
    0.5,
    "--rank",
    4,
    "--layer-steps",
    2,
    "--velocity-steps",
    1,
    "--set",
    "windows.tile=[1,2,2]",
    "--set",
    "windows.compression=128",
    "--set",
    "run.precision=fp32",
    "--set",
    "run.device=cpu",
    "--set",
    "run.progress=false",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_wan_folder(tmp_path_factory.mktemp("wan"))


def test_from_a_cache_to_a_video(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    told = run("convert", folder / "cache", "--pipeline", folder / "wan", "-o", out, *SMALL)
    assert f"converted model: {out / 'adapter'}" in told
    assert "--adapter" in told
    record = json.loads((out / "convert.json").read_text(encoding="utf-8"))
    assert record["stages"]["layer_steps"] == 2
    assert record["weights"] == {"change": "lora", "rank": 4}
    again = run("convert", "--config", out / "convert.json", *SMALL)
    assert f"converted model: {out / 'adapter'}" in again
    video = tmp_path / "new.mp4"
    adapter = ("--adapter", out / "adapter", "--dtype", "float32", "--device", "cpu")
    size = ("--frames", 5, "--size", 48, 64, "--steps", 1)
    pipeline = ("--pipeline", folder / "wan", "--prompt", "a cat", "-o", video)
    told = run("generate", *pipeline, *adapter, *size)
    assert "of dense attention's FLOPs in 3 of 3 layers" in told
    assert video.is_file()


def test_by_recorded_calls(folder: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a cat\nthe lighthouse\n", encoding="utf-8")
    out = tmp_path / "out"
    given = ("convert", "--pipeline", folder / "wan", "-o", out, *SMALL)
    size = ("--frames", 5, "--size", 48, 64)
    told = run(*given, "--prompts", prompts, *size)
    assert f"converted model: {out / 'adapter'}" in told
    assert len(list((out / "calls").glob("*.safetensors"))) == 16
    other = tmp_path / "other"
    run("convert", out / "calls", "--pipeline", folder / "wan", "-o", other, *SMALL)
    assert (other / "adapter" / "lora.safetensors").is_file()


def test_an_own_model_on_synthetic_clips(tmp_path: Path) -> None:
    dense, out = make_dense_folder(tmp_path), tmp_path / "out"
    clips = ("--set", "data.num_frames=2", "--set", "data.height=24", "--set", "data.width=32")
    small = [x for x in SMALL if x not in ("--rank", 4)]
    told = run("convert", "synthetic", "--pipeline", dense, "-o", out, *small, *clips, "--full")
    assert f"next: freqformer sample {out / 'pipeline'}" in told
    assert (out / "pipeline" / "model_index.json").is_file()


def test_what_is_missing_or_too_much_is_named(folder: Path, tmp_path: Path) -> None:
    wan, out = ("--pipeline", folder / "wan"), ("-o", tmp_path / "out")
    prompts = ("--prompts", tmp_path / "prompts.txt")
    for arguments, told in (
        (("cache", *out), "--pipeline is missing"),
        (("cache", *wan), "--output is missing"),
        ((*wan, *out), "DATA is missing"),
        (("cache", *wan, *out, *prompts), "one of the two is allowed"),
        (("cache", *wan, *out, "--frames", 5), "without --prompts"),
        (("cache", *wan, *out, "--density", 3), "density is 3"),
        (("cache", *wan, *out, "--full", "--rank", 4), "rank is 4 with change 'full'"),
        ((folder / "cache", "--pipeline", folder / "cache", *out), "which is a cache"),
    ):
        refused("convert", *arguments, message=told)
    assert not (tmp_path / "out").exists()
