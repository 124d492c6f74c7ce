"""What all commands share: help with examples, errors in one line, and what an interrupt leaves."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tests.support.command_line import invoke, run

import freqformer
from freqformer.cli.console import INTERRUPTED


@pytest.mark.parametrize(
    "command", [[], ["train"], ["sample"], ["inspect"], ["demo"], ["doctor"], ["generate"]]
)
def test_help_has_examples(command: list[str]) -> None:
    output = run(*command, "--help")
    assert "Examples:" in output
    assert " ".join(["freqformer", *command]) in output.partition("Examples:")[2]


def test_version() -> None:
    assert run("--version") == f"freqformer {freqformer.__version__}"


def test_the_package_is_a_command_too() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "freqformer", "--help"], capture_output=True, text=True, check=True
    )
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

    monkeypatch.setattr("av.VideoFrame.from_ndarray", interrupted)
    assert "stopped" in run("inspect", video, "-o", tmp_path / "bands", code=INTERRUPTED)
    assert not list((tmp_path / "bands").glob("*.partial"))
    assert not list((tmp_path / "bands").glob("*.mp4"))


SIGNALLED_IMPORT = """
import os, sys
module, number = sys.argv[1], int(sys.argv[2])
sys.argv[1:] = ["simulate"]
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == module:
            os.kill(os.getpid(), number)
sys.meta_path.insert(0, Finder())
from freqformer.__main__ import main
main()
"""


@pytest.mark.parametrize(
    ("number", "name"), [(signal.SIGINT, "Ctrl-C"), (signal.SIGTERM, "SIGTERM")]
)
@pytest.mark.parametrize("module", ["rich", "freqformer.simulate.model.scenarios"])
def test_a_signal_while_a_command_is_imported_ends_it_without_a_traceback(
    module: str, number: int, name: str
) -> None:
    """Before the command is known, and in its body."""
    command = [sys.executable, "-c", SIGNALLED_IMPORT, module, str(int(number))]
    ran = subprocess.run(command, capture_output=True, text=True)
    assert (ran.returncode, ran.stderr, ran.stdout) == (128 + number, f"stopped by {name}\n", "")


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_in_a_command_leaves_nothing_half_written(
    number: int, status: int, video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        os.kill(os.getpid(), number)

    monkeypatch.setattr("av.VideoFrame.from_ndarray", interrupted)
    output = run("inspect", video, "-o", tmp_path / "bands", code=status)
    assert "nothing half-written is left, and the same command begins again" in output
    assert "Traceback" not in output
    assert not list((tmp_path / "bands").glob("*.mp4*"))


IN_A_PROCESS = """
import sys
from freqformer.cli import app
try:
    app(sys.argv[1:], prog_name="freqformer")
finally:
    print("LOADED", *sys.modules)
"""


@pytest.mark.parametrize(
    "arguments", [["--help"], ["--version"], ["simulate", "--help"], ["train", "--wrong"]]
)
def test_help_and_wrong_usage_load_neither_torch_nor_what_commands_need(
    arguments: list[str],
) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", IN_A_PROCESS, *arguments], capture_output=True, text=True
    )
    loaded = set(ran.stdout.rpartition("LOADED")[2].split())
    assert "freqformer.cli.simulate" in loaded, ran.stderr
    assert not loaded & {
        "torch",
        "numpy",
        "diffusers",
        "accelerate",
        "av",
        "PIL",
        "matplotlib",
        "plotly",
    }


def test_threads_of_a_command_wait_without_spinning(tmp_path: Path) -> None:
    """OpenMP reports what it read when torch loaded it; without the setting it says nothing of the
    kind."""
    if not (sys.platform == "linux" and torch.backends.openmp.is_available()):
        pytest.skip("only the OpenMP of Linux builds reports what it read")
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    environment["OMP_DISPLAY_ENV"] = "true"
    command = [sys.executable, "-m", "freqformer", "inspect", tmp_path / "none"]
    for asked, found in ((None, "PASSIVE"), ("ACTIVE", "ACTIVE")):
        more = {} if asked is None else {"OMP_WAIT_POLICY": asked}
        ran = subprocess.run(command, env=environment | more, capture_output=True, text=True)
        assert f"OMP_WAIT_POLICY = '{found}'" in ran.stderr
