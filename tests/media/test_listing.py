"""Which files of a folder are videos."""

from __future__ import annotations

from pathlib import Path

import pytest

from freqformer.media import VideoError, list_videos


def test_listing(tmp_path: Path) -> None:
    for name in ("b.mp4", "a.MKV", "deep/er/c.webm", "notes.txt", ".hidden.mp4", ".cache/d.mp4"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert list_videos(tmp_path) == [tmp_path / name for name in ("a.MKV", "b.mp4", "deep/er/c.webm")]
    assert list_videos(tmp_path / "notes.txt") == [tmp_path / "notes.txt"]
    with pytest.raises(VideoError, match="does not exist"):
        list_videos(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(VideoError, match=r"empty holds no video.*mp4"):
        list_videos(tmp_path / "empty")
