"""One process at a time in an output folder."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from freqformer._files import FileError, locked

HOLD = """
import pathlib, sys, time
from freqformer._files import locked
with locked(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    """A process that holds tmp_path / "run", once it does."""
    command = [sys.executable, "-c", HOLD, str(tmp_path / "run")]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        if process.poll() is None:
            process.kill()


def test_a_second_process_is_told_who_holds_it_until_that_is_dead(tmp_path, holder):
    """F101."""
    for folder in (tmp_path / "run", tmp_path / "link"):
        if folder.name == "link":
            folder.symlink_to(tmp_path / "run")
        with (
            pytest.raises(
                FileError, match=rf"in use by process {holder.pid} on .* since 2\d+-.*; wait"
            ) as caught,
            locked(folder),
        ):
            pass
        assert str(folder) in str(caught.value)
    with locked(tmp_path / "other"):
        pass
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    with locked(tmp_path / "run"):
        pass


def test_it_is_free_again_behind_the_block(tmp_path):
    for _ in range(2):
        own = rf"in use by process {os.getpid()} "
        with (
            locked(tmp_path / "run"),
            pytest.raises(FileError, match=own),
            locked(tmp_path / "run"),
        ):
            pass
        with pytest.raises(ZeroDivisionError), locked(tmp_path / "run"):
            _ = 1 / 0
    # Nothing was written there.
    assert not (tmp_path / "run").exists()
    (tmp_path / "run").mkdir()
    with locked(tmp_path / "run"):
        pass
    assert [path.name for path in (tmp_path / "run").iterdir()] in ([], [".freqformer.lock"])


def test_links_in_its_place_are_not_followed(tmp_path):
    """F114."""
    victim, run = tmp_path / "victim", tmp_path / "run"
    victim.write_text("precious")
    run.mkdir()
    (run / ".freqformer.lock.json").symlink_to(victim)
    with locked(run):
        pass
    (run / ".freqformer.lock").unlink(missing_ok=True)
    (run / ".freqformer.lock").symlink_to(victim)
    with pytest.raises(FileError, match="can't be written: it is a symbolic link"), locked(run):
        pass
    assert victim.read_text() == "precious"


def test_a_place_that_is_no_folder(tmp_path):
    (tmp_path / "file").touch()
    with (
        pytest.raises(FileError, match=r"can't be written: .*move it"),
        locked(Path(tmp_path / "file")),
    ):
        pass
