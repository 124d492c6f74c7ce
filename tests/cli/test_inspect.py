"""`freqformer inspect` on a short video."""

from __future__ import annotations

from pathlib import Path

from tests.support.command_line import refused, run

from freqformer.media import probe_video


def test_inspect(video: Path, tmp_path: Path) -> None:
    output = run("inspect", video, "--output", tmp_path / "bands", "--seconds", 1)
    assert "low" in output
    assert probe_video(tmp_path / "bands" / "bands.mp4").num_frames == 10
    assert probe_video(tmp_path / "bands" / "band_energies.png").width > 300
    run("inspect", video, "--seconds", 1)
    assert (video.parent / "clip-bands" / "bands.mp4").is_file()


def test_errors_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("no video")
    refused("inspect", tmp_path / "text.mp4", message="can't be read")
