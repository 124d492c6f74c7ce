"""`freqformer cache` on tiny videos."""

from __future__ import annotations

from pathlib import Path

from tests.support.command_line import refused, run
from tests.support.tiny_cache import make_videos
from tests.support.tiny_encoders import save_encoders


def test_cache_tells_what_it_holds(tmp_path: Path) -> None:
    save_encoders(tmp_path / "wan")
    make_videos(tmp_path / "videos")
    (tmp_path / "videos" / "bad.mp4").write_bytes(b"no video")
    (tmp_path / "videos" / "bad.txt").write_text("a ball")
    named = [tmp_path / "videos", "--vae", tmp_path / "wan", "-o", tmp_path / "cache"]
    sizes = ["--size", "32x48", "--frames", 5, "--frames", 9, "--fps", 8, "--device", "cpu"]
    told = run("cache", *named, *sizes, "--text-encoder", tmp_path / "wan")
    assert "1 clips of 9 x 32 x 48 (frames, height, width)" in told
    assert "cached 4 clips and 5 captions, the empty one included" in told
    assert f"left out: {tmp_path / 'videos' / 'bad.mp4'} can't be read as a video" in told
    assert f"freqformer train {tmp_path / 'cache'}" in told
    refused("cache", *named, *sizes, message="text_encoder was")
    refused("cache", *named, "--size", "32", message="--size is '32'; HEIGHTxWIDTH is allowed")
    refused("cache", *named, "--fps", 0, message="fps is 0.0; numbers from")
    refused("cache", *named, "--device", "tpu", message="--device is 'tpu'")
    refused("cache", *named, "--latents", "all", message="latents is 'all'; choose one of")
