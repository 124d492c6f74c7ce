"""Captions beside files and in lists, and lists that are broken."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from freqformer.training.cache.captions import read_captions

FILES = ["a.mp4", "inner/b.mp4"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "inner").mkdir()
    for name in FILES:
        (tmp_path / name).write_bytes(b"")
    return tmp_path


def test_beside_each(folder: Path) -> None:
    (folder / "a.txt").write_text("﻿ a cat\n", encoding="utf-8")
    (folder / "inner" / "c.txt").write_text("no video of that name")
    found = read_captions(folder, FILES)
    assert found.by_file == {"a.mp4": "a cat"}
    assert found.without_caption == ("inner/b.mp4",)
    assert found.problems == [
        f"{folder / 'inner' / 'c.txt'}: a caption without a video",
        "inner/b.mp4: no caption",
    ]


def test_lines_of_json(folder: Path) -> None:
    lines = [
        {"path": "a.mp4", "cap": "a cat"},
        {"file_name": str(folder / "inner/b.mp4"), "caption": "a dog"},
        {"video": "lost.mp4", "text": "a bird"},
    ]
    text = "\n".join(json.dumps(line) for line in lines)
    (folder / "captions.jsonl").write_text(text + "\n\n")
    found = read_captions(folder, FILES)
    assert found.by_file == {"a.mp4": "a cat", "inner/b.mp4": "a dog"}
    assert found.without_file == (f"{folder / 'captions.jsonl'}, line 3 (lost.mp4)",)


def test_a_list_of_videos(folder: Path) -> None:
    entries = [{"path": "a.mp4", "cap": ["a cat"]}, {"path": "inner/b.mp4", "cap": "a dog"}]
    (folder / "videos2caption.json").write_text(json.dumps(entries))
    assert read_captions(folder, FILES).by_file == {"a.mp4": "a cat", "inner/b.mp4": "a dog"}
    (folder / "a.txt").write_text("a cat")
    assert not read_captions(folder, FILES).problems
    (folder / "a.txt").write_text("a lion")
    with pytest.raises(ValueError, match=r"a.txt is a second caption of a.mp4"):
        read_captions(folder, FILES)
    (folder / "captions.jsonl").write_text("")
    with pytest.raises(ValueError, match=r"captions.jsonl and videos2caption.json; one list"):
        read_captions(folder, FILES)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("captions.jsonl", b'{"path": "a.mp4"', r"line 1 is no JSON"),
        ("captions.jsonl", b'\n{"path": "a.mp4"}', r"line 2 is .*with text in both"),
        ("captions.jsonl", b"[1]", r"line 1 is \[1\]"),
        ("captions.jsonl", b"\xff\xfe", "is no text in UTF-8"),
        ("captions.jsonl", b"[" * 10_000, "line 1 is no JSON"),
        ("videos2caption.json", b'{"path": "a.mp4"}', r"videos2caption.json"),
        ("videos2caption.json", b'[{"path": "a.mp4", "cap": 3}]', "entry 1 is"),
        ("videos2caption.json", b'[{"path": ', "videos2caption.json"),
        ("a.txt", b"\xff\xfe\xfd", r"a.txt is no text in UTF-8"),
        (
            "captions.jsonl",
            b'{"path": "a.mp4", "cap": "x"}\n{"path": "a.mp4", "cap": "y"}',
            "line 2 is a second caption of a.mp4",
        ),
    ],
)
def test_what_is_broken_is_named(folder: Path, name: str, content: bytes, message: str) -> None:
    (folder / name).write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        read_captions(folder, FILES)
    assert name in str(caught.value)
    assert "repair or remove it" in str(caught.value) or "one is allowed" in str(caught.value)
