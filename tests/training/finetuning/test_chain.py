"""From captioned videos to a video by a fine-tuned pipeline, in three commands, all of them through
frequency attention."""

from __future__ import annotations

from pathlib import Path

from tests.support.command_line import refused, run

from freqformer.media import probe_video

SPARSE = ["--set", "pipeline.density=0.5", "--set", "pipeline.min_tokens=1"]
SMALL = [
    *("--set", "run.batch_size=1", "--set", "run.progress=false"),
    *("--set", "run.device=cpu", "--set", "pipeline.rank=2"),
]


def test_three_commands(wan: Path, tmp_path: Path) -> None:
    """`wan` has the pipeline and the videos."""
    pipe = wan / "pipe"
    encoders = ["--vae", pipe, "--text-encoder", pipe]
    sizes = ["--size", "128x160", "--frames", 17, "--fps", 8, "--device", "cpu"]
    run("cache", wan / "videos", *encoders, "-o", tmp_path / "cache", *sizes)
    output = tmp_path / "run"
    given = ["--pipeline", pipe, "--steps", 2, *SPARSE, *SMALL]
    told = run("train", tmp_path / "cache", "-o", output, *given, "--profile", "2")
    assert f"freqformer generate --pipeline {pipe} --lora {output}/lora" in told
    assert (output / "profile" / "steps-2-2.json.gz").is_file()
    made = tmp_path / "made.mp4"
    video = ["--pipeline", pipe, "--prompt", "a cat", "-o", made, "--frames", 17]
    size = ["--size", 128, 160, "--steps", 2, "--guidance", 1, "--device", "cpu"]
    dials = ["--density", 0.5, "--min-tokens", 1, "--dtype", "float32"]
    told = run("generate", *video, *size, *dials, "--lora", output / "lora")
    assert "of dense attention's FLOPs in 3 of 3 layers" in told
    info = probe_video(made)
    assert (info.num_frames, info.height, info.width) == (17, 128, 160)
    refused(*("generate", *video, *size, "--lora", output), message="holds no pytorch_lora_weights")
