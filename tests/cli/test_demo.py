"""`freqformer demo`; what it makes is tested in tests/test_demo.py."""

from __future__ import annotations

from pathlib import Path

from tests.support.command_line import refused


def test_errors_are_one_line(tmp_path: Path) -> None:
    refused(
        "demo",
        "--video",
        tmp_path / "no.mp4",
        "-o",
        tmp_path / "d",
        message="no.mp4 does not exist",
    )
    refused("demo", "--model", tmp_path, "-o", tmp_path / "d", message="holds no exported model")
