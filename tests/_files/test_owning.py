"""Output folders that hold files of the user's too."""

from __future__ import annotations

import pytest

from freqformer._files import FileError, output_folder


def write(folder, text: str, command: str = "demo", **options) -> None:
    with output_folder(folder, command, ("index.html", "summary.json"), **options):
        (folder / "index.html").write_text(text)


def test_a_file_of_the_users_is_not_overwritten(tmp_path):
    (tmp_path / "index.html").write_text("my page")
    with pytest.raises(
        FileError, match=r"holds index\.html, which no freqformer demo wrote, .* move them away"
    ):
        write(tmp_path, "demo")
    assert (tmp_path / "index.html").read_text() == "my page"


def test_the_same_command_may_write_again_and_others_stay(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    for text in ("one", "two"):
        write(tmp_path, text)
        assert (tmp_path / "index.html").read_text() == text
    assert (tmp_path / "notes.txt").read_text() == "mine"
    with pytest.raises(FileError, match="no freqformer inspect wrote"):
        write(tmp_path, "three", command="inspect")


def test_what_versions_without_a_mark_left_is_replaced(tmp_path):
    (tmp_path / "index.html").write_text("old")
    (tmp_path / "run").mkdir()
    write(tmp_path, "new", earlier=("run",))
    assert (tmp_path / "index.html").read_text() == "new"


def test_a_damaged_mark_vouches_for_nothing(tmp_path):
    write(tmp_path, "one")
    (tmp_path / ".freqformer-output.json").write_text("{")
    with pytest.raises(FileError, match="no freqformer demo wrote"):
        write(tmp_path, "two")
