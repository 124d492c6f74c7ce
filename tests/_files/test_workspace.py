"""What a stopped process leaves beside its target is put back or removed, and nothing else is."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from freqformer._files import workspace, write_text, writing_file, writing_folder


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


KILLED = """
import os, pathlib, signal, sys
from freqformer._files import writing_folder

def kill_self():
    os.kill(os.getpid(), signal.SIGKILL)

def write(target, moment):
    real = pathlib.Path.rename
    def rename(path, to):
        if moment == "before " + path.name:
            kill_self()
        real(path, to)
        if moment == "after " + path.name:
            kill_self()
    pathlib.Path.rename = rename
    with writing_folder(target, kind="model") as new:
        (new / "weights").write_text("new")
        kill_self() if moment == "filling" else None

for moment in sys.argv[2:]:
    # Importing takes seconds; a fork is a process like any other.
    child = os.fork()
    if child == 0:
        write(pathlib.Path(sys.argv[1], moment, "model"), moment)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
"""
MOMENTS = {"filling": "old", "before model": "old", "before new": "old", "after new": "new"}
"""When a process is killed that replaces a folder, and what the folder holds in the end."""


@pytest.fixture(scope="module")
def killed(tmp_path_factory) -> Path:
    """Folders, named for the moments, that processes were killed in."""
    folder = tmp_path_factory.mktemp("killed")
    for moment in MOMENTS:
        with writing_folder(folder / moment / "model", kind="model") as new:
            (new / "weights").write_text("old")
    command = [sys.executable, "-c", KILLED, str(folder), *MOMENTS]
    subprocess.run(command, timeout=60, check=True)
    return folder


@pytest.mark.parametrize("moment", MOMENTS)
def test_what_a_killed_process_left_is_put_back_or_removed(killed, tmp_path, moment):
    place = tmp_path / "copy"
    shutil.copytree(killed / moment, place)
    assert len(list(place.glob(".freqformer-*"))) == 1
    assert (place / "model").exists() == (moment != "before new")
    write_text(place / "page", "x")
    assert names(place) == ["model", "page"]
    assert (place / "model" / "weights").read_text() == MOMENTS[moment]


@pytest.mark.parametrize("change", ["file", "host", "format", "target"])
def test_leftovers_that_are_not_provably_ours_stay(killed, tmp_path, change):
    shutil.copytree(killed / "filling", tmp_path / "copy")
    (place,) = (tmp_path / "copy").glob(".freqformer-*")
    if change == "file":
        (place / "thesis.txt").touch()
    else:
        mark = json.loads((place / "mark.json").read_text())
        mark[change] = {"host": "another", "format": "other", "target": "../model"}[change]
        (place / "mark.json").write_text(json.dumps(mark))
    before = names(place)
    write_text(tmp_path / "copy" / "page", "x")
    assert names(place) == before


@pytest.mark.parametrize("moment", ["before its folder", "after its folder"])
def test_an_owner_that_ends_while_it_is_looked_at_leaves_nothing(
    tmp_path, monkeypatch, caplog, moment
):
    hold = workspace.hold
    owner = ExitStack()
    owner.enter_context(writing_file(tmp_path / "first")).touch()
    (place,) = tmp_path.glob(".freqformer-*")

    def held_late(lock: Path):
        if lock.parent == place and not (tmp_path / "first").exists():
            owner.close()
            assert not place.exists()
            if moment == "before its folder":
                # The owner found the new lock file when it removed the folder.
                place.mkdir()
        return hold(lock)

    monkeypatch.setattr(workspace, "hold", held_late)
    write_text(tmp_path / "second", "x")
    assert names(tmp_path) == ["first", "second"]
    assert not caplog.records
