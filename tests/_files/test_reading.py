"""JSON that anybody may have written is read in bounds."""

from __future__ import annotations

import os

import pytest

from freqformer._files import FileError, read_bytes, read_json


def test_what_is_sound_is_read(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('{"a": [1, 2.5, null, true, "ü"]}', encoding="utf-8")
    assert read_json(path, remedy="") == {"a": [1, 2.5, None, True, "ü"]}
    path.write_text("[" * 30 + "]" * 30)
    assert isinstance(read_json(path, kind=list, remedy=""), list)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[" * 100_000 + "]" * 100_000, "nested more than 32 deep"),
        ('{"a": ' * 100_000 + "1" + "}" * 100_000, "nested more than 32 deep"),
        ('{"a": ' + "[" * 40 + "]" * 40 + "}", "nested more than 32 deep"),
        ('{"a": 1' + "0" * 30 + "}", "an integer beyond 64 bits"),
        ('{"a": 1' + "0" * 5000 + "}", "can't be read"),
        ('{"a": 1e999}', "not finite"),
        ('{"a": NaN}', "not finite"),
        ("", "can't be read"),
        ("{", "can't be read"),
        (b'{"a": "\xff"}', "can't be read"),
        ("[1]", "holds list; an object is allowed"),
        ('"' + "x" * 1000 + '"', "holds 'xxx.*…; an object is allowed"),
    ],
)
def test_what_is_not_is_a_typed_error_with_the_file(tmp_path, content, message):
    """F117."""
    path = tmp_path / "a.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(FileError, match=rf"(?s)a\.json .*{message}.*remove it"):
        read_json(path, remedy="remove it")


def test_what_is_no_file_or_too_large(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "large").write_bytes(bytes(11))
    for name, message in (
        ("none", "can't be read"),
        ("pipe", "no regular file"),
        (".", "no regular file"),
        ("large", "11 bytes; 10"),
    ):
        with pytest.raises(FileError, match=message):
            read_bytes(tmp_path / name, remedy="", most_bytes=10)
