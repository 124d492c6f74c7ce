"""`freqformer sample` with a model that was trained for three steps."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.support.command_line import refused, run

from freqformer.cli.console import USER_ERROR
from freqformer.media import probe_video, read_clip
from freqformer.models.pipeline import FreqFormerPipeline


def test_sample_takes_the_trained_size(trained: Path, tmp_path: Path) -> None:
    output = run("sample", trained, "--output", tmp_path / "new.mp4", "--steps", 2, "--enlarge", 2)
    assert "4 x 16 x 16" in output
    info = probe_video(tmp_path / "new.mp4")
    assert (info.num_frames, info.height, info.width) == (4, 32, 32)
    assert info.fps == pytest.approx(10)
    assert (
        read_clip(tmp_path / "new.mp4", start=0, num_frames=4, fps=10, height=32, width=32)
        .float()
        .std()
        > 1
    )
    assert probe_video(tmp_path / "new.png").width > 64


def test_sample_at_another_size_by_seed(trained: Path, tmp_path: Path) -> None:
    videos = []
    for index, seed in enumerate((1, 1, 2)):
        target = tmp_path / f"{index}.mp4"
        run(
            "sample",
            trained / "pipeline",
            "-o",
            target,
            "--size",
            2,
            24,
            16,
            "--fps",
            5,
            "--steps",
            2,
            "--seed",
            seed,
        )
        videos.append(read_clip(target, start=0, num_frames=2, fps=5, height=24, width=16))
    # The contact sheet is lossless. Of the same frames x264 made another file in up to 8 of 60 runs
    # on a loaded machine.
    sheets = [(tmp_path / f"{index}.png").read_bytes() for index in range(3)]
    assert sheets[0] == sheets[1] != sheets[2]
    same, other = ((videos[0].float() - video.float()).abs().mean() for video in videos[1:])
    assert same < 2.5 < 5 < other
    run("sample", trained, "-o", tmp_path / "two.mp4", "--steps", 1, "--count", 2)
    assert sorted(path.name for path in tmp_path.glob("two*")) == [
        "two-0.mp4",
        "two-0.png",
        "two-1.mp4",
        "two-1.png",
    ]


def test_sample_at_four_times_the_length_by_bands_and_dense(trained: Path, tmp_path: Path) -> None:
    # Wide open gates, which a short training leaves nearly closed: attention shows in what the
    # model makes.
    pipeline = FreqFormerPipeline.from_pretrained(str(trained / "pipeline"))
    for layer in (pipeline.transformer.time_modulation.linear, pipeline.transformer.proj_out):
        layer.weight.data.normal_(std=0.3, generator=torch.Generator().manual_seed(0))
    pipeline.save_pretrained(tmp_path / "opened")
    size = ["--size", 16, 16, 16, "--steps", 2, "--seed", 3]
    sheets = []
    for name, options in (("bands", []), ("dense", ["--dense"]), ("again", ["--dense"])):
        assert "16 x 16 x 16" in run(
            "sample", tmp_path / "opened", "-o", tmp_path / f"{name}.mp4", *size, *options
        )
        assert probe_video(tmp_path / f"{name}.mp4").num_frames == 16
        sheets.append((tmp_path / f"{name}.png").read_bytes())
    assert sheets[0] != sheets[1] == sheets[2]


def test_model_without_a_record_needs_a_size(trained: Path, tmp_path: Path) -> None:
    alone = tmp_path / "alone"
    alone.symlink_to(trained / "pipeline")
    output = run("sample", alone, "-o", tmp_path / "x.mp4", code=USER_ERROR)
    assert "--size FRAMES HEIGHT WIDTH" in output


def test_errors_are_one_line(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "folder.mp4").mkdir()
    (tmp_path / "clip.mp4").write_text("no model")
    out = ["-o", tmp_path / "x.mp4"]
    cases = [
        (["sample", tmp_path / "no", *out], "no does not exist"),
        (["sample", tmp_path / "clip.mp4", *out], "clip.mp4 is a file"),
        (["sample", tmp_path / "empty", *out], "holds no trained model"),
        (["sample", "./shipped", *out], "shipped does not exist"),
        (["sample", trained, *out, "--size", 2, 15, 16], "multiples of patch_size"),
    ]
    for arguments, message in cases:
        refused(*arguments, message=message)


def test_what_can_not_be_written_is_refused_before_a_model_is_loaded(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("freqformer.cli.sample.load_pipeline", lambda _: pytest.fail("loaded"))
    (tmp_path / "folder.mp4").mkdir()
    (tmp_path / "file").write_text("")
    right = tmp_path / "x.mp4"
    cases = [
        (["-o", tmp_path / "x.avi"], "does not end in .mp4"),
        (["-o", tmp_path / "x.gif"], "does not end in .mp4"),
        (["-o", tmp_path / "folder.mp4"], "folder.mp4, which is a folder"),
        (["-o", tmp_path / "file" / "below" / "x.mp4"], "file is a file"),
        *(
            (["-o", right, "--fps", fps], f"fps is {float(fps)}; numbers from 0.001 to 1000")
            for fps in (0, -1, 5e-4, 2000, "nan", "inf")
        ),
        (["-o", right, "--size", 4, 0, 16], "--size is 4 0 16; FRAMES HEIGHT WIDTH from 1 up"),
        (["-o", right, "--size", 4, -16, 16], "--size is 4 -16 16"),
        (
            ["-o", right, "--size", 1, 16, 16400],
            "16 x 16400 pixels; up to 16384 pixels",
        ),
        (["-o", right, "--enlarge", 1000], "16000 x 16000 pixels"),
        (["-o", right, "--dense", "--routing-table", tmp_path], "one of them is allowed"),
        (["-o", right, "--device", "tpu"], "--device is 'tpu'; cpu"),
        (["-o", right, "--device", "cuda:99"], "--device is 'cuda:99'; cpu"),
    ]
    for arguments, message in cases:
        refused("sample", trained, *arguments, message=message)
    for seed in (2**70, 2**63, -1):
        assert "Invalid value for '--seed'" in run(
            "sample", trained, "-o", right, "--seed", seed, code=USER_ERROR
        )
    assert [path.name for path in tmp_path.iterdir() if path.suffix == ".mp4"] == ["folder.mp4"]


def test_sample_says_where_it_computes(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved: list[torch.device] = []
    monkeypatch.setattr(FreqFormerPipeline, "to", lambda self, device: moved.append(device))
    short = ["sample", trained, "--steps", 1, "-o"]
    assert "generating on the CPU, 1 threads" in run(*short, tmp_path / "x.mp4", "--device", "cpu")
    monkeypatch.setattr("freqformer.cli.devices.torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("freqformer.cli.devices.torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr("freqformer.cli.devices.torch.cuda.get_device_name", lambda _: "Some GPU")
    assert "generating on Some GPU (cuda)" in run(*short, tmp_path / "x.mp4")
    assert "generating on Some GPU (cuda:1)" in run(
        *short, tmp_path / "x.mp4", "--device", "cuda:1"
    )
    assert [str(device) for device in moved] == ["cpu", "cuda", "cuda:1"]
    refused(
        *short,
        tmp_path / "x.mp4",
        "--device",
        "cuda:2",
        message="--device is 'cuda:2'; cpu, cuda, cuda:0, cuda:1 are allowed on this machine",
    )


def test_the_largest_seed_and_the_lowest_rate(trained: Path, tmp_path: Path) -> None:
    target = tmp_path / "x.mp4"
    run("sample", trained, "-o", target, "--steps", 1, "--seed", 2**63 - 1, "--fps", 0.001)
    info = probe_video(target)
    assert (info.num_frames, info.fps) == (4, pytest.approx(0.001))


def test_the_shipped_model_has_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    output = run("sample", "shipped", "-o", "cat.mp4", "--steps", 1, "--size", 4, 16, 16)
    assert "4 x 16 x 16" in output
    assert probe_video(tmp_path / "cat.mp4").fps == pytest.approx(8)
    monkeypatch.setattr("freqformer.demo.shipped.shipped_model", lambda: None)
    refused("sample", "shipped", "-o", "cat.mp4", message="this version comes without")
