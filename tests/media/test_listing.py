"""Which files of a folder are videos."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from freqformer.media import VideoError, list_videos


def test_listing(tmp_path: Path) -> None:
    for name in ("b.mp4", "a.MKV", "deep/er/c.webm", "notes.txt", ".hidden.mp4", ".cache/d.mp4"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert list_videos(tmp_path) == [
        tmp_path / name for name in ("a.MKV", "b.mp4", "deep/er/c.webm")
    ]
    assert list_videos(tmp_path / "notes.txt") == [tmp_path / "notes.txt"]
    with pytest.raises(VideoError, match="does not exist"):
        list_videos(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(VideoError, match=r"empty holds no video.*mp4"):
        list_videos(tmp_path / "empty")


def test_links_to_folders_are_followed_and_circles_end(tmp_path: Path) -> None:
    """F86."""
    elsewhere = tmp_path / "elsewhere"
    videos = tmp_path / "videos"
    for folder in (elsewhere, videos):
        folder.mkdir()
    (elsewhere / "a.mp4").touch()
    (videos / "b.mp4").touch()
    (videos / "linked").symlink_to(elsewhere, target_is_directory=True)
    (videos / "c.mp4").symlink_to(elsewhere / "a.mp4")
    (videos / "dead.mp4").symlink_to(tmp_path / "nothing")
    (elsewhere / "back").symlink_to(videos, target_is_directory=True)
    assert list_videos(videos) == [videos / name for name in ("b.mp4", "c.mp4", "linked/a.mp4")]


def test_a_folder_that_can_not_be_read_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog
) -> None:
    (tmp_path / "a.mp4").touch()
    (tmp_path / "closed").mkdir()
    real = os.scandir

    def refusing(path):
        if Path(path).name == "closed":
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", refusing)
    assert list_videos(tmp_path) == [tmp_path / "a.mp4"]
    assert "closed: Permission denied" in caplog.text
