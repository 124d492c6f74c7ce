"""What all commands share: help with examples, errors in one line, and what an interrupt leaves."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from tests.support.command_line import invoke, run

import freqformer
from freqformer.cli.console import INTERRUPTED


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


def test_wrong_usage_is_told_by_the_parser() -> None:
    assert "DATA or --output is missing" in run("train", "videos", code=2)
    assert "Missing option" in run("export", "runs", code=2)
    assert "No such command" in run("fly", code=2)
    assert "Usage" in run(code=2)


def test_traceback_on_request(tmp_path: Path) -> None:
    result = invoke("--traceback", "inspect", tmp_path / "no.mp4")
    assert isinstance(result.exception, ValueError)


def test_interrupt_is_tidy(video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("freqformer.media.av.VideoFrame.from_ndarray", interrupted)
    assert "stopped" in run("inspect", video, "-o", tmp_path / "bands", code=INTERRUPTED)
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
