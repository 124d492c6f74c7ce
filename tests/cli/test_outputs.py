"""No command works for minutes before it finds that its output can't be written."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.support.command_line import refused

from freqformer.cli.outputs import check_file, check_folder


@pytest.mark.parametrize(
    "command",
    [
        ["train", "synthetic", "--steps", 1],
        ["calibrate", "shipped"],
        ["inspect", "no.mp4"],
        ["demo"],
        ["export", "no-run"],
        ["sample", "shipped"],
    ],
    ids=lambda command: command[0],
)
def test_a_file_where_a_folder_should_be_is_found_first(command: list, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")
    below = tmp_path / "file" / "below" / "x.mp4"
    refused(
        *command, "-o", below, message=f"but {tmp_path / 'file'} is a file; choose another folder"
    )
    if command[0] != "sample":
        refused(*command, "-o", tmp_path / "file", message="file, which is a file; name a folder")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == "kept"


def test_places_that_can_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in (Path("new"), Path("a/b/c"), Path("."), tmp_path):
        check_folder(folder)
    for file in (Path("x.mp4"), Path("a/x.MP4"), tmp_path / "x.mp4"):
        check_file(file)
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr("os.access", lambda place, mode: False)  # root may write anywhere
    with pytest.raises(ValueError, match="can't be written to; choose another folder"):
        check_folder(Path("new"))
