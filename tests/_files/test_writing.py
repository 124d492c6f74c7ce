"""Files and folders that are whole or absent, and that never cost what is somebody else's."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest
from tests.support.file_limit import file_limit

from freqformer._files import (
    FileError,
    remove_folder,
    syncing,
    write_json,
    write_text,
    writing,
    writing_file,
    writing_folder,
)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def fill(target: Path, text: str, kind: str = "model") -> None:
    with writing_folder(target, kind=kind) as new:
        (new / "weights").write_text(text)


def test_a_file_is_absent_or_whole(tmp_path):
    target = tmp_path / "made" / "report.html"
    with pytest.raises(ZeroDivisionError), writing_file(target) as new:
        new.write_text(str(1 // 0))
    assert names(tmp_path / "made") == []
    for text in ("one", "two"):
        write_text(target, text)
        assert target.read_text() == text
    assert names(tmp_path / "made") == ["report.html"]
    # As any new file, not as a temporary one.
    (tmp_path / "plain").touch()
    assert target.stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_json_has_finite_numbers(tmp_path):
    write_json(tmp_path / "a.json", {"x": [1, None]})
    assert json.loads((tmp_path / "a.json").read_text()) == {"x": [1, None]}
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", float("nan"))
    assert names(tmp_path) == ["a.json"]


def test_a_folder_is_absent_or_whole(tmp_path):
    target = tmp_path / "pipeline"
    with pytest.raises(ZeroDivisionError), writing_folder(target) as new:
        (new / str(1 // 0)).touch()
    assert names(tmp_path) == []
    for name in ("a", "b"):
        with writing_folder(target) as new:
            (new / name).touch()
        assert names(target) == [name, "freqformer-manifest.json"]
    assert names(tmp_path) == ["pipeline"]


@pytest.mark.parametrize(
    "name",
    [".tmp-thesis", ".tmp-new-model", ".freqformer-thesis", ".freqformer-abcdefgh", "model.part"],
)
def test_what_others_made_beside_the_target_stays(tmp_path, name):
    """F100: whatever it is called, a folder, or a file."""
    for kind in ("folder", "file"):
        home = tmp_path / kind
        home.mkdir()
        if kind == "folder":
            (home / name).mkdir()
            (home / name / "thesis.txt").write_text("ten years of work")
            (home / name / "lock").touch()
            (home / name / "mark.json").write_text(
                '{"format": "of another program", "target": "model"}'
            )
        else:
            (home / name).write_text("ten years of work")
        fill(home / "model", "x")
        fill(home / "model", "y")
        write_text(home / "page", "z")
        remove_folder(home / "model", kind="model")
        assert names(home) == sorted([name, "page"])
        kept = home / name / "thesis.txt" if kind == "folder" else home / name
        assert kept.read_text() == "ten years of work"


def test_two_writers_side_by_side(tmp_path):
    """F100: neither touches what the other is writing."""
    with writing_folder(tmp_path / "a") as first:
        (first / "weights").write_text("a")
        fill(tmp_path / "b", "b")
        write_text(tmp_path / "c", "c")
        (first / "card").write_text("card")
    assert names(tmp_path / "a") == ["card", "freqformer-manifest.json", "weights"]
    assert names(tmp_path) == ["a", "b", "c"]


def test_two_writers_of_one_folder(tmp_path):
    """F101: the second is told who the first is."""
    with writing_folder(tmp_path / "a", kind="model") as first:
        (first / "weights").write_text("first")
        with pytest.raises(
            FileError, match=rf"a is in use by process {os.getpid()} on .* since .*: .*; wait until"
        ):
            fill(tmp_path / "a", "second")
        (first / "card").write_text("card")
    assert (tmp_path / "a" / "weights").read_text() == "first"
    assert names(tmp_path) == ["a"]


@pytest.mark.parametrize("content", ["wedding.jpg", "photos/wedding.jpg", "weights"])
def test_a_folder_of_somebody_else_is_refused_and_kept(tmp_path, content):
    """F106: only an earlier one of the same kind is replaced, or an empty one."""
    target = tmp_path / "photos"
    (target / content).parent.mkdir(parents=True)
    (target / content).write_text("x")
    for attempt in (lambda: fill(target, "new"), lambda: remove_folder(target, kind="model")):
        with pytest.raises(
            FileError,
            match=rf"photos holds what .* \({content}\) and is kept .*; choose another folder",
        ):
            attempt()
        assert (target / content).read_text() == "x"
    (target / content).unlink()
    if "/" not in content:
        fill(target, "new")
        assert (target / "weights").read_text() == "new"


def test_what_was_added_to_an_earlier_one_is_kept(tmp_path):
    target = tmp_path / "model"
    fill(target, "old")
    (target / "notes").mkdir()
    (target / "notes" / "thesis.txt").write_text("x")
    (target / "link").symlink_to(tmp_path)
    with pytest.raises(FileError, match=r"model holds what .* \(link, notes/thesis\.txt\)"):
        fill(target, "new")
    assert (target / "weights").read_text() == "old"


def test_a_folder_of_another_kind_is_kept(tmp_path):
    fill(tmp_path / "x", "old", kind="checkpoint")
    with pytest.raises(FileError, match=r"did not write there as its own model \(weights\)"):
        fill(tmp_path / "x", "new", kind="model")
    (tmp_path / "file").touch()
    with pytest.raises(FileError, match="file is a file; choose another folder"):
        fill(tmp_path / "file", "new")


def test_known_names_of_folders_without_manifest(tmp_path):
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "weights").write_text("old")
    with writing_folder(tmp_path / "old", known=("weights",)) as new:
        (new / "weights").write_text("new")
    assert (tmp_path / "old" / "weights").read_text() == "new"


@pytest.mark.parametrize("there", [True, False])
def test_a_link_to_the_output_folder(tmp_path, there):
    """F102: the folder that it leads to is written; the link stays."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if there:
        fill(disk / "real", "old")
    (tmp_path / "link").symlink_to(disk / "real")
    fill(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert (disk / "real" / "weights").read_text() == "new"
    assert names(disk) == ["real"]
    (tmp_path / "parent").symlink_to(disk)
    write_text(tmp_path / "parent" / "page", "x")
    assert names(disk) == ["page", "real"]


def test_links_in_the_place_of_a_file_are_replaced_and_not_followed(tmp_path):
    """F114: the linked file stays, for the target and for every name that the writer could have
    used."""
    victim = tmp_path / "victim"
    victim.write_text("precious")
    for name in ("table.json", "table.json.part", "table.json.tmp"):
        (tmp_path / name).symlink_to(victim)
    write_json(tmp_path / "table.json", {})
    assert victim.read_text() == "precious"
    assert not (tmp_path / "table.json").is_symlink()


def test_links_inside_a_folder_that_is_removed_are_not_followed(tmp_path):
    with writing_folder(tmp_path / "model", kind="model") as new:
        (new / "weights").touch()
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "x").touch()
    (tmp_path / "to_model").symlink_to(tmp_path / "model")
    remove_folder(tmp_path / "to_model", kind="model")
    assert names(tmp_path) == ["model", "precious"]


@pytest.mark.parametrize("number", [errno.EIO, errno.EDQUOT, errno.ENOSPC])
def test_where_the_second_rename_fails_the_old_folder_is_put_back(tmp_path, monkeypatch, number):
    """F110: and the message is true."""
    target = tmp_path / "model"
    fill(target, "old")
    real = Path.rename

    def rename(path: Path, to: Path) -> Path:
        if path.name == writing.NEW:
            raise OSError(number, os.strerror(number))
        return real(path, to)

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(
        FileError, match=rf"{os.strerror(number)}; .*What was there before is still there"
    ):
        fill(target, "new")
    assert (target / "weights").read_text() == "old"
    assert names(tmp_path) == ["model"]
    monkeypatch.undo()
    fill(tmp_path / "other", "x")
    assert (target / "weights").read_text() == "old"


def test_where_nothing_can_be_put_back_the_old_folder_waits(tmp_path, monkeypatch):
    """The message says where it is, and the next writer in the place puts it back."""
    target = tmp_path / "model"
    fill(target, "old")
    real, broken = Path.rename, []

    def rename(path: Path, to: Path) -> Path:
        if broken or path.name == writing.NEW:
            broken.append(path)
            raise OSError(errno.EIO, "Input/output error")
        return real(path, to)

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(
        FileError, match=r"can't be put back: .* It is whole, as (.*/old): move it to .*model"
    ) as caught:
        fill(target, "new")
    monkeypatch.undo()
    where = Path(str(caught.value).split("as ")[-1].split(":")[0])
    assert (where / "weights").read_text() == "old"
    write_text(tmp_path / "page", "x")
    assert (target / "weights").read_text() == "old"
    assert names(tmp_path) == ["model", "page"]


def test_files_and_folders_reach_the_disk_before_their_name_does(tmp_path, monkeypatch):
    events = []
    real_sync, real_rename = writing.sync, Path.rename
    for module in (writing, syncing):
        monkeypatch.setattr(
            module, "sync", lambda path: (events.append(path.name), real_sync(path))
        )
    monkeypatch.setattr(
        Path,
        "rename",
        lambda path, to: (events.append(f"rename to {to.name}"), real_rename(path, to)),
    )
    with writing_folder(tmp_path / "run" / "model") as new:
        (new / "a").touch()
        (new / "b").mkdir()
        (new / "b" / "c").touch()
    rename = events.index("rename to model")
    assert {*events[:rename]} >= {"a", "b", "c", "freqformer-manifest.json", "new"}
    assert events[rename + 1 :] == ["run"]


def test_what_helps_is_told_by_what_went_wrong(tmp_path):
    with (
        file_limit(1024),
        pytest.raises(FileError, match=r"page can't be written: .*too large; raise the limit"),
    ):
        write_text(tmp_path / "page", "x" * 4096)
    (tmp_path / "file").touch()
    with pytest.raises(FileError, match=r"can't be written: .*; something else is there: move it"):
        write_text(tmp_path / "file" / "page", "x")
    (tmp_path / "folder").mkdir()
    with pytest.raises(FileError, match="folder can't be written: it is a folder; something else"):
        write_text(tmp_path / "folder", "x")
    with pytest.raises(FileError, match="choose a shorter name"):
        write_text(tmp_path / ("x" * 300), "x")
    assert names(tmp_path) == ["file", "folder"]


def test_an_error_of_reading_in_the_block_is_not_told_as_one_of_writing(tmp_path):
    with pytest.raises(FileNotFoundError), writing_folder(tmp_path / "model"):
        (tmp_path / "elsewhere" / "source").read_text()
    assert names(tmp_path) == []


def test_the_caller_says_which_error(tmp_path):
    class OwnError(ValueError):
        pass

    (tmp_path / "folder").mkdir()
    with pytest.raises(OwnError):
        write_text(tmp_path / "folder", "x", error=OwnError)
